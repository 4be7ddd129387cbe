//! How `submit` and `generate` are told what to make.
#![expect(clippy::doc_markdown, reason = "the documentation of arguments is what --help shows")]

use std::io::Read;
use std::path::{Path, PathBuf};

use domain::command::{Command, InvalidCommand};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::exit::Failure;
use crate::bootstrap;

/// A command, from arguments or from a file.
#[derive(Debug, clap::Args)]
pub(super) struct Order {
    /// What the pictures show, one description each
    #[arg(value_name = "DESCRIPTION", required_unless_present = "file")]
    descriptions: Vec<String>,
    /// Project that the images belong to
    #[arg(long, value_name = "ID", default_value_t = 1)]
    project: i64,
    /// Id of the job, a UUID; a new one unless given. The same id with the same command has the effect of once
    #[arg(long, value_name = "UUID")]
    job_id: Option<Uuid>,
    /// The command's `config`, such as '{"seed": 7, "style_preset": "cinematic"}'
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// Read the whole command from a JSON file instead; - is standard input. Without a job_id in it, it gets a new one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["descriptions", "project", "job_id", "config"])]
    file: Option<PathBuf>,
}

impl Order {
    /// The command that was ordered.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] names every field that is missing, unknown or out of range.
    pub(super) fn command(&self) -> Result<Command, Failure> {
        let body = match &self.file {
            Some(file) => with_job_id(read(file)?),
            None => self.body()?,
        };
        Command::parse(&body, &bootstrap::rules()).map_err(|InvalidCommand { violations, .. }| {
            Failure::Usage(format!("the command is not valid:\n  {}", violations.join("\n  ")))
        })
    }

    fn body(&self) -> Result<Vec<u8>, Failure> {
        let mut command = json!({
            "job_id": self.job_id.unwrap_or_else(Uuid::now_v7),
            "project_id": self.project,
            "image_descriptions": self.descriptions,
        });
        if let Some(config) = &self.config {
            let config: Value = serde_json::from_str(config)
                .map_err(|error| Failure::Usage(format!("--config: {config:?} is not JSON ({error})")))?;
            command["config"] = config;
        }
        Ok(command.to_string().into_bytes())
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let result = if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut body)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut body))
    };
    match result {
        Ok(_) => Ok(body),
        Err(error) => Err(Failure::Usage(format!("--file: {} cannot be read ({error})", file.display()))),
    }
}

/// Adds an id where there is none; what is no JSON object stays as it is, and is refused later.
fn with_job_id(body: Vec<u8>) -> Vec<u8> {
    match serde_json::from_slice::<Map<String, Value>>(&body) {
        Ok(mut object) if !object.contains_key("job_id") => {
            object.insert("job_id".to_owned(), json!(Uuid::now_v7()));
            Value::Object(object).to_string().into_bytes()
        }
        _ => body,
    }
}
