//! The HTTP API of `asset-worker serve`.
//!
//! Each call checks access, reads its parameters, and calls what the command line and the worker call too.

pub(crate) mod access;
pub(crate) mod account;
mod attempts;
mod copies;
pub(crate) mod dead_letters;
mod estimate;
mod event_feed;
mod events;
pub(crate) mod images;
mod job_changes;
pub(crate) mod jobs;
mod openapi;
pub(crate) mod problem;
pub(crate) mod request;
pub(crate) mod role;
pub(crate) mod session;
mod styles;

use std::convert::Infallible;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use broker::{ConnectionLost, DeadLetterQueue, EventWatcher, Publisher};
use domain::rules::Rules;
use serde::Serialize;
use store::{AuditEntry, Store, StoreError};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::cors::CorsLayer;
use uuid::Uuid;

use crate::activity::ActivityMonitor;
use crate::bootstrap;
use crate::cost_policy::CostPolicy;
use crate::estimate::Budget;
use crate::gate::{self, AccountGate, GateReason};
use crate::health::Health;
use crate::http_server::{HttpLimits, PeerAddr};
use crate::image_pool::ImagePool;
use crate::job::JobRunner;
use crate::settings::Settings;
use crate::storage::Storage;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::names;
use access::{Access, Caller, Target};
use copies::ImageCopies;
use event_feed::EventFeed;
use problem::{Problem, ProblemCode};
use request::BodyMemory;

/// The bounds of the server. Connections of event streams count too.
pub(crate) const LIMITS: HttpLimits = HttpLimits {
    max_connections: 512,
    head_timeout: Duration::from_secs(10),
    write_timeout: Duration::from_secs(30),
    lifetime: None,
    keep_alive: true,
    grace: Duration::from_secs(10),
};
/// Maximum number of calls that are worked on.
const MAX_CALLS: usize = 64;
/// Maximum number of logins that are worked on: strangers take no place from other calls.
const MAX_LOGINS: usize = 8;
/// Maximum number of event streams.
const MAX_STREAMS: usize = 100;
/// Time for tasks of answered calls when the server is stopped.
const TASK_GRACE: Duration = Duration::from_secs(2);
/// Maximum duration of a call, until its response begins.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// The current connection to the broker, if there is one.
#[derive(Default)]
pub(crate) struct BrokerLink(RwLock<Option<(Publisher, DeadLetterQueue)>>);

