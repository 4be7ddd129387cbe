//! Every metric: its name, kind, unit, meaning and attributes.

/// What kind of instrument it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// As it is when it is read.
    Gauge,
    /// Values by size; the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spec {
    /// In OpenTelemetry.
    pub(crate) name: &'static str,
    /// What kind of instrument it is.
    pub(crate) kind: Kind,
    /// By the Unified Code for Units of Measure; in braces where it is a count of something.
    pub(crate) unit: &'static str,
    /// What it says.
    pub(crate) description: &'static str,
}

/// Milliseconds for what is ours, seconds and minutes for what is the API's.
const SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0];
/// For a job of one image or of 200.
const JOB_SECONDS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 1_200.0, 1_800.0, 3_600.0, 7_200.0];
const RATE: &[f64] = &[0.0, 0.5, 0.6, 0.7, 0.799, 0.9, 0.95, 0.999, 1.0];

const fn counter(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
) -> Spec {
    Spec { name, kind: Kind::Counter, unit, description }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
) -> Spec {
    Spec { name, kind: Kind::Gauge, unit, description }
}

const fn seconds(
    name: &'static str,
    boundaries: &'static [f64],
    description: &'static str,
) -> Spec {
    Spec { name, kind: Kind::Histogram(boundaries), unit: "s", description }
}

pub(crate) const JOBS: Spec = counter(
    "asset_worker.jobs",
    "{delivery}",
    "Deliveries of commands by what became of them: completed, failed (with its code), repeated (the job had ended before), retried, yielded, interrupted, \
     held, lease_lost, conflict, broken (our own infrastructure failed), panicked"
);
pub(crate) const JOB_DURATION: Spec = seconds(
    "asset_worker.job.duration",
    JOB_SECONDS,
    "From the first claim of a job to its end, waits for another try included"
);
pub(crate) const SUCCESS_RATE: Spec = Spec {
    name: "asset_worker.job.success_rate",
    kind: Kind::Histogram(RATE),
    unit: "1",
    description: "Share of a job's images that were completed, when it ended",
};
pub(crate) const IMAGES: Spec = counter(
    "asset_worker.images",
    "{image}",
    "Ends of images: completed (generated, or from the cache), or failed with a code; one that may pass with time may fail more than once"
);
pub(crate) const STAGE_DURATION: Spec = seconds(
    "asset_worker.stage.duration",
    SECONDS,
    "Parts of a job's way: claim, translate, finish, store, row, decide, publish"
);
pub(crate) const REQUESTS: Spec = counter(
    "asset_worker.api.requests",
    "{request}",
    "Requests for pictures by engine and outcome: ok, or what kind of failure"
);
pub(crate) const RETRIES: Spec =
    counter("asset_worker.api.retries", "{retry}", "Requests that are sent again, by what had failed");
pub(crate) const RATE_LIMITED: Spec = counter(
    "asset_worker.api.rate_limited",
    "{response}",
    "Answers with the status 429: the account is locked out"
);
pub(crate) const QUOTA_WAIT: Spec = seconds(
    "asset_worker.quota.wait.duration",
    SECONDS,
    "What a request waits for its turn among the jobs and for its place in the account's quota, until it has them or gives up"
);
pub(crate) const REQUESTS_IN_FLIGHT: Spec = gauge(
    "asset_worker.api.in_flight",
    "{request}",
    "Requests of this process that have their turn: they wait for the quota, or for an answer"
);
pub(crate) const REQUESTS_LIMIT: Spec =
    gauge("asset_worker.api.in_flight.limit", "{request}", "STABILITY_MAX_CONCURRENT");
pub(crate) const QUOTA_LIMIT: Spec =
    gauge("asset_worker.quota.limit", "{request}/min", "STABILITY_RATE_LIMIT, of all workers together");
pub(crate) const JOBS_IN_FLIGHT: Spec =
    gauge("asset_worker.jobs.in_flight", "{job}", "Commands that this process holds");
pub(crate) const JOBS_LIMIT: Spec = gauge("asset_worker.jobs.limit", "{job}", "WORKER_MAX_IN_FLIGHT_JOBS");
pub(crate) const FINISHER_IN_FLIGHT: Spec =
    gauge("asset_worker.image_pool.in_flight", "{image}", "Pictures that are being finished in this process");
pub(crate) const FINISHER_LIMIT: Spec =
    gauge("asset_worker.image_pool.limit", "{image}", "Pictures that may be finished at once: the processors");
pub(crate) const COST: Spec = counter(
    "asset_worker.cost",
    "USD",
    "What this process's requests cost, by STABILITY_COST_PER_IMAGE_USD: those that had their end and were, or may have been, charged"
);
pub(crate) const BUDGET_SPENT: Spec = gauge(
    "asset_worker.budget.spent",
    "USD",
    "What all workers have spent today (UTC), where WORKER_DAILY_BUDGET_USD is set"
);
pub(crate) const BUDGET_LIMIT: Spec = gauge("asset_worker.budget.limit", "USD", "WORKER_DAILY_BUDGET_USD");
pub(crate) const CREDITS: Spec =
    gauge("asset_worker.account.credits", "{credit}", "Credits of the account, looked up every five minutes");
pub(crate) const QUEUE_MESSAGES: Spec = gauge(
    "asset_worker.queue.messages",
    "{message}",
    "Messages that wait in assets.generate and assets.generate.dead"
);
pub(crate) const QUEUE_CONSUMERS: Spec =
    gauge("asset_worker.queue.consumers", "{consumer}", "Workers that take commands from assets.generate");
pub(crate) const QUEUE_AGE: Spec = gauge(
    "asset_worker.queue.oldest_message.age",
    "s",
    "At most so long waits the oldest command: the time since this worker saw the queue empty, or since the command that it took last was published (urgent \
     ones left out), whichever is shorter; none where neither is known"
);
pub(crate) const LEASE_LOSSES: Spec =
    counter("asset_worker.lease.losses", "{lease}", "Jobs that somebody else claimed while this worker held them");
pub(crate) const DEAD_LETTERS: Spec = counter(
    "asset_worker.dead_letters",
    "{message}",
    "Messages given to the dead letters: invalid_request, job_id_conflict, attempts_exhausted, delivery_limit"
);
pub(crate) const EVENTS: Spec = counter(
    "asset_worker.terminal_events",
    "{event}",
    "Terminal events by what became of them: published, unrouted (no queue is bound for them), failed"
);
pub(crate) const RECONNECTS: Spec =
    counter("asset_worker.broker.reconnects", "{connection}", "Connections to the broker after one that was lost");
pub(crate) const READY: Spec =
    gauge("asset_worker.ready", "", "1 where /readyz says yes, else 0; looked at every five seconds");
pub(crate) const SILENCE: Spec = gauge(
    "asset_worker.heartbeat.age",
    "s",
    "Since the loop that takes commands was heard of; above 120 /livez says no"
);
pub(crate) const BUILD_INFO: Spec = gauge("asset_worker.build.info", "", "1, with the program's version");
pub(crate) const HTTP_DURATION: Spec = seconds(
    "http.client.request.duration",
    SECONDS,
    "Requests to Stability's API for pictures, by OpenTelemetry's convention"
);
pub(crate) const GEN_AI_DURATION: Spec = seconds(
    "gen_ai.client.operation.duration",
    SECONDS,
    "Pictures of Stability's API with all waits and retries, by OpenTelemetry's convention"
);
pub(crate) const PROCESS_DURATION: Spec = seconds(
    "messaging.process.duration",
    JOB_SECONDS,
    "Deliveries of commands, from taking one to the end of the work on it, by OpenTelemetry's convention"
);
