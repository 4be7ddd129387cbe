//! `jobs republish`: publishes terminal events again, with the messages before them.

use std::time::Duration;

use broker::{Broker, PublishOutcome, Publisher, Topology};
use domain::event::Event;
use store::Store;
use uuid::Uuid;

use crate::cli::exit::CliError;
use crate::cli::screen::Screen;
use crate::error_chain::error_chain;
use crate::event_sink::EventSink;
use crate::replies::{self, Sent};
use crate::settings::Settings;

pub(super) async fn republish(
    store: &Store,
    job_ids: &[Uuid],
    all: bool,
    settings: &Settings,
    screen: &Screen,
) -> Result<(), CliError> {
    let mut selected = Vec::new();
    for id in job_ids {
        let terminal = store.find_job(*id).await?.and_then(|job| job.terminal_event);
        let terminal = terminal
            .ok_or_else(|| CliError::Usage(format!("job {id} is not in the database, has not ended, or was purged")))?;
        selected.push((*id, terminal));
    }
    let broker = Broker::connect(&settings.amqp_url, &Topology::new(settings.jobs.queue_delays())).await?;
    let publisher = broker.create_publisher(Duration::ZERO).await?;
    let mut republished = Republished::default();
    let with_messages = if all { store.read_jobs_in_outbox().await? } else { job_ids.to_vec() };
    for job_id in with_messages {
        republished.publish_outbox(store, &publisher, job_id).await?;
    }
    for (id, terminal) in selected {
        republished.publish(store, &publisher, id, &terminal.event).await?;
    }
    let mut page = if all { store.read_unpublished_events(None).await? } else { Vec::new() };
    while let Some(last) = page.last() {
        let next = store.read_unpublished_events(Some(last)).await?;
        for unpublished in page {
            republished.publish(store, &publisher, unpublished.job_id, &unpublished.terminal.event).await?;
        }
        page = next;
    }
    broker.close().await;
    let Republished { routed, unrouted } = republished;
    screen.print(&format!("sent: {routed}"));
    if unrouted > 0 {
        return Err(CliError::JobFailed(format!("no queue is bound for {unrouted} of {} messages", routed + unrouted)));
    }
    Ok(())
}

/// Numbers of events and other messages that were published again.
#[derive(Default)]
struct Republished {
    routed: usize,
    unrouted: usize,
}

impl Republished {
    async fn publish(
        &mut self,
        store: &Store,
        publisher: &Publisher,
        job_id: Uuid,
        event: &Event,
    ) -> Result<(), CliError> {
        let published = EventSink::publish(publisher, event).await;
        match published.map_err(|error| CliError::unreachable(error.to_string()))? {
            PublishOutcome::Routed => {
                store.mark_published(job_id).await?;
                self.routed += 1;
            }
            PublishOutcome::Unrouted => self.unrouted += 1,
        }
        Ok(())
    }

    async fn publish_outbox(&mut self, store: &Store, publisher: &Publisher, job_id: Uuid) -> Result<(), CliError> {
        let sent = replies::publish_outbox(store, publisher, job_id).await;
        let Sent { routed, kept } = sent.map_err(|error| CliError::unreachable(error_chain(&error)))?;
        self.routed += routed;
        self.unrouted += kept;
        Ok(())
    }
}
