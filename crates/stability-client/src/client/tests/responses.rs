//! Table of the responses that are documented or were observed, with the kind and class of error for each.

use ApiVersion::{V1, V2Beta};

use super::*;
use crate::engine::ApiVersion;

/// The start and end markers of a PNG file.
const COMPLETE_PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xAE\x42\x60\x82";

/// Headers of a response.
#[derive(Default, Clone, Copy)]
struct Headers {
    content_type: Option<&'static str>,
    finish_reason: Option<&'static str>,
    retry_after: Option<u64>,
}

const NO_HEADERS: Headers = Headers { content_type: None, finish_reason: None, retry_after: None };
const JSON: Headers = Headers { content_type: Some("application/json"), ..NO_HEADERS };
const HTML: Headers = Headers { content_type: Some("text/html"), ..NO_HEADERS };
const JSON_RETRY_AFTER: Headers = Headers { retry_after: Some(7), ..JSON };
const PNG: Headers = Headers { content_type: Some("image/png"), finish_reason: Some("SUCCESS"), ..NO_HEADERS };
const PNG_FILTERED: Headers = Headers { finish_reason: Some("CONTENT_FILTERED"), ..PNG };
const PNG_ERROR: Headers = Headers { finish_reason: Some("ERROR"), ..PNG };

/// Describes a response by the kind and class of its error, and the wait that the API specifies, for example
/// `filtered permanent charged` or `server retry after 7s`.
fn describe_outcome(family: ApiVersion, status: u16, headers: Headers, body: &[u8]) -> String {
    let response = HttpResponse {
        status,
        retry_after: headers.retry_after.map(Duration::from_secs),
        content_type: headers.content_type.map(str::to_owned),
        finish_reason: headers.finish_reason.map(str::to_owned),
        seed: Some(7),
        body: body.to_vec().into(),
    };
    match error_for_status(response).and_then(|response| response::decode(family, &response)) {
        Ok(pictures) => format!("{} images", pictures.images.len()),
        Err(error) => {
            let class = error.class();
            assert!(!(class.retryable && class.fatal), "{error:?}");
            let retry_class = match (class.retryable, class.fatal) {
                (true, _) => "retry",
                (false, true) => "fatal",
                (false, false) => "stays",
            };
            let charged = if class.possibly_charged { " charged" } else { "" };
            let wait = error.retry_after().map(|wait| format!(" after {wait:?}")).unwrap_or_default();
            format!("{} {retry_class}{charged}{wait}", error.kind())
        }
    }
}

fn v1_error(name: &str, message: &str) -> String {
    json!({"id": "9160aa70", "name": name, "message": message}).to_string()
}

fn v2beta_error(name: &str, error: &str) -> String {
    json!({"id": "9160aa70", "name": name, "errors": [error]}).to_string()
}