impl BrokerLink {
    pub(crate) fn set(&self, connection: Option<(Publisher, DeadLetterQueue)>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// `None` while the broker is not connected.
    fn get(&self) -> Option<(Publisher, DeadLetterQueue)> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the calls need. Clones share it.
#[derive(Clone)]
pub(crate) struct Api(Arc<Resources>);

pub(crate) struct Resources {
    pub(crate) settings: Settings,
    pub(crate) rules: Rules,
    pub(crate) store: Store,
    pub(crate) storage: Storage,
    /// Knows the API key in use, which its file may replace.
    pub(crate) gate: AccountGate,
    pool: ImagePool,
    copies: ImageCopies,
    broker: BrokerLink,
    feed: EventFeed,
    pub(crate) health: Health,
    /// One call at a time reads dead letters.
    dead_letter_turn: Mutex<()>,
    streams: Arc<Semaphore>,
    pub(crate) body_memory: BodyMemory,
    pub(crate) activity: ActivityMonitor,
    /// What goes on after its call has been answered.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Deref for Api {
    type Target = Resources;

    fn deref(&self) -> &Resources {
        &self.0
    }
}

impl Api {
    pub(crate) async fn new(
        settings: &Settings,
        runner: &JobRunner,
        storage: Storage,
        health: Health,
        stop: CancellationToken,
    ) -> Self {
        let (store, gate, pool) = (runner.store().clone(), runner.gate().clone(), runner.image_pool().clone());
        let copies = ImageCopies::open(pool.clone(), &settings.api.cache_dir, settings.api.cache_bytes).await;
        Self(Arc::new(Resources {
            settings: settings.clone(),
            rules: bootstrap::rules(),
            store,
            storage,
            gate,
            pool,
            copies,
            broker: BrokerLink::default(),
            feed: EventFeed::default(),
            health,
            dead_letter_turn: Mutex::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            body_memory: BodyMemory::default(),
            activity: ActivityMonitor::default(),
            tasks: TaskTracker::new(),
            stop,
        }))
    }

    pub(crate) fn register_gauges(&self, metrics: &Metrics) {
        let streams = self.streams.clone();
        metrics.register_gauge(&names::HTTP_API_STREAMS, &[], move || {
            let open = MAX_STREAMS.saturating_sub(streams.available_permits());
            Some(f64::from(u32::try_from(open).unwrap_or(u32::MAX)))
        });
    }

    pub(crate) fn broker(&self) -> &BrokerLink {
        &self.broker
    }

    /// Waits until what goes on after its call has ended, for a short time.
    pub(crate) async fn finish_tasks(&self) {
        self.tasks.close();
        // A command that was not published is published by a sweep.
        let _ = timeout(TASK_GRACE, self.tasks.wait()).await;
    }

    /// Passes events on to the streams until the connection is lost.
    pub(crate) async fn feed_events(&self, events: EventWatcher) -> ConnectionLost {
        self.feed.run(events).await
    }

    /// Measures the rate of requests; never returns.
    pub(crate) async fn measure_request_rate(&self) -> Infallible {
        self.activity.sample_requests(&self.store).await
    }

    /// Tells the streams of jobs that have ended, also while the broker is not connected; never returns.
    pub(crate) async fn poll_ended_jobs(&self) -> Infallible {
        self.feed.poll_ends(&self.store).await
    }

    /// Records that a caller asks for a change. Called before the change, so that none is missing.
    pub(crate) async fn record(
        &self,
        caller: Caller,
        action: &str,
        job_id: Option<Uuid>,
        detail: Option<String>,
    ) -> Result<(), StoreError> {
        let (role, address) = (caller.role.as_str().to_owned(), caller.address.to_string());
        self.store.record_audit(AuditEntry { role, address, action: action.to_owned(), job_id, detail }).await
    }

    /// Why the account gate is closed, and what is left of the daily budget.
    async fn read_gate_and_budget(&self) -> Result<(Vec<GateReason>, Budget), StoreError> {
        let key = self.gate.key();
        let reasons = gate::read_reasons(&self.store, CostPolicy::new(&self.settings), Some(&key)).await?;
        Ok((reasons, Budget::read(&self.settings, &self.store).await?))
    }
}

/// Which calls have their own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// Of those who have not presented a token yet.
    Login,
    Other,
}

/// The state of the routes: the API, once the database and the storage are open.
#[derive(Clone)]
pub(crate) struct ApiState(Arc<Shared>);

struct Shared {
    api: OnceLock<Api>,
    access: Access,
    calls: Semaphore,
    logins: Semaphore,
    metrics: Metrics,
}

impl ApiState {
    pub(crate) fn new(settings: &Settings, metrics: &Metrics) -> Self {
        let (calls, logins) = (Semaphore::new(MAX_CALLS), Semaphore::new(MAX_LOGINS));
        let access = Access::new(&settings.api);
        Self(Arc::new(Shared { api: OnceLock::new(), access, calls, logins, metrics: metrics.clone() }))
    }

    /// Opens the API: before, each call is answered with 503.
    pub(crate) fn open(&self, api: Api) {
        // Called once, when the database and the storage are open.
        let _ = self.0.api.set(api);
    }

    /// Whether calls need a token.
    pub(crate) fn requires_token(&self) -> bool {
        self.0.access.requires_token()
    }

    /// The API, once it is open.
    pub(crate) fn api(&self) -> Option<&Api> {
        self.0.api.get()
    }

    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    /// Admits a request if the server has time for it and the caller may make it, who is then an extension of it.
    pub(crate) async fn admit(&self, mut request: Request, next: Next, target: Target) -> Response {
        let is_change = !request.method().is_safe() && route_of(&request).as_deref() != Some(ESTIMATE_PATH);
        self.measure(CallKind::Other, request.method().clone(), route_of(&request), async {
            let caller = self.0.access.check(request.headers(), peer_of(&request)?, target, is_change)?;
            request.extensions_mut().insert(caller);
            Ok(next.run(request).await)
        })
        .await
    }

