//! `jobs`: lists, shows and cancels jobs, makes their images again, and publishes terminal events again.

use std::time::Duration;

use broker::{Broker, PublishOutcome, Publisher, Topology};
use domain::cancel_request::MAX_REASON_CHARS;
use domain::event::Event;
use domain::retry::Retry;
use serde::Serialize;
use serde_json::json;
use store::{Cancellation, Store, Submission};
use time::OffsetDateTime;
use uuid::Uuid;

use super::exit::CliError;
use super::screen::Screen;
use super::tables;
use crate::error_chain::error_chain;
use crate::event_sink::EventSink;
use crate::replies::{self, Sent};
use crate::retry::{self, RetryError, Selection};
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// List the newest jobs
    List {
        /// List only jobs of the project with this id
        #[arg(long, value_name = "ID")]
        project: Option<i64>,
        /// Maximum number of jobs
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one job with its images
    Show {
        /// Id of the job
        #[arg(value_name = "UUID")]
        job_id: Uuid,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Cancel jobs: nothing more is paid for, images in flight are kept, and the jobs fail with the code `cancelled`
    ///
    /// The cancellation of a job that is not known is remembered for 30 days, and the job ends when its command arrives. A
    /// job that has ended is not changed.
    Cancel {
        /// Ids of the jobs
        #[arg(value_name = "UUID", required_unless_present = "project")]
        job_ids: Vec<Uuid>,
        /// Cancel the known jobs of the project with this id that have not ended
        #[arg(long, value_name = "ID", conflicts_with = "job_ids")]
        project: Option<i64>,
        /// Reason for the terminal event, at most 200 characters
        #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
        reason: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the failed images of ended jobs again, as one new job for each job, with the same config
    ///
    /// A repetition has no effect until the new job has ended. `expires_at` is left out.
    Retry {
        /// Ids of the jobs
        #[arg(value_name = "UUID", required_unless_present = "all_failed")]
        job_ids: Vec<Uuid>,
        /// Take the failed jobs that were not cancelled, have not expired and were not retried
        #[arg(long, conflicts_with = "job_ids", requires = "since")]
        all_failed: bool,
        /// With --all-failed: the time from which jobs failed, before now, for example 1h
        #[arg(long, value_name = "DURATION", requires = "all_failed", value_parser = humantime::parse_duration)]
        since: Option<Duration>,
        /// With --all-failed: take only jobs of the project with this id
        #[arg(long, value_name = "ID", requires = "all_failed")]
        project: Option<i64>,
        /// Also make images again that were refused by content policy
        #[arg(long)]
        include_refused: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a completed image of an ended job again with another seed, as a new job of one image
    ///
    /// The cache is not used. A repetition with the same --seed has no effect; without --seed it has none until the new job
    /// has ended.
    Redo {
        /// Id of the job
        #[arg(value_name = "UUID")]
        job_id: Uuid,
        /// Index of the image, from 1
        #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u32).range(1..))]
        image: u32,
        /// Seed of the new image; chosen if absent
        #[arg(long, value_name = "SEED")]
        seed: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Publish terminal events again, for example those that no queue was bound for
    Republish {
        /// Ids of the jobs
        #[arg(value_name = "UUID", required_unless_present = "all")]
        job_ids: Vec<Uuid>,
        /// Publish every terminal event that no queue has received yet
        #[arg(long, conflicts_with = "job_ids")]
        all: bool,
    },
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    let store = open_store(settings).await?;
    match &options.subcommand {
        Subcommand::List { project, limit, json } => {
            let jobs = store.list_jobs(*project, u64::from(*limit)).await?;
            if *json {
                screen.print(&to_json(&jobs));
            } else if jobs.is_empty() {
                screen.print_note("no jobs yet");
            } else {
                screen.print(&tables::job_table(&jobs));
            }
        }
        Subcommand::Show { job_id, json } => {
            let job = store.read_job_report(*job_id).await?;
            let job = job.ok_or_else(|| CliError::Usage(format!("job {job_id} is not in the database")))?;
            screen.print(&if *json { to_json(&job) } else { tables::job_details(&job) });
        }
        Subcommand::Cancel { job_ids, project, reason, json } => {
            let reason = reason.as_deref();
            let result = match project {
                Some(project) => {
                    Cancellation { cancelled: store.cancel_project(*project, reason).await?, ..Cancellation::default() }
                }
                None => store.cancel_jobs(job_ids, reason).await?,
            };
            let Cancellation { cancelled, remembered, unchanged } = result;
            screen.print(&if *json {
                to_json(&json!({"cancelled": cancelled, "remembered": remembered, "unchanged": unchanged}))
            } else {
                format!("cancelled: {cancelled}, not known yet: {remembered}, ended or cancelled before: {unchanged}")
            });
        }
        Subcommand::Retry { job_ids, since, project, include_refused, json, .. } => {
            let selection = Selection::Failed { include_refused: *include_refused };
            let mut retries: Retries = Vec::new();
            let result = match since {
                Some(since) => {
                    let since = time::Duration::try_from(*since).unwrap_or(time::Duration::MAX);
                    let since = OffsetDateTime::now_utc().saturating_sub(since).max(OffsetDateTime::UNIX_EPOCH);
                    let failed = store.read_failed_jobs(since, *project).await?;
                    make_again(&store, settings, &failed, selection, true, &mut retries).await
                }
                None => make_again(&store, settings, job_ids, selection, false, &mut retries).await,
            };
            print_retries(&retries, *json, screen);
            result?;
        }
        Subcommand::Redo { job_id, image, seed, json } => {
            let selection = Selection::Image { index: *image, seed: *seed };
            let mut retries: Retries = Vec::new();
            make_again(&store, settings, &[*job_id], selection, false, &mut retries).await?;
            print_retries(&retries, *json, screen);
        }
        Subcommand::Republish { job_ids, all } => republish(&store, job_ids, *all, settings, screen).await?,
    }
    Ok(())
}

fn parse_reason(text: &str) -> Result<String, String> {
    let (text, length) = (text.trim(), text.trim().chars().count());
    if length > MAX_REASON_CHARS || text.contains('\0') {
        return Err(format!("{length} characters is not allowed; at most {MAX_REASON_CHARS}, without NUL"));
    }
    Ok(text.to_owned())
}

/// Submitted jobs, each with what its row said before.
type Retries = Vec<(Retry, Submission)>;

/// Makes images of these jobs again, and adds each new job to `retries`. `skip` leaves out jobs that have nothing to make
/// again; otherwise they are errors.
async fn make_again(
    store: &Store,
    settings: &Settings,
    job_ids: &[Uuid],
    selection: Selection,
    skip: bool,
    retries: &mut Retries,
) -> Result<(), CliError> {
    let broker = Broker::connect(&settings.amqp_url, &Topology::new(settings.jobs.queue_delays())).await?;
    let publisher = broker.create_publisher(Duration::ZERO).await?;
    for job_id in job_ids {
        match retry::make_again(store, &publisher, settings.stability.engine, *job_id, selection).await {
            Ok(retry) => retries.push(retry),
            Err(error) if skip && error.is_nothing_to_do() => {}
            Err(error) => return Err(error.into()),
        }
    }
    broker.close().await;
    Ok(())
}

fn print_retries(retries: &Retries, as_json: bool, screen: &Screen) {
    if as_json {
        let retries = retries.iter().map(|(Retry { command, origin, .. }, submission)| {
            let (job_id, retry_of, images) = (command.job_id, origin.retry_of, &origin.original_indexes);
            let ended = *submission == Submission::Ended;
            json!({"job_id": job_id, "retry_of": retry_of, "images": images, "ended": ended})
        });
        return screen.print(&to_json(&retries.collect::<Vec<_>>()));
    }
    for (Retry { command, origin, .. }, submission) in retries {
        let (job_id, retry_of) = (command.job_id, origin.retry_of);
        let indexes: Vec<String> = origin.original_indexes.iter().map(u32::to_string).collect();
        let images = indexes.join(", ");
        screen.print(&match submission {
            Submission::Ended => {
                format!("job {job_id} has ended; it made these images of job {retry_of} again: {images}")
            }
            _ => format!("job {job_id} makes these images of job {retry_of} again: {images}"),
        });
    }
    if retries.is_empty() {
        screen.print_note("no failed images");
    }
}

async fn republish(
    store: &Store,
    job_ids: &[Uuid],
    all: bool,
    settings: &Settings,
    screen: &Screen,
) -> Result<(), CliError> {
    let mut selected = Vec::new();
    for id in job_ids {
        let terminal = store.find_job(*id).await?.and_then(|job| job.terminal_event);
        let terminal =
            terminal.ok_or_else(|| CliError::Usage(format!("job {id} is not in the database or has not ended")))?;
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

/// Connects to the workers' database. Fails if there is none, or if migrations are pending.
pub(super) async fn open_store(settings: &Settings) -> Result<Store, CliError> {
    let store = open_existing_store(settings).await?;
    let pending = store.read_schema_state().await?.pending;
    if pending > 0 {
        return Err(CliError::unreachable(format!(
            "{pending} database migrations are pending; apply them with: asset-worker migrate"
        )));
    }
    Ok(store)
}

/// Connects to the workers' database. A new SQLite file would be the database of no worker.
pub(super) async fn open_existing_store(settings: &Settings) -> Result<Store, CliError> {
    Store::connect_existing(&settings.database_url).await?.ok_or_else(|| {
        CliError::unreachable("DATABASE_URL: there is no database; set it to the URL that the workers use, or create it with: asset-worker migrate")
    })
}

pub(super) fn to_json(data: &impl Serialize) -> String {
    serde_json::to_string_pretty(data).expect("plain data serialises")
}

impl From<RetryError> for CliError {
    fn from(error: RetryError) -> Self {
        match error {
            RetryError::Store(error) => error.into(),
            RetryError::Publish { .. } => Self::unreachable(error.to_string()),
            error => Self::Usage(error.to_string()),
        }
    }
}
