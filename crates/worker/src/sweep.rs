//! The sweep: ends cancelled and expired jobs that no worker holds, and publishes their terminal events.
//!
//! One worker sweeps at a time. Jobs that were only waiting end in batches; one whose worker was lost is taken over.

use std::convert::Infallible;
use std::time::Duration;

use broker::{PublishOutcome, Publisher};
use domain::event::{Event, EventContext, Totals};
use domain::job_over::JobOver;
use domain::outcome::Tally;
use store::{DueJob, EndedJob, StoreError, UnpublishedEvent};
use time::OffsetDateTime;
use tokio::time::sleep;
use tracing::{info, warn};
use uuid::Uuid;

use crate::error_chain::error_chain;
use crate::event_sink::PublishError;
use crate::failpoint;
use crate::job::{JobRunError, JobRunner};
use crate::telemetry::metrics::ErrorCode;

/// A waiting job that is cancelled ends within this time and that of a batch.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a worker has the turn to sweep. If it is lost, another one sweeps after this time.
const TURN: Duration = Duration::from_secs(4);
/// The most jobs of one batch.
const BATCH: u64 = 200;
/// How long the cancellation of a job that is not known is remembered, in days.
const REMEMBERED_DAYS: i64 = 30;

/// A failure of the worker's own infrastructure during a sweep.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Job(#[from] JobRunError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl ErrorCode for SweepError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Job(error) => error.code(),
            Self::Publish(error) => error.code(),
        }
    }
}

/// Sweeps periodically, while this worker has the turn; never returns.
pub(crate) async fn sweep(runner: JobRunner, publisher: Publisher) -> Infallible {
    let holder = Uuid::now_v7();
    loop {
        sleep(INTERVAL).await;
        if let Err(error) = sweep_once(&runner, &publisher, holder).await {
            let (code, error) = (error.code(), error_chain(&error));
            warn!(code, error, "sweep of cancelled and expired jobs failed; retrying");
        }
    }
}

async fn sweep_once(runner: &JobRunner, publisher: &Publisher, holder: Uuid) -> Result<(), SweepError> {
    let store = runner.store();
    loop {
        if !store.take_sweep_turn(holder, TURN).await? {
            return Ok(());
        }
        let due = store.read_due_jobs(BATCH).await?;
        let (lost, waiting): (Vec<_>, Vec<_>) = due.iter().partition(|job| job.needs_claim);
        let mut ended = 0;
        if !waiting.is_empty() {
            let endings: Vec<_> = waiting.into_iter().map(end).collect();
            failpoint::reach("before_sweep").await;
            ended = store.end_waiting_jobs(&endings).await?;
            for ending in &endings {
                runner.metrics().record_swept_job(ending.error.as_ref().map(|error| error.code));
            }
        }
        for job in lost {
            runner.end_due_job(&job.command, publisher).await?;
            ended += 1;
        }
        if ended > 0 {
            info!(ended, "cancelled or expired jobs ended");
        }
        let events = store.read_due_events(BATCH).await?;
        if !events.is_empty() {
            publish(runner, publisher, &events).await?;
        }
        if due.is_empty() && events.is_empty() {
            store.forget_cancellations(REMEMBERED_DAYS).await?;
            return Ok(());
        }
    }
}

/// The end of a job that was waiting.
fn end(job: &DueJob) -> EndedJob<'_> {
    let now = OffsetDateTime::now_utc();
    let DueJob { command, over, origin, cost_usd, created_at, trace, images, .. } = job;
    let reaches = Tally::from_images(images).reaches(command.config.min_success_rate());
    let error = JobOver::error(over, reaches);
    let duration_ms = u64::try_from((now - *created_at).whole_milliseconds()).unwrap_or_default();
    let context = EventContext { key: command.key(), trace: trace.clone(), time: now };
    let totals = Totals { cost_usd: *cost_usd, duration_ms };
    let event = Event::terminal(&context, images, origin.as_ref(), totals, error.as_ref());
    EndedJob { job, error, event }
}

/// Publishes events that are due, and records which of them a queue has received.
async fn publish(runner: &JobRunner, publisher: &Publisher, due: &[UnpublishedEvent]) -> Result<(), SweepError> {
    let events: Vec<&Event> = due.iter().map(|due| &due.event).collect();
    failpoint::reach("before_swept_events").await;
    let outcomes = publisher.publish_terminal_events(&events).await.map_err(|error| PublishError(error.to_string()))?;
    failpoint::reach("after_swept_events").await;
    let (mut received, mut kept) = (Vec::new(), Vec::new());
    for (UnpublishedEvent { job_id, event, .. }, outcome) in due.iter().zip(outcomes) {
        match outcome {
            PublishOutcome::Routed => {
                runner.metrics().record_terminal_event("published");
                received.push(*job_id);
            }
            PublishOutcome::Unrouted => {
                runner.metrics().record_terminal_event("unrouted");
                let event = event.kind.as_str();
                warn!(event, job.id = %job_id, "no queue is bound for the job's terminal event; it is kept with the job");
                kept.push(*job_id);
            }
        }
    }
    Ok(runner.store().record_sent_events(&received, &kept).await?)
}
