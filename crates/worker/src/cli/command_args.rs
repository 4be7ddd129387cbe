//! Arguments of `submit` and `generate` that describe the command.
#![expect(clippy::doc_markdown, reason = "the documentation of arguments is what --help shows")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use domain::command::{Command, InvalidCommand};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::exit::CliError;
use crate::bootstrap;

/// Arguments that describe a command, or the file that contains it.
#[derive(Debug, clap::Args)]
pub(super) struct CommandArgs {
    /// Descriptions of the images, one argument per image
    #[arg(value_name = "DESCRIPTION", required_unless_present = "file")]
    descriptions: Vec<String>,
    /// Id of the project that the images belong to
    #[arg(long, value_name = "ID", default_value_t = 1)]
    project: i64,
    /// Id of the job, a UUID; generated if absent. Repeating a command with the same id does not run its job again
    #[arg(long, value_name = "UUID")]
    job_id: Option<Uuid>,
    /// The command's `config` object, for example '{"seed": 7, "style_preset": "cinematic"}'
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// Set `config.expires_at` to this time from now, for example 30m: then no further request is sent for the job
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires_in: Option<Duration>,
    /// Read the whole command from a JSON file, or from standard input if FILE is -. A missing job_id is generated
    #[arg(long, value_name = "FILE", conflicts_with_all = ["descriptions", "project", "job_id", "config"])]
    file: Option<PathBuf>,
}

impl CommandArgs {
    /// Builds and validates the command.
    ///
    /// # Errors
    ///
    /// [`CliError::Usage`] names every field that is missing, unknown or out of range.
    pub(super) fn to_command(&self) -> Result<Command, CliError> {
        let body = match &self.file {
            Some(file) => ensure_job_id(read_body(file)?),
            None => self.build_body()?,
        };
        let mut command =
            Command::parse(&body, &bootstrap::rules()).map_err(|InvalidCommand { violations, .. }| {
                CliError::Usage(format!("invalid command:\n  {}", violations.join("\n  ")))
            })?;
        if let Some(expires_in) = self.expires_in {
            // Whole seconds, as a person would write it.
            let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a nanosecond");
            command.config.expires_at = Some(now.saturating_add(expires_in.try_into().unwrap_or(time::Duration::MAX)));
        }
        Ok(command)
    }

    fn build_body(&self) -> Result<Vec<u8>, CliError> {
        let mut command = json!({
            "job_id": self.job_id.unwrap_or_else(Uuid::now_v7),
            "project_id": self.project,
            "image_descriptions": self.descriptions,
        });
        if let Some(config) = &self.config {
            let config: Value = serde_json::from_str(config)
                .map_err(|error| CliError::Usage(format!("--config: {config:?} is not JSON ({error})")))?;
            command["config"] = config;
        }
        Ok(command.to_string().into_bytes())
    }
}

fn read_body(file: &Path) -> Result<Vec<u8>, CliError> {
    let mut body = Vec::new();
    let result = if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut body)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut body))
    };
    match result {
        Ok(_) => Ok(body),
        Err(error) => Err(CliError::Usage(format!("--file: {} cannot be read ({error})", file.display()))),
    }
}

/// Adds a `job_id` if there is none. A body that is not a JSON object is returned unchanged; parsing rejects it later.
fn ensure_job_id(body: Vec<u8>) -> Vec<u8> {
    match serde_json::from_slice::<Map<String, Value>>(&body) {
        Ok(mut object) if !object.contains_key("job_id") => {
            object.insert("job_id".to_owned(), json!(Uuid::now_v7()));
            Value::Object(object).to_string().into_bytes()
        }
        _ => body,
    }
}
