//! The request to cancel a job, and how it is parsed from a message body.

use schemars::JsonSchema;
use serde_json::Value;
use uuid::Uuid;

use crate::fields::{Fields, truncate_violations};
use crate::rules::MAX_BODY_BYTES;
use crate::schema::value;
use crate::strict_json;

/// The most characters of a reason.
pub const MAX_REASON_CHARS: usize = 200;

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
#[error("invalid_cancel: {0}")]
pub struct InvalidCancel(String);

impl CancelRequest {
    /// Parses a request from the body of a message.
    ///
    /// # Errors
    ///
    /// [`InvalidCancel`] names each key that is missing, unknown or out of range.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidCancel> {
        if body.len() > MAX_BODY_BYTES {
            return Err(InvalidCancel(format!(
                "body: {} bytes is not allowed; at most {MAX_BODY_BYTES} bytes",
                body.len()
            )));
        }
        let Ok(Value::Object(object)) = strict_json::parse(body) else {
            return Err(InvalidCancel("body: not a JSON object in UTF-8".to_owned()));
        };
        let mut fields = Fields::new(object);
        let job_id =
            fields.required("job_id", "a UUID", |value| value.as_str().and_then(|text| Uuid::try_parse(text).ok()));
        let reason = fields.text("reason", 0..=MAX_REASON_CHARS).filter(|reason| !reason.is_empty());
        let violations = fields.into_violations();
        match job_id {
            Some(job_id) if violations.is_empty() => Ok(Self { job_id, reason }),
            _ => Err(InvalidCancel(truncate_violations(violations).join("; "))),
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
        check("no", "body: not a JSON object in UTF-8");
        check("[]", "body: not a JSON object in UTF-8");
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
