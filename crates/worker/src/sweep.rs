//! The sweep: ends cancelled and expired jobs that no worker holds, and publishes their terminal events.
//!
//! One worker sweeps at a time. Jobs that were only waiting end in batches; one whose worker was lost is taken over.

use std::convert::Infallible;
use std::time::Duration;

use broker::{BrokerError, PublishOutcome, Publisher, SubmittedCommand};
use celery::Reply;
use domain::event::{Event, EventContext, JobError, Totals};
use domain::outcome::Tally;
use store::{DueCommand, DueJob, EndedJob, StoreError, TerminalEvent, UnpublishedEvent};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use uuid::Uuid;

use crate::celery_node::CeleryNode;
use crate::error_chain::error_chain;
use crate::event_sink::PublishError;
use crate::failpoint;
use crate::job::JobRunner;
use crate::replies::{Sent, publish_outbox};
use crate::telemetry::metrics::ErrorCode;

/// A waiting job that is cancelled ends within this time and that of a batch.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a worker has the turn to sweep. If it is lost, another one sweeps after this time.
const TURN: Duration = Duration::from_secs(3);
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
    Publish(#[from] PublishError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl ErrorCode for SweepError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Publish(error) => error.code(),
            Self::Broker(error) => error.code(),
        }
    }
}

/// Sweeps periodically, while this worker has the turn; never returns.
pub(crate) async fn sweep(runner: JobRunner, publisher: Publisher, celery_node: CeleryNode) -> Infallible {
    let holder = Uuid::now_v7();
    loop {
        sleep(INTERVAL).await;
        if let Err(error) = sweep_once(&runner, &publisher, &celery_node, holder).await {
            let (code, error) = (error.code(), error_chain(&error));
            warn!(code, error, "sweep of cancelled and expired jobs failed; retrying");
        }
    }
}

async fn sweep_once(
    runner: &JobRunner,
    publisher: &Publisher,
    celery_node: &CeleryNode,
    holder: Uuid,
) -> Result<(), SweepError> {
    let store = runner.store();
    loop {
        if !store.take_sweep_turn(holder, TURN).await? {
            return Ok(());
        }
        let commands = store.read_due_commands(BATCH).await?;
        if !commands.is_empty() {
            publish_commands(runner, publisher, &commands).await?;
        }
        let due = store.read_due_jobs(BATCH).await?;
        let (lost, waiting): (Vec<_>, Vec<_>) = due.iter().partition(|job| job.needs_claim);
        let (mut ended, mut is_complete) = (0, true);
        if !waiting.is_empty() {
            let endings: Vec<_> = waiting.into_iter().filter_map(end_over).collect();
            failpoint::reach("before_sweep").await;
            ended = store.end_waiting_jobs(&endings).await?;
            for ending in &endings {
                runner.metrics().record_swept_job(ending.error.as_ref().map(|error| error.code));
            }
        }
        for job in lost {
            // A job that cannot be ended does not hold up the others.
            match runner.end_due_job(&job.command, publisher).await {
                Ok(()) => ended += 1,
                Err(error) => {
                    let (job_id, error) = (job.command.job_id, error_chain(&error));
                    warn!(job.id = %job_id, error, "cancelled or expired job not ended; retrying");
                    is_complete = false;
                }
            }
        }
        if ended > 0 {
            info!(ended, "cancelled or expired jobs ended");
        }
        let events = store.read_due_events(BATCH).await?;
        if !events.is_empty() {
            is_complete &= publish(runner, publisher, celery_node, &events).await?;
        }
        if !is_complete {
            // What failed is repeated after the interval.
            return Ok(());
        }
        if due.is_empty() && commands.is_empty() && events.is_empty() {
            store.forget_cancellations(REMEMBERED_DAYS).await?;
            return Ok(());
        }
    }
}

/// Publishes the commands of jobs that are due.
async fn publish_commands(runner: &JobRunner, publisher: &Publisher, due: &[DueCommand]) -> Result<(), SweepError> {
    let commands: Vec<_> = due
        .iter()
        .map(|due| SubmittedCommand {
            job_id: due.job_id,
            body: &due.body,
            priority: due.reply.as_ref().and_then(Reply::from_stored).and_then(|reply| reply.priority),
            trace: due.trace.as_ref(),
        })
        .collect();
    publisher.submit_all(&commands).await?;
    failpoint::reach("after_due_commands").await;
    let ids: Vec<Uuid> = due.iter().map(|due| due.job_id).collect();
    runner.store().mark_commands_published(&ids).await?;
    info!(jobs = ids.len(), "commands of jobs that are due are on the queue");
    Ok(())
}

/// The end of a cancelled or expired job that was waiting.
fn end_over(job: &DueJob) -> Option<EndedJob<'_>> {
    let reaches = Tally::from_images(&job.images).reaches(job.command.config.min_success_rate());
    Some(end_waiting(job, job.over.as_ref()?.error(reaches)))
}

/// The end of a job that was waiting: it completed if there is no error.
pub(crate) fn end_waiting(job: &DueJob, error: Option<JobError>) -> EndedJob<'_> {
    let now = OffsetDateTime::now_utc();
    let DueJob { command, reply, origin, cost_usd, created_at, trace, images, .. } = job;
    let duration_ms = u64::try_from((now - *created_at).whole_milliseconds()).unwrap_or_default();
    let context = EventContext { key: command.key(), trace: trace.clone(), time: now };
    let totals = Totals { cost_usd: *cost_usd, duration_ms };
    let event = Event::terminal(&context, images, origin.as_ref(), totals, error.as_ref());
    let reply = reply.as_ref().and_then(Reply::from_stored);
    let messages = reply.map(|reply| reply.end(&event, now)).unwrap_or_default();
    EndedJob { job, error, event, messages }
}

/// Publishes events that are due, and the messages before them, and records which of them a queue has received. Returns
/// false if some of them could not be published.
async fn publish(
    runner: &JobRunner,
    publisher: &Publisher,
    celery_node: &CeleryNode,
    due: &[UnpublishedEvent],
) -> Result<bool, SweepError> {
    let started_at = Instant::now();
    let (mut ready, mut is_complete) = (Vec::new(), true);
    for due in due {
        if due.terminal.reply.is_some() {
            // The turn may be over soon: the next round goes on.
            if started_at.elapsed() > TURN / 2 {
                break;
            }
            match publish_outbox(runner.store(), publisher, due.job_id).await {
                Ok(Sent { kept, .. }) => {
                    for _ in 0..kept {
                        runner.metrics().record_terminal_event("unrouted");
                    }
                }
                Err(error) => {
                    let error = error_chain(&error);
                    warn!(job.id = %due.job_id, error, "messages that follow the end of a job not published; retrying");
                    is_complete = false;
                    continue;
                }
            }
        }
        ready.push(due);
    }
    let events: Vec<&Event> = ready.iter().map(|due| &due.terminal.event).collect();
    failpoint::reach("before_swept_events").await;
    let outcomes = publisher.publish_terminal_events(&events).await.map_err(|error| PublishError(error.to_string()))?;
    failpoint::reach("after_swept_events").await;
    let (mut received, mut kept) = (Vec::new(), Vec::new());
    for (UnpublishedEvent { job_id, terminal: TerminalEvent { event, reply, .. }, .. }, outcome) in
        ready.into_iter().zip(outcomes)
    {
        celery_node.report_end(*job_id, event, reply.as_ref());
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
    runner.store().record_sent_events(&received, &kept).await?;
    Ok(is_complete)
}
