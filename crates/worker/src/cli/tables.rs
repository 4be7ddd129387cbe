//! Formats events and database rows for the terminal.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use console::Term;
use serde::Deserialize;
use uuid::Uuid;

use store::JobReport;

/// Width of tables in columns if standard output is not a terminal. Longer texts are wrapped in their cell.
const DEFAULT_WIDTH: u16 = 116;

/// The fields of an event that are displayed, parsed from its body.
#[derive(Debug, Deserialize)]
pub(super) struct EventView {
    #[serde(rename = "type")]
    event_type: String,
    pub(super) data: EventData,
}

#[derive(Debug, Deserialize)]
pub(super) struct EventData {
    pub(super) job_id: Uuid,
    #[serde(default)]
    pub(super) total: u32,
    #[serde(default)]
    pub(super) succeeded: u32,
    #[serde(default)]
    pub(super) failed: u32,
    #[serde(default)]
    from_cache: u32,
    pub(super) code: Option<String>,
    index: Option<u32>,
    project_id: i64,
    success_rate: Option<f64>,
    #[serde(default)]
    cost_usd: f64,
    #[serde(default)]
    duration_ms: u64,
    #[serde(default)]
    assets: Vec<EventAsset>,
    #[serde(default)]
    failures: Vec<EventFailure>,
    error: Option<EventError>,
}

#[derive(Debug, Deserialize)]
struct EventAsset {
    index: u32,
    file_path: String,
    width: u32,
    height: u32,
    size_bytes: u64,
    origin: String,
}

#[derive(Debug, Deserialize)]
struct EventFailure {
    index: u32,
    code: String,
    message: String,
    attempts: u32,
    description: String,
}

#[derive(Debug, Deserialize)]
struct EventError {
    code: String,
    message: String,
}

impl EventView {
    /// Parses an event's body; `None` if it is not an event of the worker.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    fn has_type(&self, name: &str) -> bool {
        self.event_type.strip_prefix("assets.generation.") == Some(name)
    }

    pub(super) fn is_started(&self) -> bool {
        self.has_type("started")
    }

    pub(super) fn is_completed(&self) -> bool {
        self.has_type("completed")
    }

    /// Whether it is a terminal event: the last one of its job.
    pub(super) fn is_terminal(&self) -> bool {
        self.is_completed() || self.has_type("failed")
    }

    /// One line of progress output; `None` for events without one.
    pub(super) fn progress_line(&self) -> Option<String> {
        let EventData { total, succeeded, failed, code, index, .. } = &self.data;
        if self.is_started() {
            return Some(format!("job {} started: {total} images", self.data.job_id));
        }
        let index = index.as_ref()?;
        let outcome = code.as_ref().map_or_else(|| "completed".to_owned(), |code| format!("failed ({code})"));
        Some(format!("image {index} {outcome}; {} of {total} done", succeeded + failed))
    }

    /// Formats a terminal event: a summary, then its assets, then its failures.
    pub(super) fn report(&self) -> String {
        let data = &self.data;
        let name = self.event_type.rsplit('.').next().unwrap_or(&self.event_type);
        let seconds = std::time::Duration::from_millis(data.duration_ms).as_secs_f64();
        let mut text = format!(
            "{name}: job {} of project {}\n{} of {} images ({:.0}%), {} failed, {} from the cache, USD {:.2}, {seconds:.1} s\n",
            data.job_id,
            data.project_id,
            data.succeeded,
            data.total,
            100.0 * data.success_rate.unwrap_or_default(),
            data.failed,
            data.from_cache,
            data.cost_usd,
        );
        if let Some(error) = &data.error {
            text += &format!("{}: {}\n", error.code, error.message);
        }
        if !data.assets.is_empty() {
            let mut table = new_table(&["image", "file", "pixels", "size", "origin"]);
            for asset in &data.assets {
                table.add_row([
                    asset.index.to_string(),
                    asset.file_path.clone(),
                    format!("{}x{}", asset.width, asset.height),
                    format_size(asset.size_bytes),
                    asset.origin.clone(),
                ]);
            }
            align_right(&mut table, &[0, 3]);
            text += &format!("\n{table}\n");
        }
        if !data.failures.is_empty() {
            let mut table = new_table(&["image", "failed with", "requests", "description", "why"]);
            for failure in &data.failures {
                table.add_row([
                    failure.index.to_string(),
                    failure.code.clone(),
                    failure.attempts.to_string(),
                    truncate(&failure.description, 40),
                    truncate(&failure.message, 200),
                ]);
            }
            align_right(&mut table, &[0, 2]);
            text += &format!("\n{table}\n");
        }
        text
    }
}

