//! Calls for the account: its state, pause and resume.

use axum::Extension;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use domain::rules::MAX_REASON_CHARS;
use schemars::JsonSchema;
use serde::Serialize;

use super::access::Caller;
use super::problem::Problem;
use super::request::{NoQuery, read_fields};
use super::{Api, json_response};
use crate::estimate::Budget;
use crate::gate::GateReason;
use crate::health::QueueCounts;

/// The account and what waits for it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Account {
    pub(crate) gate: Gate,
    pub(crate) quota: Quota,
    pub(crate) budget: Budget,
    /// The credits of the account, as last read; null if they are not known.
    pub(crate) credits: Option<f64>,
    /// Null while the broker is not connected.
    pub(crate) queues: Option<QueueCounts>,
}

/// The account gate.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Gate {
    /// Whether workers take commands.
    pub(crate) is_open: bool,
    /// Why it is closed.
    pub(crate) reasons: Vec<ClosedReason>,
}

/// Why the account gate is closed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ClosedReason {
    #[schemars(extend("enum" = GateReason::NAMES))]
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// The quota for requests to the API, of all workers together.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Quota {
    pub(crate) requests_per_minute: u32,
    /// Seconds until requests are sent again after a refusal; 0 if they are sent now.
    pub(crate) pause_seconds: f64,
}

/// The workers are paused, or not.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PauseState {
    /// Whether the workers are paused now.
    paused: bool,
    /// Whether they were before the call.
    was_paused: bool,
}

/// Show the account
///
/// Gate, quota, budget, credits and queue lengths. What is not known is null.
#[utoipa::path(
    get,
    path = "/v1/account",
    responses((status = 200, description = "The account", body = ref("#/components/schemas/Account"), content_type = "application/json")),
    tag = "account",
)]
pub(super) async fn show_account(api: Api, _query: NoQuery) -> Result<Response, Problem> {
    Ok(json_response(StatusCode::OK, &api.read_account().await?))
}

impl Api {
    /// The account and what waits for it.
    pub(crate) async fn read_account(&self) -> Result<Account, Problem> {
        let (reasons, budget) = self.read_gate_and_budget().await?;
        let reasons: Vec<_> =
            reasons.iter().map(|reason| ClosedReason { code: reason.name(), message: reason.to_string() }).collect();
        let pause = self.store.read_remaining_pause().await?;
        let quota =
            Quota { requests_per_minute: self.settings.stability.rate_limit.get(), pause_seconds: pause.as_secs_f64() };
        Ok(Account {
            gate: Gate { is_open: reasons.is_empty(), reasons },
            quota,
            budget,
            credits: self.health.credits(),
            queues: self.health.with_queue(|queue| queue.counts()),
        })
    }

    /// Pauses the workers. Returns whether they were paused before.
    pub(crate) async fn pause(&self, caller: Caller, reason: Option<&str>) -> Result<bool, Problem> {
        self.record(caller, "pause", None, reason.map(str::to_owned)).await?;
        let was_paused = self.store.read_pause().await?.is_some();
        self.store.pause(reason).await?;
        Ok(was_paused)
    }

    /// Ends the pause of the workers. Returns whether they were paused before.
    pub(crate) async fn resume(&self, caller: Caller) -> Result<bool, Problem> {
        self.record(caller, "resume", None, None).await?;
        Ok(self.store.resume().await?)
    }
}

/// Pause the workers
///
/// Within five seconds no worker takes commands or pays for images; requests in flight finish.
#[utoipa::path(
    post,
    path = "/v1/account/pause",
    request_body(content = ref("#/components/schemas/PauseBody"), content_type = "application/json"),
    responses((status = 200, description = "The workers are paused", body = ref("#/components/schemas/PauseState"), content_type = "application/json")),
    tag = "account",
)]
pub(super) async fn pause(
    api: Api,
    Extension(caller): Extension<Caller>,
    _query: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let reason = read_fields(&headers, body, |fields| fields.text("reason", 0..=MAX_REASON_CHARS)).await?;
    let reason = reason.filter(|reason| !reason.is_empty());
    let was_paused = api.pause(caller, reason.as_deref()).await?;
    Ok(json_response(StatusCode::OK, &PauseState { paused: true, was_paused }))
}

/// End the pause of the workers
#[utoipa::path(
    post,
    path = "/v1/account/resume",
    responses((status = 200, description = "The workers are not paused", body = ref("#/components/schemas/PauseState"), content_type = "application/json")),
    tag = "account",
)]
pub(super) async fn resume(
    api: Api,
    Extension(caller): Extension<Caller>,
    _query: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    read_fields(&headers, body, |_| ()).await?;
    let was_paused = api.resume(caller).await?;
    Ok(json_response(StatusCode::OK, &PauseState { paused: false, was_paused }))
}

/// Adds the schemas of this module.
pub(super) fn schema(generator: &mut schemars::SchemaGenerator) {
    generator.subschema_for::<Account>();
    generator.subschema_for::<PauseState>();
}
