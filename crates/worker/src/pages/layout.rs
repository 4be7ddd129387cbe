//! What all pages have in common.

use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::components::form_token;
use super::static_files;
use super::visitor::Visitor;
use crate::api::problem::Problem;

/// The entries of the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    Overview,
    Jobs,
    NewJob,
    DeadLetters,
    Account,
}

impl Tab {
    const ALL: [Self; 5] = [Self::Overview, Self::Jobs, Self::NewJob, Self::DeadLetters, Self::Account];

    fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Jobs => "Jobs",
            Self::NewJob => "New job",
            Self::DeadLetters => "Dead letters",
            Self::Account => "Account",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Overview => "/",
            Self::Jobs => "/jobs",
            Self::NewJob => "/jobs/new",
            Self::DeadLetters => "/dead-letters",
            Self::Account => "/account",
        }
    }
}

/// Renders a page.
pub(super) fn page(visitor: &Visitor, title: &str, tab: Tab, content: &Markup) -> Response {
    page_with_status(StatusCode::OK, visitor, title, tab, content)
}

/// Renders a page with another status than 200.
pub(super) fn page_with_status(
    status: StatusCode,
    visitor: &Visitor,
    title: &str,
    tab: Tab,
    content: &Markup,
) -> Response {
    let navigation = html! {
        (tabs(Some(tab), visitor.may_change()))
        @if visitor.has_login {
            form.logout method="post" action="/logout" {
                (form_token(&visitor.browser))
                button type="submit" { "Log out" }
            }
        }
    };
    let main = html! {
        @if !visitor.gate.is_empty() && tab != Tab::Account && tab != Tab::Overview {
            p.notice.warning role="status" {
                "Workers take no commands: " (visitor.gate.join("; ")) ". " a href="/account" { "Account" }
            }
        }
        (content)
    };
    respond(status, title, &navigation, &main)
}

/// Renders a page for someone who is not logged in.
pub(super) fn stranger_page(status: StatusCode, title: &str, content: &Markup) -> Response {
    respond(status, title, &html! {}, content)
}

/// Shows why a request failed.
pub(super) fn problem_page(problem: &Problem) -> Response {
    let content = html! {
        h1 { (problem.title()) }
        p.notice.error role="alert" { (problem.detail()) }
    };
    let mut response = respond(problem.status(), problem.title(), &tabs(None, true), &content);
    if let Some(seconds) = problem.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Loads the page again as if from a link of this site: with the session, which a link of another site does not send.
pub(super) fn same_site_page(uri: &Uri) -> Response {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let body = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="refresh" content={ "0;url=" (target) };
                title { "Asset worker" }
            }
            body { p { a href=(target) { "Go on" } } }
        }
    };
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], body.into_string()).into_response()
}

/// The entries of the navigation.
fn tabs(current: Option<Tab>, may_change: bool) -> Markup {
    html! {
        nav aria-label="Pages" {
            ul {
                @for entry in Tab::ALL {
                    @if entry != Tab::NewJob || may_change {
                        li { a href=(entry.path()) aria-current=[(Some(entry) == current).then_some("page")] { (entry.name()) } }
                    }
                }
            }
        }
    }
}

fn respond(status: StatusCode, title: &str, navigation: &Markup, main: &Markup) -> Response {
    let body = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Only what the pages use: no styles and no code within a page, which the policy refuses.
                meta name="htmx-config" content=r#"{"includeIndicatorStyles":false,"allowEval":false,"allowScriptTags":false,"historyEnabled":false}"#;
                title { (title) " · Asset worker" }
                link rel="icon" href=(static_files::ICON.path()) type="image/svg+xml";
                link rel="stylesheet" href=(static_files::STYLE.path());
                script defer src=(static_files::HTMX.path()) {}
                script defer src=(static_files::SCRIPT.path()) {}
            }
            body {
                a.skip href="#content" { "Skip to the content" }
                header.top {
                    a.brand href="/" { "Asset worker" }
                    (navigation)
                }
                main id="content" { (main) }
            }
        }
    };
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], body.into_string()).into_response()
}