#[test]
fn each_response_has_its_kind_and_class() {
    let mut rows = 0;
    let mut check = |family, status, headers, body: &str, expected: &str| {
        rows += 1;
        assert_eq!(describe_outcome(family, status, headers, body.as_bytes()), expected, "{family:?} {status} {body}");
    };

    // 400: invalid request, content policy, or insufficient credits.
    check(V1, 400, JSON, &v1_error("bad_request", "bad"), "rejected stays");
    check(V1, 400, JSON, &v1_error("invalid_samples", "samples: above 10"), "rejected stays");
    check(V1, 400, JSON, &v1_error("invalid_height_or_width", "x"), "rejected stays");
    check(V1, 400, JSON, &v1_error("invalid_pixel_count", "x"), "rejected stays");
    check(V1, 400, JSON, &v1_error("invalid_sdxl_v1_dimensions", "x"), "rejected stays");
    check(V1, 400, JSON, &v1_error("invalid_prompts", "flagged"), "content_policy stays");
    check(V1, 400, JSON, &v1_error("content_moderation", "flagged"), "content_policy stays");
    check(V1, 400, JSON, r#"{"message": "Content policy violation"}"#, "content_policy stays");
    check(V1, 400, JSON, r#"{"message": "blocked by MODERATION"}"#, "content_policy stays");
    check(V1, 400, JSON, r#"{"message": "the prompt was filtered"}"#, "content_policy stays");
    check(V1, 400, JSON, &v1_error("bad_request", "the word filtered in a named failure"), "rejected stays");
    check(V1, 400, JSON, &v1_error("bad_request", "your balance is too low"), "insufficient_credits fatal");
    check(V1, 400, JSON, &v1_error("insufficient_balance", "x"), "insufficient_credits fatal");
    check(V1, 400, JSON, "", "rejected stays");
    check(V1, 400, HTML, "<html>bad request</html>", "rejected stays");
    check(V2Beta, 400, JSON, &v2beta_error("bad_request", "seed: too big"), "rejected stays");
    check(V2Beta, 400, JSON, &v2beta_error("content_moderation", "flagged"), "content_policy stays");
    check(V2Beta, 400, JSON, r#"{"errors": ["flagged by content policy"]}"#, "content_policy stays");

    // 401 to 404: API key, credits, permissions, engine.
    check(V1, 401, JSON, &v1_error("unauthorized", "missing authorization header"), "unauthorized fatal");
    check(V1, 401, NO_HEADERS, "", "unauthorized fatal");
    check(V2Beta, 401, JSON, &v2beta_error("unauthorized", "x"), "unauthorized fatal");
    check(V1, 402, JSON, &v1_error("payment_required", "x"), "insufficient_credits fatal");
    check(V1, 402, NO_HEADERS, "", "insufficient_credits fatal");
    check(V2Beta, 402, JSON, &v2beta_error("payment_required", "x"), "insufficient_credits fatal");
    check(V1, 403, JSON, &v1_error("permission_denied", "x"), "unauthorized fatal");
    check(V1, 403, JSON, &v1_error("content_moderation", "x"), "content_policy stays");
    check(V1, 403, JSON, r#"{"message": "violates our content policy"}"#, "content_policy stays");
    check(V1, 403, HTML, "<html>forbidden</html>", "unauthorized fatal");
    check(V2Beta, 403, JSON, &v2beta_error("content_moderation", "x"), "content_policy stays");
    check(V2Beta, 403, JSON, &v2beta_error("permission_denied", "x"), "unauthorized fatal");
    check(V1, 404, JSON, &v1_error("not_found", "the specified engine was not found"), "unknown_engine fatal");
    check(V1, 404, HTML, "<html>404</html>", "unknown_engine fatal");
    check(V2Beta, 404, JSON, &v2beta_error("not_found", "x"), "unknown_engine fatal");

    // Other client errors.
    check(V1, 405, NO_HEADERS, "", "rejected stays");
    check(V1, 406, NO_HEADERS, "", "rejected stays");
    check(V1, 413, JSON, &v1_error("payload_too_large", "x"), "rejected stays");
    check(V2Beta, 413, JSON, &v2beta_error("payload_too_large", "x"), "rejected stays");
    check(V1, 415, NO_HEADERS, "", "rejected stays");
    check(V1, 422, JSON, "{}", "rejected stays");
    check(V2Beta, 422, JSON, &v2beta_error("unprocessable_entity", "x"), "rejected stays");

    // 429: rate limit, or insufficient credits.
    check(V1, 429, JSON, &v1_error("rate_limit_exceeded", "150 in 10 s"), "rate_limited retry");
    check(V1, 429, JSON_RETRY_AFTER, &v1_error("rate_limit_exceeded", "150 in 10 s"), "rate_limited retry after 7s");
    check(V1, 429, HTML, "<html>slow down</html>", "rate_limited retry");
    check(V1, 429, JSON, &v1_error("rate_limit", "not enough credits"), "insufficient_credits fatal");
    check(V2Beta, 429, JSON_RETRY_AFTER, &v2beta_error("rate_limit_exceeded", "x"), "rate_limited retry after 7s");
    check(V2Beta, 429, NO_HEADERS, "", "rate_limited retry");

    // 408 and 5xx: the server or a gateway failed.
    check(V1, 408, NO_HEADERS, "", "server retry charged");
    check(V1, 500, JSON, &v1_error("server_error", "x"), "server retry");
    check(V1, 500, JSON, r#"{"error": "Internal server error"}"#, "server retry");
    check(V1, 500, NO_HEADERS, "", "server retry");
    check(V1, 502, HTML, "<html>bad gateway</html>", "server retry");
    check(V1, 503, JSON_RETRY_AFTER, "", "server retry after 7s");
    check(V1, 504, JSON, "[]", "server retry charged");
    check(V1, 529, NO_HEADERS, "overloaded", "server retry");
    check(V2Beta, 500, JSON, &v2beta_error("internal_error", "x"), "server retry");
    check(V2Beta, 503, JSON_RETRY_AFTER, &v2beta_error("unavailable", "x"), "server retry after 7s");

    // Redirects are not followed, so that the API key is not sent elsewhere.
    check(V1, 302, HTML, "<html>moved</html>", "rejected stays");

    // 200 with JSON.
    let good = r#"{"artifacts": [{"base64": "iVBORw0KGgoAAAAASUVORK5CYII=", "seed": 7, "finishReason": "SUCCESS"}]}"#;
    check(V1, 200, JSON, good, "1 images");
    check(V1, 200, JSON, &good.replace("SUCCESS", "CONTENT_FILTERED"), "filtered stays charged");
    check(V1, 200, JSON, &good.replace("SUCCESS", "ERROR"), "unfinished retry charged");
    check(V1, 200, JSON, &good.replace("SUCCESS", "MAYBE"), "undecodable retry charged");
    check(V1, 200, JSON, &good[..good.len() / 2], "undecodable retry charged");
    check(V1, 200, JSON, &good.replace("iVBORw0KGgo", "iVBORw0KGg"), "undecodable retry charged");
    check(V1, 200, JSON, r#"{"artifacts": [{"base64": "aGVsbG8="}]}"#, "damaged retry charged");
    check(V1, 200, JSON, r#"{"artifacts": []}"#, "undecodable retry charged");
    check(V1, 200, JSON, "", "undecodable retry charged");
    check(V1, 200, HTML, "<html>please wait</html>", "undecodable retry charged");
    let good = r#"{"image": "iVBORw0KGgoAAAAASUVORK5CYII=", "seed": 7, "finish_reason": "SUCCESS"}"#;
    check(V2Beta, 200, JSON, good, "1 images");
    check(V2Beta, 200, JSON, &good.replace("SUCCESS", "CONTENT_FILTERED"), "filtered stays charged");
    check(V2Beta, 200, JSON, r#"{"finish_reason": "SUCCESS"}"#, "undecodable retry charged");
    check(V2Beta, 200, JSON, "null", "undecodable retry charged");
    assert!(rows >= 60, "{rows}");

    // 200 with an image file.
    let check = |headers, body: &[u8], expected: &str| {
        for family in [V1, V2Beta] {
            assert_eq!(describe_outcome(family, 200, headers, body), expected, "{family:?}");
        }
    };
    check(PNG, COMPLETE_PNG, "1 images");
    check(PNG_FILTERED, COMPLETE_PNG, "filtered stays charged");
    check(PNG_ERROR, COMPLETE_PNG, "unfinished retry charged");
    check(PNG, &COMPLETE_PNG[..12], "damaged retry charged");
    check(PNG, b"", "undecodable retry charged");
}

proptest::proptest! {
    #[test]
    fn response_handling_never_panics(
        v1: bool, status in 100..600_u16, body in proptest::collection::vec(proptest::num::u8::ANY, 0..2_000),
        image: bool, json: bool,
    ) {
        let headers = if image { PNG } else if json { JSON } else { NO_HEADERS };
        let family = if v1 { V1 } else { V2Beta };
        proptest::prop_assert!(describe_outcome(family, status, headers, &body).len() < 100);
    }
}
