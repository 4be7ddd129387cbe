//! Login and logout.

use std::net::IpAddr;

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use maud::html;

use super::components::{field_error, form_token};
use super::form::{Form, LOGIN};
use super::visitor::Browser;
use super::{is_own_path, layout, see_other};
use crate::api::ApiState;
use crate::api::problem::Problem;

/// Shows the form that asks for a token.
pub(super) async fn show(State(state): State<ApiState>, browser: Browser, RawQuery(query): RawQuery) -> Response {
    let parameters = url::form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes());
    let next = parameters.into_iter().find(|(name, _)| name == "next").map(|(_, value)| value.into_owned());
    let next = next.filter(|next| is_own_path(next)).unwrap_or_else(|| "/".to_owned());
    if !state.requires_token() {
        return see_other("/");
    }
    login_page(StatusCode::OK, &browser, &next, None)
}

fn login_page(status: StatusCode, browser: &Browser, next: &str, error: Option<&str>) -> Response {
    let content = html! {
        h1 { "Log in" }
        form.card.narrow method="post" action="/login" {
            (form_token(browser))
            input type="hidden" name="next" value=(next);
            div.field {
                label for="token" { "Token" }
                input #token type="password" name="token" required autofocus autocomplete="current-password"
                    aria-invalid=[error.map(|_| "true")] aria-describedby="token-hint token-error";
                p.hint #token-hint { "API_TOKEN to see and change everything, API_READ_TOKEN to see it" }
                (field_error("token", error))
            }
            button.primary type="submit" { "Log in" }
        }
    };
    layout::stranger_page(status, "Log in", &content)
}

/// Begins a session with the role of the token.
pub(super) async fn log_in(
    State(state): State<ApiState>,
    browser: Browser,
    Extension(address): Extension<IpAddr>,
    form: Form<LOGIN>,
) -> Response {
    let next = form.raw("next").filter(|next| is_own_path(next)).unwrap_or("/");
    match state.access().log_in(form.text("token").unwrap_or_default(), address) {
        Ok(session) => browser.set_session(see_other(next), Some(&session)),
        Err(problem) => {
            let wait = problem.retry_after_seconds();
            let text = match wait {
                Some(seconds) => format!("{}; try again in {seconds} seconds", problem.detail()),
                None => problem.detail().to_owned(),
            };
            let mut response = login_page(problem.status(), &browser, next, Some(&text));
            if let Some(seconds) = wait {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
    }
}

/// Ends the session in this browser.
pub(super) async fn log_out(browser: Browser, _form: Form<LOGIN>) -> Result<Response, Problem> {
    Ok(browser.set_session(see_other("/login"), None))
}
