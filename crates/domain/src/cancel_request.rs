//! The request to cancel a job, and how it is parsed from a message body.

use schemars::JsonSchema;
use uuid::Uuid;

use crate::fields::{self, Fields, truncate_violations};
use crate::rules::MAX_REASON_CHARS;
use crate::schema::value;

/// A request to cancel a job, known or not.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CancelRequest {
    /// The job.
    #[schemars(schema_with = "value::uuid")]
    pub job_id: Uuid,
    /// Why it is cancelled, as a person or program has put it.
    #[schemars(default, schema_with = "value::reason")]
    pub reason: Option<String>,
}

/// A message body that is not a valid request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid_cancel: {}", .violations.join("; "))]
pub struct InvalidCancel {
    /// One sentence for each violation: field, value, allowed values. Never empty.
    pub violations: Vec<String>,
}

impl CancelRequest {
    /// Parses a request from the body of a message.
    ///
    /// # Errors
    ///
    /// [`InvalidCancel`] names each key that is missing, unknown or out of range.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidCancel> {
        Self::parse_body(body, None)
    }

    /// Parses a request for a job whose id is known: in the body it may be absent, or must be equal.
    ///
    /// # Errors
    ///
    /// As [`CancelRequest::parse`].
    pub fn parse_with_id(body: &[u8], job_id: Uuid) -> Result<Self, InvalidCancel> {
        Self::parse_body(body, Some(job_id))
    }

    fn parse_body(body: &[u8], known_id: Option<Uuid>) -> Result<Self, InvalidCancel> {
        let object = fields::parse_object(body).map_err(|violation| InvalidCancel { violations: vec![violation] })?;
        let mut fields = Fields::new(object);
        let job_id = fields::job_id(&mut fields, known_id);
        let reason = fields.text("reason", 0..=MAX_REASON_CHARS).filter(|reason| !reason.is_empty());
        let violations = fields.into_violations();
        match job_id {
            Some(job_id) if violations.is_empty() => Ok(Self { job_id, reason }),
            _ => Err(InvalidCancel { violations: truncate_violations(violations) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<CancelRequest, String> {
        CancelRequest::parse(body.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn request_names_a_job_and_optionally_a_reason() {
        let job_id = Uuid::from_u128(7);
        assert_eq!(parse(&format!(r#"{{"job_id": "{job_id}"}}"#)), Ok(CancelRequest { job_id, reason: None }));
        let reason = Some("wrong style".to_owned());
        assert_eq!(
            parse(&format!(r#"{{"job_id": "{job_id}", "reason": " wrong style "}}"#)),
            Ok(CancelRequest { job_id, reason })
        );
    }

    #[test]
    fn invalid_request_names_the_field() {
        let check = |body: &str, expected: &str| assert_eq!(parse(body), Err(format!("invalid_cancel: {expected}")));
        check("no", "body: not JSON in UTF-8 (expected ident at line 1 column 2)");
        check("[]", "body: a list of 0 is not allowed; a JSON object");
        check("{}", "job_id: missing; a UUID");
        check(r#"{"job_id": "7"}"#, "job_id: \"7\" is not allowed; a UUID");
        let id = Uuid::nil();
        let long = "x".repeat(201);
        check(
            &format!(r#"{{"job_id": "{id}", "reason": "{long}"}}"#),
            "reason: 201 characters is not allowed; a text of 0 to 200 characters after trimming",
        );
        check(&format!(r#"{{"job_id": "{id}", "why": "x"}}"#), "why: unknown key; allowed: job_id, reason");
    }
}
