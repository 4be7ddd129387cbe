//! What the API asks of a request, and what it says where that is missing.
//!
//! Source: the public reference of `models.generateContent`, v1beta, and its error bodies.

use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A text with its number, as the translator sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) text: String,
}

/// An error of the API.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) status: &'static str,
    pub(crate) message: String,
    pub(crate) details: Vec<Value>,
}

impl Refusal {
    fn invalid(message: impl Into<String>) -> Self {
        Self { code: 400, status: "INVALID_ARGUMENT", message: message.into(), details: Vec::new() }
    }

    pub(crate) fn of_status(code: u16) -> Self {
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
        let wait = json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.05s"});
        let details = if code == 429 { vec![wait] } else { Vec::new() };
        Self { code, status, message: message.to_owned(), details }
    }
}

impl IntoResponse for Refusal {
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

/// The key must stand in the header and be the account's; in the URL it would stand in every log on the way.
pub(crate) fn check_key(headers: &HeaderMap, query: Option<&str>, key: &str) -> Result<(), Refusal> {
    if query.is_some_and(|query| query.contains("key=")) {
        return Err(Refusal::invalid("The sandbox takes the key in the header x-goog-api-key only."));
    }
    match headers.get("x-goog-api-key").map(|value| value.as_bytes() == key.as_bytes()) {
        Some(true) => Ok(()),
        // The real API answers so, not with a 401.
        Some(false) => Err(Refusal::invalid("API key not valid. Please pass a valid API key.")),
        None => {
            Err(Refusal { message: "Method doesn't allow unregistered callers.".to_owned(), ..Refusal::of_status(403) })
        }
    }
}

/// The numbered texts of a request for translations.
pub(crate) fn texts(body: &Value) -> Result<Vec<Numbered>, Refusal> {
    let known = ["contents", "systemInstruction", "generationConfig", "safetySettings"];
    let object = body.as_object().ok_or_else(|| Refusal::invalid("Invalid JSON payload received."))?;
    if let Some(unknown) = object.keys().find(|key| !known.contains(&key.as_str())) {
        let message = format!("Invalid JSON payload received. Unknown name \"{unknown}\": Cannot find field.");
        return Err(Refusal::invalid(message));
    }
    let config = &body["generationConfig"];
    if config["responseMimeType"] != "application/json" || !is_schema(&config["responseSchema"]) {
        return Err(Refusal::invalid("The sandbox answers with structured output only."));
    }
    let parts = body["contents"][0]["parts"].as_array();
    let text: Option<String> = parts.map(|parts| parts.iter().filter_map(|part| part["text"].as_str()).collect());
    let text = text.filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| Refusal::invalid("* GenerateContentRequest.contents: contents is not specified"))?;
    let numbered: Option<Vec<Numbered>> = serde_json::from_str::<Vec<Value>>(&text).ok().and_then(|items| {
        let item =
            |item: &Value| Some(Numbered { number: item["number"].as_u64()?, text: item["text"].as_str()?.to_owned() });
        items.iter().map(item).collect()
    });
    numbered.ok_or_else(|| Refusal::invalid("The sandbox understands a JSON array of numbers and texts only."))
}

/// The types of a schema are an enumeration in capitals.
fn is_schema(schema: &Value) -> bool {
    const TYPES: [&str; 6] = ["STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT"];
    let known = schema["type"].as_str().is_some_and(|kind| TYPES.contains(&kind));
    let items = schema.get("items").is_none_or(is_schema);
    let properties = schema["properties"].as_object().is_none_or(|properties| properties.values().all(is_schema));
    known && items && properties
}
