//! Who looks at a page.

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use crate::api::access::Caller;
use crate::api::problem::{Problem, ProblemCode};
use crate::api::role::Role;
use crate::api::session;
use crate::api::{Api, ApiState};

/// The browser of a request; an extension of it.
#[derive(Debug, Clone)]
pub(super) struct Browser {
    form_cookie: String,
    is_new: bool,
    is_secure: bool,
}

impl Browser {
    /// The browser of a request; a new one if its forms have no cookie yet.
    pub(super) fn of(request: &Request) -> Self {
        let known = session::read_form_cookie(request.headers());
        let is_secure = session::is_secure(request.headers());
        Self { is_new: known.is_none(), form_cookie: known.unwrap_or_else(session::new_form_cookie), is_secure }
    }

    /// Sets the cookie of forms, if it is new.
    pub(super) fn keep(&self, response: Response) -> Response {
        if self.is_new {
            return set_cookie(response, &session::set_form_cookie(&self.form_cookie, self.is_secure));
        }
        response
    }

    /// Sets the session, or removes it.
    pub(super) fn set_session(&self, response: Response, value: Option<&str>) -> Response {
        set_cookie(response, &session::set_session(value, self.is_secure))
    }

    /// The token of the forms of this browser.
    pub(super) fn form_token(&self) -> String {
        session::form_token(&self.form_cookie)
    }

    /// Checks that a form with this token comes from a page that this browser has loaded.
    ///
    /// # Errors
    ///
    /// The problem, if it does not.
    pub(super) fn check_form_token(&self, token: &str) -> Result<(), Problem> {
        if session::is_form_token(&self.form_cookie, token) {
            return Ok(());
        }
        Err(Problem::new(ProblemCode::Forbidden, "the form is out of date: load its page again, and repeat"))
    }
}

fn set_cookie(mut response: Response, cookie: &str) -> Response {
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

impl<S: Send + Sync> FromRequestParts<S> for Browser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        extension(parts)
    }
}

/// A visitor of a page.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    pub(super) caller: Caller,
    pub(super) browser: Browser,
    /// Whether the visitor can log out.
    pub(super) has_login: bool,
    /// Why the account gate is closed, as last read.
    pub(super) gate: Vec<String>,
}

impl Visitor {
    /// Whether the visitor may change something.
    pub(super) fn may_change(&self) -> bool {
        self.caller.role != Role::ReadOnly
    }
}

impl FromRequestParts<ApiState> for Visitor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let api = Api::from_request_parts(parts, state).await?;
        Ok(Self {
            caller: extension(parts)?,
            browser: extension(parts)?,
            has_login: state.requires_token(),
            gate: api.gate.reasons().iter().map(ToString::to_string).collect(),
        })
    }
}

/// An extension that the middleware sets.
fn extension<T: Clone + Send + Sync + 'static>(parts: &Parts) -> Result<T, Problem> {
    let missing = || Problem::new(ProblemCode::Forbidden, "the request was not admitted");
    parts.extensions.get::<T>().cloned().ok_or_else(missing)
}