    /// Runs a call if the server has time for it, within its time limit, and records it in the metrics.
    pub(crate) async fn measure(
        &self,
        kind: CallKind,
        method: Method,
        route: Option<String>,
        call: impl Future<Output = Result<Response, Problem>>,
    ) -> Response {
        let started_at = Instant::now();
        let call = async {
            let busy = |_| Problem::new(ProblemCode::Busy, "too many calls are in progress").retry_after(1);
            let permits = match kind {
                CallKind::Login => &self.0.logins,
                CallKind::Other => &self.0.calls,
            };
            let _permit = permits.try_acquire().map_err(busy)?;
            let late = |_| Err(Problem::unavailable("the call took too long; try again"));
            timeout(CALL_TIMEOUT, call).await.unwrap_or_else(late)
        };
        let response = call.await.unwrap_or_else(IntoResponse::into_response);
        self.0.metrics.record_http_call(&method, route.as_deref(), response.status(), started_at.elapsed());
        response
    }
}

/// The route of a request, with the names of its parameters.
pub(crate) fn route_of(request: &Request) -> Option<String> {
    request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned())
}

/// The address of the client, or of the proxy before it.
pub(crate) fn peer_of(request: &Request) -> Result<IpAddr, Problem> {
    let peer = request.extensions().get::<PeerAddr>().map(|PeerAddr(peer)| peer.ip());
    peer.ok_or_else(|| Problem::new(ProblemCode::Forbidden, "the address of the client is not known"))
}

impl FromRequestParts<ApiState> for Api {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let starting = || Problem::unavailable("the program is starting: the database or the storage is not open yet");
        state.0.api.get().cloned().ok_or_else(starting)
    }
}

/// The routes of the API.
pub(crate) fn router(state: ApiState, settings: &Settings) -> Router {
    let calls = Router::new()
        .route("/openapi.json", get(openapi::document))
        .route("/v1/jobs", get(jobs::list_jobs))
        .route("/v1/jobs/{job_id}", get(jobs::show_job).put(jobs::put_job))
        .route("/v1/jobs/{job_id}/events", get(events::watch_job))
        .route("/v1/jobs/{job_id}/cancel", post(job_changes::cancel_job))
        .route("/v1/jobs/{job_id}/retry", post(job_changes::retry_job))
        .route("/v1/jobs/{job_id}/redo", post(job_changes::redo_image))
        .route("/v1/jobs/{job_id}/images/{index}", get(images::get_image))
        .route(ESTIMATE_PATH, post(estimate::estimate))
        .route("/v1/account", get(account::show_account))
        .route("/v1/account/pause", post(account::pause))
        .route("/v1/account/resume", post(account::resume))
        .route("/v1/dead-letters", get(dead_letters::list))
        .route("/v1/dead-letters/{id}/replay", post(dead_letters::replay))
        .route("/v1/dead-letters/{id}", delete(dead_letters::discard))
        .method_not_allowed_fallback(async || {
            Problem::new(ProblemCode::MethodNotAllowed, "the path has no such method")
        })
        .fallback(async || Problem::unknown_path())
        .layer(from_fn_with_state(state.clone(), admit))
        .with_state(state);
    match cors(&settings.api.cors_origins) {
        Some(cors) => calls.layer(cors),
        None => calls,
    }
}

/// The only call that changes nothing although its method is not a safe one.
const ESTIMATE_PATH: &str = "/v1/estimate";

/// Admits a call if the server has time for it and the caller may make it.
async fn admit(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    state.admit(request, next, Target::Api).await
}

/// Cross-origin calls are allowed only from the configured origins.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::PUT, Method::POST, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_NONE_MATCH,
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("traceparent"),
            HeaderName::from_static("tracestate"),
        ])
        .expose_headers([header::ETAG, header::RETRY_AFTER]);
    Some(layer)
}

/// A response with a JSON body.
fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_string(body).expect("a response serialises");
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}
