//! What follows the end of a job, or the rejection of a message: linked tasks, results and the terminal event.

use broker::{Message, PublishOutcome};
use celery::Reply;
use domain::command::JobKey;
use domain::event::{Event, EventContext, JobError, Totals};
use serde_json::Value;
use store::{StoreError, TerminalEvent, UnclaimedJob};
use time::OffsetDateTime;
use tracing::warn;
use uuid::Uuid;

use super::{CommandHandler, HandleError};
use crate::event_sink::EventSink;
use crate::failpoint;
use crate::replies::{ReplyError, Sent, publish_directly, publish_outbox};
use crate::sweep::end_waiting;
use crate::telemetry::metrics::Stage;
use crate::telemetry::trace;

/// Whether those whom `reply` names are told by way of the job, which has the stored reply.
pub(crate) fn is_told(reply: Option<&Reply>, stored: Option<&Value>) -> bool {
    reply.is_none_or(|reply| stored.and_then(Reply::from_stored).is_some_and(|stored| stored.id == reply.id))
}

impl CommandHandler {
    /// Publishes what follows the end of a job, with publisher confirms: linked tasks, results, and the terminal event. An
    /// unroutable event is kept with the job. `reply` is that of a message for the job, who is told too.
    pub(crate) async fn publish_end(
        &self,
        job_id: Uuid,
        terminal: &TerminalEvent,
        reply: Option<&Reply>,
    ) -> Result<(), HandleError> {
        failpoint::reach("before_replies").await;
        let mut sent = Sent::default();
        if terminal.reply.is_some() {
            sent = publish_outbox(self.store(), &self.publisher, job_id).await?;
        }
        if let Some(reply) = reply {
            let mut messages = reply.end(&terminal.event, OffsetDateTime::now_utc());
            if is_told(Some(reply), terminal.reply.as_ref()) {
                // Linked tasks are published once. The result is, each time that its task is sent.
                messages.retain(|message| sent.routed == 0 && !message.kept_if_unrouted);
            }
            sent.kept += publish_directly(self.store(), &self.publisher, &reply.id, messages).await?;
        }
        self.record_kept(sent.kept);
        if !terminal.published {
            self.celery_node.report_end(job_id, &terminal.event, terminal.reply.as_ref());
        }
        failpoint::reach("before_event").await;
        let publishing = EventSink::publish(&self.publisher, &terminal.event);
        let published = self.metrics().run_stage(Stage::Publish, publishing).await;
        self.metrics().record_terminal_event(match &published {
            Ok(PublishOutcome::Routed) => "published",
            Ok(PublishOutcome::Unrouted) => "unrouted",
            Err(_) => "failed",
        });
        match published? {
            PublishOutcome::Routed if terminal.published => {}
            PublishOutcome::Routed => self.store().mark_published(job_id).await?,
            PublishOutcome::Unrouted => {
                let event = terminal.event.kind.as_str();
                warn!(event, "no queue is bound for the job's terminal event; it is kept with the job");
            }
        }
        Ok(())
    }

    /// Tells those who wait for a task that it failed, where no job came of it.
    pub(crate) async fn publish_failure(&self, reply: &Reply, code: &str, message: &str) -> Result<(), ReplyError> {
        let messages = reply.failure(code, message, OffsetDateTime::now_utc());
        self.record_kept(publish_directly(self.store(), &self.publisher, &reply.id, messages).await?);
        Ok(())
    }

    fn record_kept(&self, messages: usize) {
        for _ in 0..messages {
            self.metrics().record_terminal_event("unrouted");
        }
    }

    /// Fails a job that has no row and publishes its terminal event. If a job with this id is known, only `reply` is told.
    pub(crate) async fn fail_unstarted_job(
        &self,
        message: &Message,
        key: JobKey,
        digest: &str,
        error: &JobError,
        reply: Option<&Reply>,
    ) -> Result<(), HandleError> {
        let trace = trace::current_context().or_else(|| message.trace());
        let context = EventContext { key, trace, time: OffsetDateTime::now_utc() };
        let event = Event::terminal(&context, &[], None, Totals { cost_usd: 0.0, duration_ms: 0 }, Some(error));
        let messages = reply.map(|reply| reply.end(&event, context.time)).unwrap_or_default();
        let stored_reply = reply.map(Reply::to_stored);
        let failed =
            UnclaimedJob { key, digest, error, event: &event, reply: stored_reply.as_ref(), messages: &messages };
        match self.store().fail_unclaimed_job(&failed).await? {
            Some(terminal) => self.publish_end(key.job_id, &terminal, reply).await,
            None => match reply {
                Some(reply) => Ok(self.publish_failure(reply, error.code.as_str(), &error.message).await?),
                None => Ok(()),
            },
        }
    }

    /// Fails a job whose rows were written before its command was published; a sweep publishes its terminal event. Returns
    /// false if there is no such job: it was claimed, or has another command.
    pub(crate) async fn end_unclaimed_job(
        &self,
        job_id: Uuid,
        digest: &str,
        error: &JobError,
    ) -> Result<bool, StoreError> {
        let Some(job) = self.store().read_unclaimed_job(job_id).await? else { return Ok(false) };
        if job.command.digest() != digest {
            return Ok(false);
        }
        Ok(self.store().end_waiting_jobs(&[end_waiting(&job, Some(error.clone()))]).await? == 1)
    }
}
