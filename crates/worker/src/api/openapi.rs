//! The OpenAPI document, made from the calls and the types of their bodies.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use domain::schema;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use store::JobReport;
use utoipa::OpenApi;

use super::problem::{self, Problem};
use super::request::NoQuery;
use super::{ApiState, account, dead_letters, estimate, events, images, job_changes, jobs, json_response};
use crate::bootstrap;
use crate::estimate::Estimate;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Asset worker",
        description = "Submit jobs, watch them, get their images. Errors are problem details by RFC 9457.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        jobs::list_jobs,
        jobs::show_job,
        jobs::put_job,
        events::watch_job,
        job_changes::cancel_job,
        job_changes::retry_job,
        job_changes::redo_image,
        images::get_image,
        estimate::estimate,
        account::show_account,
        account::pause,
        account::resume,
        dead_letters::list,
        dead_letters::replay,
        dead_letters::discard,
        document,
    )
)]
struct Calls;

/// Get this document
#[utoipa::path(
    get,
    path = "/openapi.json",
    responses((status = 200, description = "This document", content_type = "application/json")),
    tag = "document",
)]
pub(super) async fn document(State(state): State<ApiState>, _query: NoQuery) -> Response {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(build);
    if state.requires_token() {
        return json_response(StatusCode::OK, &*DOCUMENT);
    }
    let mut document = DOCUMENT.clone();
    document["security"] = json!([]);
    json_response(StatusCode::OK, &document)
}

/// Problems that every call may have, with their descriptions.
const COMMON_PROBLEMS: [(&str, &str); 8] = [
    ("401", "The call has no valid token"),
    ("403", "The token, or the origin of the page, does not allow the call"),
    ("404", "There is no such path"),
    ("408", "The body did not arrive in time"),
    ("413", "The body is too large"),
    ("422", "A field is not allowed"),
    ("429", "Too many wrong tokens came from the address"),
    ("503", "The program is busy, or a service cannot be reached"),
];

fn build() -> Value {
    let mut document = serde_json::to_value(Calls::openapi()).expect("the document serialises");
    document["components"] = json!({
        "schemas": schemas(),
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    });
    document["security"] = json!([{"token": []}]);
    for operations in document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        for operation in operations.as_object_mut().into_iter().flat_map(Map::values_mut) {
            add_common_problems(operation);
        }
    }
    let image = &mut document["paths"]["/v1/jobs/{job_id}/images/{index}"]["get"]["responses"]["200"]["content"];
    *image = json!({"image/png": {}, "image/jpeg": {}, "image/webp": {}});
    // The bodies of these calls may be left out.
    for path in ["/v1/jobs/{job_id}/cancel", "/v1/jobs/{job_id}/retry", "/v1/account/pause"] {
        document["paths"][path]["post"]["requestBody"]["required"] = json!(false);
    }
    for (path, method) in [("/v1/jobs/{job_id}", "put"), ("/v1/jobs/{job_id}/redo", "post"), ("/v1/estimate", "post")] {
        document["paths"][path][method]["requestBody"]["required"] = json!(true);
    }
    document
}

fn add_common_problems(operation: &mut Value) {
    let content = json!({problem::CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}});
    let has_body = operation.get("requestBody").is_some();
    let body_problems = has_body.then_some(("415", "The body is not JSON by its content type"));
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, description) in COMMON_PROBLEMS.into_iter().chain(body_problems) {
        responses.entry(status).or_insert_with(|| json!({"description": description, "content": content}));
    }
}

fn schemas() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let settings = settings.with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    add_types(&mut generator);
    let mut schemas = generator.take_definitions(true);
    let mut add = |name: &str, schema: Schema| {
        let mut schema = schema.to_value();
        if let Some(schema) = schema.as_object_mut() {
            schema.remove("$schema");
        }
        schemas.insert(name.to_owned(), schema);
    };
    add("SubmittedCommand", without_required_job_id(schema::command(&bootstrap::rules())));
    add("CancelBody", without_required_job_id(schema::cancel()));
    let reason = schema::cancel().pointer("/properties/reason").cloned().unwrap_or_default();
    add("PauseBody", body(json!({"reason": reason}), &[]));
    add("RetryBody", body(json!({"include_refused": {"type": ["boolean", "null"]}}), &[]));
    let image = json!({"type": "integer", "minimum": 1, "maximum": u32::MAX});
    let seed = json!({"type": ["integer", "null"], "minimum": 1, "maximum": u32::MAX});
    add("RedoBody", body(json!({"image": image, "seed": seed}), &["image"]));
    schemas
}

fn add_types(generator: &mut SchemaGenerator) {
    generator.subschema_for::<Problem>();
    generator.subschema_for::<JobReport>();
    generator.subschema_for::<jobs::SubmittedJob>();
    generator.subschema_for::<jobs::JobPage>();
    generator.subschema_for::<job_changes::CancelledJob>();
    generator.subschema_for::<job_changes::RetriedJob>();
    generator.subschema_for::<dead_letters::DeadLetterList>();
    generator.subschema_for::<Estimate>();
    account::schema(generator);
}

/// In these calls the id comes from the path, or is made for the call.
fn without_required_job_id(mut schema: Schema) -> Schema {
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|key| key != "job_id");
    }
    if let Some(job_id) = schema.pointer_mut("/properties/job_id") {
        job_id["type"] = json!(["string", "null"]);
    }
    schema
}

fn body(properties: Value, required: &[&str]) -> Schema {
    let mut schema = Schema::default();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), properties);
    schema.insert("required".to_owned(), json!(required));
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}
