//! Arguments of `submit`, `generate` and `estimate` that describe a command, or name a file with commands.
#![expect(clippy::doc_markdown, reason = "the documentation of arguments is what --help shows")]

use std::io::Read;
use std::path::{Path, PathBuf};

use domain::command::{Command, InvalidCommand};
use domain::strict_json;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::config_args::ConfigArgs;
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
    /// Read the whole command from a JSON file, or from standard input if FILE is -. A missing job_id is generated.
    /// A file whose name ends with .jsonl or .ndjson holds one command a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["descriptions", "project", "job_id", "config"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    config_args: ConfigArgs,
}

impl CommandArgs {
    /// The file with one command a line, if the arguments name one.
    pub(super) fn command_list(&self) -> Option<&Path> {
        let file = self.file.as_deref()?;
        let extension = file.extension()?;
        (extension == "jsonl" || extension == "ndjson").then_some(file)
    }

    /// The keys of `config` that flags set.
    pub(super) fn config_keys(&self) -> Map<String, Value> {
        self.config_args.to_keys()
    }

    /// Builds and validates the command.
    ///
    /// # Errors
    ///
    /// [`CliError::Usage`] names every field that is missing, unknown or out of range, or says that the file holds
    /// several commands.
    pub(super) fn to_command(&self) -> Result<Command, CliError> {
        if let Some(list) = self.command_list() {
            let message = format!("--file: {} holds one command a line; only one command is allowed", list.display());
            return Err(CliError::Usage(message));
        }
        let body = match &self.file {
            Some(file) => read_file(file)?,
            None => self.build_body()?,
        };
        parse_command(&body, &self.config_keys(), Uuid::now_v7).map_err(|InvalidCommand { violations, .. }| {
            CliError::Usage(format!("invalid command:\n  {}", violations.join("\n  ")))
        })
    }

    fn build_body(&self) -> Result<Vec<u8>, CliError> {
        let mut command = json!({"project_id": self.project, "image_descriptions": self.descriptions});
        if let Some(job_id) = self.job_id {
            command["job_id"] = json!(job_id);
        }
        if let Some(config) = &self.config {
            let config: Value = serde_json::from_str(config)
                .map_err(|error| CliError::Usage(format!("--config: {config:?} is not JSON ({error})")))?;
            command["config"] = config;
        }
        Ok(command.to_string().into_bytes())
    }
}

/// Reads a file, or standard input if it is `-`.
pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, CliError> {
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

/// Parses a command after adding `config_keys` to its `config`, and a `job_id` if it has none.
///
/// # Errors
///
/// [`InvalidCommand`] as [`Command::parse`].
pub(super) fn parse_command(
    body: &[u8],
    config_keys: &Map<String, Value>,
    new_job_id: impl FnOnce() -> Uuid,
) -> Result<Command, InvalidCommand> {
    let rules = bootstrap::rules();
    // Parsing reports a body that is not a JSON object.
    let Ok(Value::Object(mut command)) = strict_json::parse(body) else { return Command::parse(body, &rules) };
    if !command.contains_key("job_id") {
        command.insert("job_id".to_owned(), json!(new_job_id()));
    }
    if !config_keys.is_empty() {
        let config = command.entry("config").or_insert(Value::Null);
        if config.is_null() {
            *config = json!({});
        }
        if let Value::Object(config) = config {
            config.extend(config_keys.clone());
        }
    }
    Command::parse(Value::Object(command).to_string().as_bytes(), &rules)
}
