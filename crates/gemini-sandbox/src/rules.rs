//! Validates requests by the rules of the API, and builds its errors.
//!
//! Source: the public reference of `models.generateContent`, v1beta, and its error bodies.

use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A text with its number, as the client sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NumberedText {
    pub(crate) number: u64,
    pub(crate) text: String,
}

/// An API error, with the fields of its JSON body.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) code: u16,
    pub(crate) status: &'static str,
    pub(crate) message: String,
    pub(crate) details: Vec<Value>,
}

impl ApiError {
    fn invalid_argument(message: impl Into<String>) -> Self {
        Self { code: 400, status: "INVALID_ARGUMENT", message: message.into(), details: Vec::new() }
    }

    pub(crate) fn from_status(code: u16) -> Self {
        let (status, message) = match code {
            400 => ("INVALID_ARGUMENT", "Request contains an invalid argument."),
            401 => ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
            403 => ("PERMISSION_DENIED", "The caller does not have permission"),
            404 => ("NOT_FOUND", "The model is not found for API version v1beta."),
            429 => {
                ("RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details.")
            }
            503 => ("UNAVAILABLE", "The model is overloaded. Please try again later."),
            504 => ("DEADLINE_EXCEEDED", "The request timed out."),
            _ => ("INTERNAL", "An internal error has occurred. Please retry."),
        };
        let retry_info = json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.05s"});
        let details = if code == 429 { vec![retry_info] } else { Vec::new() };
        Self { code, status, message: message.to_owned(), details }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { code, status, message, details } = self;
        let mut error = json!({"code": code, "message": message, "status": status});
        if !details.is_empty() {
            error["details"] = details.into();
        }
        let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, Json(json!({"error": error}))).into_response()
    }
}

/// Checks the key, which must be in the header: in the URL it would appear in the logs of servers and proxies.
pub(crate) fn check_key(headers: &HeaderMap, query: Option<&str>, key: &str) -> Result<(), ApiError> {
    if query.is_some_and(|query| query.contains("key=")) {
        return Err(ApiError::invalid_argument("The sandbox accepts the key in the header x-goog-api-key only."));
    }
    match headers.get("x-goog-api-key").map(|value| value.as_bytes() == key.as_bytes()) {
        Some(true) => Ok(()),
        // The real API answers with 400 too, not with 401.
        Some(false) => Err(ApiError::invalid_argument("API key not valid. Please pass a valid API key.")),
        None => Err(ApiError {
            message: "Method doesn't allow unregistered callers.".to_owned(),
            ..ApiError::from_status(403)
        }),
    }
}

/// Validates a translation request and returns its numbered texts.
pub(crate) fn parse_texts(body: &Value) -> Result<Vec<NumberedText>, ApiError> {
    let known = ["contents", "systemInstruction", "generationConfig", "safetySettings"];
    let object = body.as_object().ok_or_else(|| ApiError::invalid_argument("Invalid JSON payload received."))?;
    if let Some(unknown) = object.keys().find(|key| !known.contains(&key.as_str())) {
        let message = format!("Invalid JSON payload received. Unknown name \"{unknown}\": Cannot find field.");
        return Err(ApiError::invalid_argument(message));
    }
    let config = &body["generationConfig"];
    if config["responseMimeType"] != "application/json" || !is_valid_schema(&config["responseSchema"]) {
        return Err(ApiError::invalid_argument("The sandbox supports structured output only."));
    }
    let parts = body["contents"][0]["parts"].as_array();
    let text: Option<String> = parts.map(|parts| parts.iter().filter_map(|part| part["text"].as_str()).collect());
    let text = text.filter(|text| !text.is_empty());
    let text =
        text.ok_or_else(|| ApiError::invalid_argument("* GenerateContentRequest.contents: contents is not specified"))?;
    let numbered: Option<Vec<NumberedText>> = serde_json::from_str::<Vec<Value>>(&text).ok().and_then(|items| {
        let item = |item: &Value| {
            Some(NumberedText { number: item["number"].as_u64()?, text: item["text"].as_str()?.to_owned() })
        };
        items.iter().map(item).collect()
    });
    numbered.ok_or_else(|| ApiError::invalid_argument("The sandbox accepts a JSON array of numbers and texts only."))
}

/// Whether all types in the schema are the API's type names, which are upper case.
fn is_valid_schema(schema: &Value) -> bool {
    const TYPES: [&str; 6] = ["STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT"];
    let known = schema["type"].as_str().is_some_and(|kind| TYPES.contains(&kind));
    let items = schema.get("items").is_none_or(is_valid_schema);
    let properties = schema["properties"].as_object().is_none_or(|properties| properties.values().all(is_valid_schema));
    known && items && properties
}
