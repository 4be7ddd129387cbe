//! `jobs`: lists, shows and cancels jobs, makes their images again, and publishes terminal events again.

mod again;
mod list;
mod republish;

use std::time::Duration;

use clap::builder::PossibleValuesParser;
use domain::rules::MAX_REASON_CHARS;
use serde_json::json;
use store::{Cancellation, JobFilter};
use uuid::Uuid;

use super::database::open_store;
use super::exit::CliError;
use super::screen::{Screen, to_json};
use super::time_ago::time_ago;
use crate::retry::Selection;
use crate::settings::Settings;
use again::{Retries, make_again, print_retries};

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
        /// List only jobs with this status
        #[arg(long, value_parser = PossibleValuesParser::new(["waiting", "running", "completed", "failed"]))]
        status: Option<String>,
        /// List only jobs that were first claimed or submitted within this time up to now, for example 2h
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        since: Option<Duration>,
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
        /// Show each change until the job has ended; exit with 0 if it completed, 1 if it failed
        #[arg(long)]
        watch: bool,
        /// Print JSON; with --watch one line for each change
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
        Subcommand::List { project, status, since, limit, json } => {
            let filter = JobFilter {
                project_id: *project,
                status: status.clone(),
                since: since.map(time_ago),
                ..JobFilter::default()
            };
            list::list(&store, &filter, u64::from(*limit), *json, screen).await?;
        }
        Subcommand::Show { job_id, watch: true, json } => list::watch(&store, *job_id, *json, screen).await?,
        Subcommand::Show { job_id, watch: false, json } => list::show(&store, *job_id, *json, screen).await?,
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
                    let failed = store.read_failed_jobs(time_ago(*since), *project).await?;
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
        Subcommand::Republish { job_ids, all } => republish::republish(&store, job_ids, *all, settings, screen).await?,
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
