//! All metrics with their name, kind, unit and description.

/// Kind of an instrument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum InstrumentKind {
    /// A sum that only grows.
    Counter,
    /// A value that is read when metrics are collected.
    Gauge,
    /// A distribution, with the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// Definition of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MetricSpec {
    /// The name in OpenTelemetry.
    pub(crate) name: &'static str,
    /// The kind of instrument.
    pub(crate) kind: InstrumentKind,
    /// The unit by the Unified Code for Units of Measure; counts of things are in braces.
    pub(crate) unit: &'static str,
    /// The description, which `docs/telemetry.md` repeats.
    pub(crate) description: &'static str,
}

/// Milliseconds for local work, seconds and minutes for requests to the API.
const SECONDS_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0];
/// For jobs of 1 to 200 images.
const JOB_SECONDS_BUCKETS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 1_200.0, 1_800.0, 3_600.0, 7_200.0];
const RATE_BUCKETS: &[f64] = &[0.0, 0.5, 0.6, 0.7, 0.799, 0.9, 0.95, 0.999, 1.0];

const fn counter(name: &'static str, unit: &'static str, description: &'static str) -> MetricSpec {
    MetricSpec { name, kind: InstrumentKind::Counter, unit, description }
}

const fn gauge(name: &'static str, unit: &'static str, description: &'static str) -> MetricSpec {
    MetricSpec { name, kind: InstrumentKind::Gauge, unit, description }
}

const fn duration_histogram(name: &'static str, boundaries: &'static [f64], description: &'static str) -> MetricSpec {
    MetricSpec { name, kind: InstrumentKind::Histogram(boundaries), unit: "s", description }
}

pub(crate) const JOBS: MetricSpec = counter(
    "asset_worker.jobs",
    "{delivery}",
    "Deliveries of commands, and ends of waiting jobs, by outcome: completed, failed (with the failure code), cancelled, expired, already_ended (the job had ended before), purged (it had ended and was purged), scheduled (the job is due later), retried, preempted (time slice over), gate_closed (the account gate is closed), \
     interrupted (shutdown), leased (another worker holds the lease), lease_lost, conflict (job_id_conflict), error (database or broker failed), panicked",
);
pub(crate) const JOB_DURATION: MetricSpec = duration_histogram(
    "asset_worker.job.duration",
    JOB_SECONDS_BUCKETS,
    "Time from the first claim of a job to its end, including waits between attempts",
);
pub(crate) const SUCCESS_RATE: MetricSpec = MetricSpec {
    name: "asset_worker.job.success_rate",
    kind: InstrumentKind::Histogram(RATE_BUCKETS),
    unit: "1",
    description: "Share of completed images of a job, recorded when the job ends",
};
pub(crate) const IMAGES: MetricSpec = counter(
    "asset_worker.images",
    "{image}",
    "Results of images: completed (generated, or from the cache) or failed (with the failure code); an image with a retryable failure can fail more than once",
);
pub(crate) const STAGE_DURATION: MetricSpec = duration_histogram(
    "asset_worker.stage.duration",
    SECONDS_BUCKETS,
    "Duration of the stages of a job: claim, translate, process, store, record, finalize, publish",
);
pub(crate) const REQUESTS: MetricSpec = counter(
    "asset_worker.api.requests",
    "{request}",
    "Paid requests by engine (fast: the fast upscaler) and outcome: ok, or the kind of failure",
);
pub(crate) const RETRIES: MetricSpec =
    counter("asset_worker.api.retries", "{retry}", "Retries of requests, by the kind of failure that caused them");
pub(crate) const RATE_LIMITED: MetricSpec =
    counter("asset_worker.api.rate_limited", "{response}", "Responses with status 429 (rate limited)");
pub(crate) const QUOTA_WAIT: MetricSpec = duration_histogram(
    "asset_worker.quota.wait.duration",
    SECONDS_BUCKETS,
    "Time that a request waits for its turn among the jobs and for the account's quota, until it gets both or stops waiting",
);
pub(crate) const REQUESTS_IN_FLIGHT: MetricSpec = gauge(
    "asset_worker.api.in_flight",
    "{request}",
    "Requests of this process that have their turn and wait for the quota or for a response",
);
pub(crate) const REQUESTS_LIMIT: MetricSpec = gauge(
    "asset_worker.api.in_flight.limit",
    "{request}",
    "Maximum of asset_worker.api.in_flight: STABILITY_MAX_CONCURRENT",
);
pub(crate) const QUOTA_LIMIT: MetricSpec = gauge(
    "asset_worker.quota.limit",
    "{request}/min",
    "Maximum request rate of all workers together: STABILITY_RATE_LIMIT",
);
pub(crate) const JOBS_IN_FLIGHT: MetricSpec =
    gauge("asset_worker.jobs.in_flight", "{job}", "Commands that this process is handling");
pub(crate) const JOBS_LIMIT: MetricSpec =
    gauge("asset_worker.jobs.limit", "{job}", "Maximum of asset_worker.jobs.in_flight: WORKER_MAX_IN_FLIGHT_JOBS");