/// Formats names and values, one pair per line, with aligned values.
pub(super) fn format_pairs(pairs: &[(&str, String)]) -> String {
    pairs.iter().fold(String::new(), |text, (name, value)| text + &format!("{name:<16}{value}\n"))
}

/// The table of `dead-letters list`.
pub(super) fn dead_letter_table(rows: impl Iterator<Item = [String; 4]>) -> String {
    let mut table = new_table(&["id", "rejected (UTC)", "job", "reason"]);
    for [id, rejected_at, job, reason] in rows {
        table.add_row([id, rejected_at.chars().take(19).collect(), job, truncate(&reason, 120)]);
    }
    table.to_string()
}

/// The table of `costs`.
pub(super) fn cost_table(key: &str, rows: impl Iterator<Item = [String; 7]>) -> String {
    let mut table = new_table(&[key, "jobs", "requests", "images", "cached", "retries", "cost USD"]);
    for row in rows {
        table.add_row(row);
    }
    align_right(&mut table, &[1, 2, 3, 4, 5, 6]);
    table.to_string()
}

/// The table of `jobs list`.
pub(super) fn job_table(jobs: &[JobReport]) -> String {
    let mut table = new_table(&["job", "project", "status", "images", "retries", "cost USD", "created (UTC)"]);
    for job in jobs {
        table.add_row([
            job.job_id.to_string(),
            job.project_id.to_string(),
            job_status(job),
            job.total.to_string(),
            job.attempts.to_string(),
            format!("{:.2}", job.cost_usd),
            format_time(job.created_at),
        ]);
    }
    align_right(&mut table, &[1, 3, 4, 5]);
    table.to_string()
}

/// The output of `jobs show`.
pub(super) fn job_details(job: &JobReport) -> String {
    let mut pairs = vec![("status", job_status(job))];
    pairs.extend(job.error_message.clone().map(|message| ("error", message)));
    let requests: i32 = job.assets.iter().map(|asset| asset.requests).sum();
    pairs.extend(job.retry_of.map(|first| ("makes again", retried_images(first, job))));
    pairs.push(("created", format_time(job.created_at)));
    pairs.extend(job.due_at.map(|due_at| ("due", format_time(due_at))));
    pairs.extend([
        ("finished", job.finished_at.map_or_else(|| "not yet".to_owned(), format_time)),
        ("cost", format!("USD {:.2}, {requests} requests", job.cost_usd)),
        ("terminal event", if job.event_published { "published" } else { "not published" }.to_owned()),
    ]);
    let text = format!("job {} of project {}\n{}", job.job_id, job.project_id, format_pairs(&pairs));
    if job.assets.is_empty() {
        return text;
    }
    let mut table = new_table(&["image", "status", "file or cause", "size", "requests", "description"]);
    for asset in &job.assets {
        let cause = asset.error_code.clone().unwrap_or_default();
        table.add_row([
            asset.index.to_string(),
            asset.status.clone(),
            asset.file_path.clone().unwrap_or(cause),
            asset.size_bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(format_size).unwrap_or_default(),
            asset.requests.to_string(),
            truncate(asset.metadata["description"].as_str().unwrap_or_default(), 40),
        ]);
    }
    align_right(&mut table, &[0, 3, 4]);
    format!("{text}\n{table}\n")
}

/// The first job of a retry, with the indexes that its images have there.
fn retried_images(first: Uuid, job: &JobReport) -> String {
    let indexes = job.assets.iter().filter_map(|asset| asset.original_index).map(|index| index.to_string());
    format!("images {} of job {first}", indexes.collect::<Vec<_>>().join(", "))
}

fn job_status(job: &JobReport) -> String {
    match &job.error_code {
        None => job.status.clone(),
        Some(code) => format!("{} ({code})", job.status),
    }
}

fn new_table(headers: &[&str]) -> Table {
    let style = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
    let mut table = Table::new();
    table.load_style(style).set_content_arrangement(ContentArrangement::Dynamic).set_width(terminal_width());
    table.set_header(headers);
    table
}

fn terminal_width() -> u16 {
    Term::stdout().size_checked().map_or(DEFAULT_WIDTH, |(_, columns)| columns)
}

fn align_right(table: &mut Table, numbers: &[usize]) {
    for number in numbers {
        if let Some(column) = table.column_mut(*number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn format_time(time: time::OffsetDateTime) -> String {
    let (date, clock) = (time.date(), time.time());
    format!("{date} {:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second())
}

#[expect(clippy::cast_precision_loss, reason = "the figure is rounded for display")]
pub(super) fn format_size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.2} MB", bytes as f64 / 1e6),
    }
}

fn truncate(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars - 1).chain(['…']).collect()
}
