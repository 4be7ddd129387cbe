//! `jobs list` and `jobs show`, also while a job runs.

use std::time::Duration;

use store::{JobFilter, JobReport, Store};
use tokio::time::sleep;
use uuid::Uuid;

use crate::cli::exit::CliError;
use crate::cli::screen::{Screen, to_json};
use crate::cli::tables;

/// Interval at which a watched job is read.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn list(
    store: &Store,
    filter: &JobFilter,
    limit: u64,
    as_json: bool,
    screen: &Screen,
) -> Result<(), CliError> {
    let jobs = store.list_jobs(filter, limit).await?;
    if as_json {
        screen.print(&to_json(&jobs));
    } else if jobs.is_empty() {
        screen.print_note("no such jobs");
    } else {
        screen.print(&tables::job_table(&jobs));
    }
    Ok(())
}

pub(super) async fn show(store: &Store, job_id: Uuid, as_json: bool, screen: &Screen) -> Result<(), CliError> {
    let job = store.read_job_report(job_id).await?;
    let job = job.ok_or_else(|| CliError::Usage(format!("job {job_id} is not in the database")))?;
    screen.print(&if as_json { to_json(&job) } else { tables::job_details(&job) });
    Ok(())
}

/// Shows each change of a job until its end. Waits for a job that is not known yet.
pub(super) async fn watch(store: &Store, job_id: Uuid, as_json: bool, screen: &Screen) -> Result<(), CliError> {
    let mut shown = None;
    loop {
        match store.read_job_report(job_id).await? {
            None if shown.is_none() => {
                screen.print_note(&format!("job {job_id} is not in the database yet; waiting for it"));
                shown = Some(String::new());
            }
            None => {}
            Some(job) => {
                let text = format(&job, as_json);
                if shown.as_ref() != Some(&text) {
                    screen.replace(shown.as_deref().filter(|_| !as_json), &text);
                    shown = Some(text);
                }
                if job.finished_at.is_some() {
                    let failure =
                        job.error_code.map(|code| CliError::JobFailed(format!("job {job_id} failed: {code}")));
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
        sleep(WATCH_INTERVAL).await;
    }
}

fn format(job: &JobReport, as_json: bool) -> String {
    if as_json {
        return serde_json::to_string(job).expect("a report serialises");
    }
    tables::job_details(job)
}
