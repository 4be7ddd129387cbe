//! `jobs`: what the database knows.

use clap::Subcommand;
use serde::Serialize;
use uuid::Uuid;

use super::exit::Failure;
use super::screen::Screen;
use super::tables;
use crate::settings::Settings;
use crate::store::Store;

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