pub(crate) const IMAGE_POOL_IN_FLIGHT: MetricSpec = gauge(
    "asset_worker.image_pool.in_flight",
    "{image}",
    "Images that this process is decoding, resizing, encoding or verifying",
);
pub(crate) const IMAGE_POOL_LIMIT: MetricSpec = gauge(
    "asset_worker.image_pool.limit",
    "{image}",
    "Maximum of asset_worker.image_pool.in_flight: the number of processors",
);
pub(crate) const COST: MetricSpec = counter(
    "asset_worker.cost",
    "USD",
    "Cost of the finished requests of this process that were or may have been charged, at the price of their engine, of the upscaler, or STABILITY_COST_PER_IMAGE_USD",
);
pub(crate) const BUDGET_SPENT: MetricSpec = gauge(
    "asset_worker.budget.spent",
    "USD",
    "Spending of all workers today (UTC); only present if WORKER_DAILY_BUDGET_USD is set",
);
pub(crate) const BUDGET_LIMIT: MetricSpec =
    gauge("asset_worker.budget.limit", "USD", "Daily budget of all workers together: WORKER_DAILY_BUDGET_USD");
pub(crate) const CREDITS: MetricSpec =
    gauge("asset_worker.account.credits", "{credit}", "Credits of the account, updated every five minutes");
pub(crate) const QUEUE_MESSAGES: MetricSpec =
    gauge("asset_worker.queue.messages", "{message}", "Messages waiting in assets.generate and assets.generate.dead");
pub(crate) const QUEUE_CONSUMERS: MetricSpec =
    gauge("asset_worker.queue.consumers", "{consumer}", "Workers that consume assets.generate");
pub(crate) const OLDEST_MESSAGE_AGE: MetricSpec = gauge(
    "asset_worker.queue.oldest_message.age",
    "s",
    "Upper bound of the age of the oldest waiting command: the shorter of the time since this worker last saw the queue empty and the time since its last \
     received command was published (urgent commands are ignored); absent if neither is known",
);
pub(crate) const LEASE_LOSSES: MetricSpec = counter(
    "asset_worker.lease.losses",
    "{lease}",
    "Jobs that another worker claimed while this worker was running them",
);
pub(crate) const DEAD_LETTERS: MetricSpec = counter(
    "asset_worker.dead_letters",
    "{message}",
    "Dead-lettered messages by reason: invalid_request, job_id_conflict, attempts_exhausted, delivery_limit, expired, invalid_cancel",
);
pub(crate) const TERMINAL_EVENTS: MetricSpec = counter(
    "asset_worker.terminal_events",
    "{event}",
    "Terminal events by outcome: published, unrouted (no queue is bound for them; linked tasks that no queue receives are counted too), failed (publishing failed)",
);
pub(crate) const RECONNECTS: MetricSpec = counter(
    "asset_worker.broker.reconnects",
    "{connection}",
    "Connections to the broker that replaced a lost connection",
);
pub(crate) const PUBLISHING_BLOCKED: MetricSpec = gauge(
    "asset_worker.broker.publishing_blocked",
    "",
    "1 while RabbitMQ blocks publishing because it is low on memory or disk space, else 0; noticed at the first message that is published meanwhile",
);
pub(crate) const READY: MetricSpec =
    gauge("asset_worker.ready", "", "1 if /readyz answers 200, else 0; updated at least every five seconds");
pub(crate) const DEPENDENCY_AVAILABLE: MetricSpec = gauge(
    "asset_worker.dependency.available",
    "",
    "1 if /readyz finds this dependency available (broker, database, storage), else 0; absent until it is opened or found unavailable for the first time",
);
pub(crate) const UNKNOWN_MIGRATIONS: MetricSpec = gauge(
    "asset_worker.database.unknown_migrations",
    "",
    "Migrations in the database that this version does not know, because a newer version applied them; read at start",
);
pub(crate) const GATE_CLOSED: MetricSpec = gauge(
    "asset_worker.gate.closed",
    "",
    "1 if the account gate is closed for this reason (paused, daily_budget, unauthorized, insufficient_credits), else 0; no command is consumed while it is closed",
);
pub(crate) const HEARTBEAT_AGE: MetricSpec = gauge(
    "asset_worker.heartbeat.age",
    "s",
    "Time since the last heartbeat of the consumer loop; above 120, /livez answers 503",
);
pub(crate) const HTTP_API_READY: MetricSpec = gauge(
    "asset_worker.http_api.ready",
    "",
    "1 if /readyz of `asset-worker serve` answers 200, else 0; only of `serve`",
);
pub(crate) const HTTP_API_STREAMS: MetricSpec =
    gauge("asset_worker.http_api.streams", "{stream}", "Open event streams of the HTTP API; only of `serve`");
pub(crate) const BUILD_INFO: MetricSpec =
    gauge("asset_worker.build.info", "", "Always 1; the attribute is the version of the program");
pub(crate) const HTTP_DURATION: MetricSpec = duration_histogram(
    "http.client.request.duration",
    SECONDS_BUCKETS,
    "Duration of paid requests to Stability's API, by OpenTelemetry's convention",
);
pub(crate) const HTTP_SERVER_DURATION: MetricSpec = duration_histogram(
    "http.server.request.duration",
    SECONDS_BUCKETS,
    "Duration of calls of the HTTP API until their response begins, by OpenTelemetry's convention",
);
pub(crate) const GEN_AI_DURATION: MetricSpec = duration_histogram(
    "gen_ai.client.operation.duration",
    SECONDS_BUCKETS,
    "Duration of generating or upscaling an image by Stability's API, including all waits and retries, by OpenTelemetry's convention",
);
pub(crate) const PROCESS_DURATION: MetricSpec = duration_histogram(
    "messaging.process.duration",
    JOB_SECONDS_BUCKETS,
    "Time from receiving a command to the end of its handling, by OpenTelemetry's convention",
);
