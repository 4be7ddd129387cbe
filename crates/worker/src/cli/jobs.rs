//! `jobs`: what the database knows.

use broker::{Broker, Routed, Topology};
use clap::Subcommand;
use serde::Serialize;
use store::Store;
use uuid::Uuid;

use super::exit::Failure;
use super::screen::Screen;
use super::tables;
use crate::event_sink::EventSink;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    asked: Asked,
}

#[derive(Debug, Subcommand)]
enum Asked {
    /// The newest jobs
    List {
        /// Only those of this project
        #[arg(long, value_name = "ID")]
        project: Option<i64>,
        /// How many at most
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// One job with its images
    Show {
        /// Id of the job
        #[arg(value_name = "UUID")]
        job_id: Uuid,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send the terminal events of jobs again, such as those that no queue was bound for
    Republish {
        /// Ids of jobs
        #[arg(value_name = "UUID", required_unless_present = "all")]
        job_ids: Vec<Uuid>,
        /// Every job whose terminal event no queue has taken
        #[arg(long, conflicts_with = "job_ids")]
        all: bool,
    },
}

pub(super) async fn jobs(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), Failure> {
    let store = store(settings).await?;
    match &options.asked {
        Asked::List { project, limit, json } => {
            let jobs = store.jobs(*project, u64::from(*limit)).await?;
            if *json {
                screen.print(&as_json(&jobs));
            } else if jobs.is_empty() {
                screen.note("no jobs yet");
            } else {
                screen.print(&tables::job_list(&jobs));
            }
        }
        Asked::Show { job_id, json } => {
            let job = store.job(*job_id).await?;
            let job = job.ok_or_else(|| Failure::Usage(format!("{job_id} is no job of this database")))?;
            screen.print(&if *json { as_json(&job) } else { tables::job(&job) });
        }
        Asked::Republish { job_ids, all } => republish(&store, job_ids, *all, settings, screen).await?,
    }
    Ok(())
}

async fn republish(
    store: &Store,
    job_ids: &[Uuid],
    all: bool,
    settings: &Settings,
    screen: &Screen,
) -> Result<(), Failure> {
    let events = if all {
        store.unpublished_events().await?
    } else {
        let mut events = Vec::new();
        for id in job_ids {
            let terminal = store.find_job(*id).await?.and_then(|job| job.terminal);
            let terminal =
                terminal.ok_or_else(|| Failure::Usage(format!("{id} is no job of this database that has ended")))?;
            events.push((*id, terminal.event));
        }
        events
    };
    let broker = Broker::connect(&settings.amqp_url, &Topology::new(settings.jobs.queue_delays())).await?;
    let publisher = broker.publisher().await?;
    let mut unrouted = 0;
    for (id, event) in &events {
        let routed = EventSink::publish(&publisher, event).await;
        match routed.map_err(|error| Failure::unreachable(error.to_string()))? {
            Routed::Taken => store.mark_published(*id).await?,
            Routed::Unrouted => unrouted += 1,
        }
    }
    broker.close().await;
    screen.print(&format!("sent: {}", events.len() - unrouted));
    if unrouted > 0 {
        return Err(Failure::Job(format!("no queue is bound for {unrouted} of {} events", events.len())));
    }
    Ok(())
}

/// The database, where its schema is the one that this program knows.
pub(super) async fn store(settings: &Settings) -> Result<Store, Failure> {
    let store = Store::connect(&settings.database_url).await?;
    let pending = store.pending_migrations().await?;
    if pending > 0 {
        return Err(Failure::unreachable(format!(
            "the database lacks {pending} migrations; apply them with: asset-worker migrate"
        )));
    }
    Ok(store)
}

pub(super) fn as_json(data: &impl Serialize) -> String {
    serde_json::to_string_pretty(data).expect("plain data serialises")
}
