//! Forms as browsers send them.

use axum::extract::{FromRequest, FromRequestParts, Request};
use tokio::sync::OwnedSemaphorePermit;

use super::visitor::Browser;
use crate::api::ApiState;
use crate::api::problem::{Problem, ProblemCode};
use crate::api::request::{media_type, read_bytes};

/// Name of the field with the token of the browser.
pub(super) const TOKEN_FIELD: &str = "form_token";
/// Maximum size of a form with a command, in bytes: 200 descriptions and 50 style modifiers of 2,000 characters, each of
/// which takes at most 12 bytes in a form.
pub(super) const LARGE: usize = 6 * 1024 * 1024;
/// Maximum size of the other forms, in bytes: of the ids of 1,000 dead letters, for example.
pub(super) const SMALL: usize = 64 * 1024;
/// Maximum size of the form for the login, in bytes.
pub(super) const LOGIN: usize = 4 * 1024;
/// Maximum number of fields.
const MAX_FIELDS: usize = 2_000;

/// The fields of a form that comes from a page of this browser, of at most `LIMIT` bytes.
pub(super) struct Form<const LIMIT: usize = SMALL> {
    fields: Vec<(String, String)>,
    /// Of a large form, as long as its texts are kept.
    _memory: Option<OwnedSemaphorePermit>,
}

impl<const LIMIT: usize> Form<LIMIT> {
    /// The trimmed text of a field; `None` if it is missing or blank.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.raw(name).map(str::trim).filter(|text| !text.is_empty())
    }

    /// The text of a field as it was sent.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The values of a field that may be there several times.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// Whether a checkbox is set.
    pub(super) fn is_checked(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }
}

impl<const LIMIT: usize> FromRequest<ApiState> for Form<LIMIT> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        let (mut parts, body) = request.into_parts();
        let browser = Browser::from_request_parts(&mut parts, state).await?;
        let media_type = media_type(&parts.headers).unwrap_or_default();
        if !media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            let detail = format!("{media_type:?} is not allowed; application/x-www-form-urlencoded");
            return Err(Problem::new(ProblemCode::WrongContentType, detail));
        }
        let memory = match state.api() {
            Some(api) if LIMIT > SMALL => Some(api.body_memory.reserve(&parts.headers, LIMIT)?),
            Some(_) | None => None,
        };
        let body = read_bytes(&parts.headers, body, LIMIT).await?;
        let pairs = || url::form_urlencoded::parse(&body);
        if pairs().nth(MAX_FIELDS).is_some() {
            let detail = format!("a form may have at most {MAX_FIELDS} fields");
            return Err(Problem::new(ProblemCode::TooLarge, detail));
        }
        let fields: Vec<(String, String)> = pairs().into_owned().collect();
        let form = Self { fields, _memory: memory };
        browser.check_form_token(form.raw(TOKEN_FIELD).unwrap_or_default())?;
        Ok(form)
    }
}
