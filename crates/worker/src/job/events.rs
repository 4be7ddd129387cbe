//! Informational events of one attempt: `started` and `progress`.

use celery::Reply;
use domain::command::JobKey;
use domain::event::{Event, EventContext};
use domain::trace::TraceContext;
use time::OffsetDateTime;
use tracing::warn;

use crate::celery_node;
use crate::event_sink::EventSink;
use crate::telemetry::trace;

/// Publishes the events of one attempt.
pub(super) struct JobEvents<'a> {
    pub(super) sink: &'a dyn EventSink,
    pub(super) key: JobKey,
    /// The trace context that the command was published with.
    pub(super) trace: Option<&'a TraceContext>,
    /// Who is told about the job beside the consumers of its events.
    pub(super) reply: Option<Reply>,
    /// An event could not be published. No further one is tried, since each can block long on an unavailable broker.
    pub(super) publishing_failed: bool,
}

impl JobEvents<'_> {
    /// The context of an event published now: job, trace and current time.
    pub(super) fn context(&self) -> EventContext {
        let trace = trace::current_context().or_else(|| self.trace.cloned());
        EventContext { key: self.key, trace, time: OffsetDateTime::now_utc() }
    }

    /// Publishes an event whose loss is acceptable. The first failure is logged; later events are skipped.
    pub(super) async fn publish(&mut self, event: &Event) {
        if self.publishing_failed {
            return;
        }
        let state = self.reply.as_ref().and_then(|reply| reply.state(event, celery_node::name()));
        let publishing = async {
            self.sink.publish(event).await?;
            match state {
                Some(state) => self.sink.send(&state).await,
                None => Ok(()),
            }
        };
        if let Err(error) = publishing.await {
            self.publishing_failed = true;
            let event = event.kind.as_str();
            warn!(%error, event, "event not published; no further progress events of this attempt are published");
        }
    }
}
