//! The call that estimates a command.

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use domain::command::Command;
use domain::fields;
use uuid::Uuid;

use super::problem::Problem;
use super::request::{NoQuery, read_command};
use super::{Api, json_response};
use crate::estimate::{Estimate, Estimator, Inputs};

/// Estimate a command
///
/// What it would cost and how long it would take. Sends and writes nothing. What is not known is null.
#[utoipa::path(
    post,
    path = "/v1/estimate",
    request_body(content = ref("#/components/schemas/SubmittedCommand"), content_type = "application/json"),
    responses((status = 200, description = "The estimate", body = ref("#/components/schemas/Estimate"), content_type = "application/json")),
    tag = "jobs",
)]
pub(super) async fn estimate(api: Api, _query: NoQuery, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let (body, _memory) = read_command(&api.body_memory, &headers, body).await?;
    let has_id = fields::parse_object(&body).is_ok_and(|object| object.get("job_id").is_some_and(|id| !id.is_null()));
    let parsed = if has_id {
        Command::parse(&body, &api.rules)
    } else {
        Command::parse_with_id(&body, Uuid::now_v7(), &api.rules)
    };
    let command = parsed.map_err(|invalid| Problem::invalid(&invalid.violations))?;
    Ok(json_response(StatusCode::OK, &api.estimate(&command).await?))
}

impl Api {
    /// What a command would cost, and how long it would take.
    pub(crate) async fn estimate(&self, command: &Command) -> Result<Estimate, Problem> {
        let (store, storage) = (self.store.clone(), self.storage.clone());
        let queue = self.health.with_queue(|queue| queue.command_queue());
        let (key, credits) = (self.gate.key(), self.health.credits());
        let inputs = Inputs::of_server(&self.settings, &key, store, storage, queue, credits).await?;
        Ok(Estimator::new(&self.settings, self.pool.clone(), inputs).estimate(command).await)
    }
}
