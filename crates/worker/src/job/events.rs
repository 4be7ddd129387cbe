//! Events of one attempt that inform watchers: `started` and `progress`.

use domain::command::JobKey;
use domain::event::{Context, Event};
use domain::trace::TraceContext;
use time::OffsetDateTime;
use tracing::warn;

use crate::event_sink::EventSink;
use crate::telemetry::trace;

/// Publishes the events of one attempt.
pub(super) struct JobEvents<'a> {
    pub(super) sink: &'a dyn EventSink,
    pub(super) key: JobKey,
    /// The trace that the command came with.
    pub(super) trace: Option<&'a TraceContext>,
    /// An event could not be published; no further one is tried, since each may wait long for a broker in trouble.
    pub(super) muted: bool,
}

impl JobEvents<'_> {
    /// The context of an event published now: job, time, trace.
    pub(super) fn context(&self) -> Context {
        let trace = trace::current().or_else(|| self.trace.cloned());
        Context { key: self.key, trace, time: OffsetDateTime::now_utc() }
    }

    /// Publishes an event that may be missed. A failure is logged once.
    pub(super) async fn publish(&mut self, event: &Event) {
        if self.muted {
            return;
        }
        if let Err(error) = self.sink.publish(event).await {
            self.muted = true;
            let event = event.kind.as_str();
            warn!(%error, event, "an event was not published; no further progress of this attempt is published");
        }
    }
}
