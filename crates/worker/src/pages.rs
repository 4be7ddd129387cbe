//! The pages of `asset-worker serve`, for people: rendered here, over the functions of the HTTP API.
//!
//! They work without JavaScript, except that they then show no changes by themselves. A form posts to a route of the page,
//! which answers with a redirect.

mod account;
mod chart;
mod command_fields;
mod components;
mod dead_letters;
mod form;
mod images_zip;
mod job;
mod jobs;
mod json_text;
mod layout;
mod login;
mod new_job;
mod overview;
mod picture;
mod remedies;
mod static_files;
mod visitor;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};

use crate::api::access::Target;
use crate::api::problem::{Problem, ProblemCode};
use crate::api::{self, ApiState, CallKind};
use visitor::Browser;

/// What a browser may load and send: nothing of other hosts, and no script or style within a page.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The routes of the pages.
pub(crate) fn router(state: ApiState) -> Router {
    let pages = Router::new()
        .route("/", get(overview::show))
        .route("/jobs", get(jobs::list))
        .route("/jobs/cancel", post(jobs::cancel_many))
        .route("/jobs/retry", post(jobs::retry_many))
        .route("/jobs/new", get(new_job::show).post(new_job::submit))
        .route("/jobs/estimate", post(new_job::estimate))
        .route("/jobs/{job_id}", get(job::show))
        .route("/jobs/{job_id}/cancel", post(job::cancel))
        .route("/jobs/{job_id}/retry", post(job::retry))
        .route("/jobs/{job_id}/images.zip", get(images_zip::download))
        .route("/jobs/{job_id}/images/{index}", get(picture::show))
        .route("/jobs/{job_id}/images/{index}/redo", post(picture::redo))
        .route("/dead-letters", get(dead_letters::list))
        .route("/dead-letters/replay", post(dead_letters::replay))
        .route("/dead-letters/discard", post(dead_letters::discard))
        .route("/dead-letters/{id}", get(dead_letters::show))
        .route("/account", get(account::show))
        .route("/account/pause", post(account::pause))
        .route("/account/resume", post(account::resume))
        .route("/account/style", post(account::set_style))
        .route("/account/style/clear", post(account::clear_style))
        .method_not_allowed_fallback(async || {
            Problem::new(ProblemCode::MethodNotAllowed, "this address only takes the form of a page")
        })
        .layer(from_fn_with_state(state.clone(), admit));
    let open = Router::new()
        .route("/login", get(login::show).post(login::log_in))
        .route("/logout", post(login::log_out))
        .layer(from_fn_with_state(state.clone(), admit_stranger));
    let files = Router::new().route("/static/{name}", get(static_files::send));
    pages.merge(open).merge(files).layer(from_fn(secure)).with_state(state)
}

/// Admits a visitor who is logged in, or who needs no token.
async fn admit(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    if is_from_another_site(&request) {
        return layout::same_site_page(request.uri());
    }
    let browser = Browser::of(&request);
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let (is_read, is_fragment) = (request.method().is_safe(), request.headers().contains_key("hx-request"));
    request.extensions_mut().insert(browser.clone());
    let response = state.admit(request, next, Target::Page).await;
    let response = match response.extensions().get::<Problem>() {
        Some(problem) if problem.code() == ProblemCode::Unauthorized => {
            to_login(if is_read { &target } else { "/" }, is_fragment)
        }
        Some(problem) => layout::problem_page(problem),
        None => response,
    };
    browser.keep(response)
}

/// Admits anyone: to the form that asks for a token.
async fn admit_stranger(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let browser = Browser::of(&request);
    request.extensions_mut().insert(browser.clone());
    let (method, route) = (request.method().clone(), api::route_of(&request));
    let response = state.measure(CallKind::Login, method, route, async {
        let address = state.access().check_stranger(request.headers(), api::peer_of(&request)?)?;
        request.extensions_mut().insert(address);
        Ok(next.run(request).await)
    });
    let response = response.await;
    let response = match response.extensions().get::<Problem>() {
        Some(problem) => layout::problem_page(problem),
        None => response,
    };
    browser.keep(response)
}

/// Whether the request follows a link of another site. Then the browser does not send the session.
fn is_from_another_site(request: &Request) -> bool {
    let site = request.headers().get("sec-fetch-site").and_then(|value| value.to_str().ok());
    request.method().is_safe() && site == Some("cross-site")
}

/// Sends a visitor to the login, and then to where the request led. `is_fragment` says that a script asked for a part of a
/// page, whose redirect would be put into it.
fn to_login(target: &str, is_fragment: bool) -> Response {
    let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("next", target).finish();
    if is_fragment {
        return (StatusCode::OK, [("hx-redirect", format!("/login?{query}"))]).into_response();
    }
    Redirect::to(&format!("/login?{query}")).into_response()
}

/// Adds the headers that bound what a browser does with a page.
async fn secure(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "same-origin");
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Answers a form with another page.
fn see_other(path: &str) -> Response {
    Redirect::to(path).into_response()
}

/// Whether a path leads to a page of this server, so that a link to the login cannot lead elsewhere.
fn is_own_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.starts_with("//")
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_leads_only_to_own_pages() {
        for (path, expected) in [
            ("/", true),
            ("/jobs?status=failed", true),
            ("//example.org", false),
            ("/\\example.org", false),
            ("https://example.org", false),
            ("", false),
            ("/\nLocation: x", false),
        ] {
            assert_eq!(is_own_path(path), expected, "{path:?}");
        }
    }
}
