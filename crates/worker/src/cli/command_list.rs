//! A file with one command a line.

use std::collections::HashMap;
use std::path::Path;

use domain::command::{Command, InvalidCommand};
use domain::digest;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::command_args::{parse_command, read_file};
use super::exit::CliError;

/// Number of invalid lines that an error lists.
const MAX_LISTED_LINES: usize = 20;

/// The lines of a file with commands; empty lines are skipped.
pub(super) struct CommandList {
    name: String,
    body: Vec<u8>,
}

impl CommandList {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// [`CliError::Usage`] if it cannot be read or has no command.
    pub(super) fn read(file: &Path) -> Result<Self, CliError> {
        let list = Self { name: file.display().to_string(), body: read_file(file)? };
        if list.lines().next().is_none() {
            return Err(CliError::Usage(format!("--file: {} is empty; one command a line is expected", list.name)));
        }
        Ok(list)
    }

    /// The SHA-256 of the file, in lower-case hex.
    pub(super) fn digest(&self) -> String {
        digest::sha256(&self.body)
    }

    /// Number of commands.
    pub(super) fn len(&self) -> usize {
        self.lines().count()
    }

    /// The lines with a command, each with its number from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &[u8])> {
        (1..).zip(self.body.split(|byte| *byte == b'\n')).filter(|(_, line)| !line.trim_ascii().is_empty())
    }

    /// Parses all commands, each with these keys added to its `config`. `new_job_id` gives the command at a position, from
    /// 0, an id if it has none.
    ///
    /// # Errors
    ///
    /// [`CliError::Usage`] names each invalid line with its fields, and each id that occurs twice.
    pub(super) fn parse(
        &self,
        config_keys: &Map<String, Value>,
        new_job_id: impl Fn(usize) -> Uuid,
    ) -> Result<Vec<Command>, CliError> {
        let mut commands = Vec::new();
        let mut violations = Vec::new();
        let mut lines_by_id = HashMap::new();
        for (position, (number, line)) in self.lines().enumerate() {
            match parse_command(line, config_keys, || new_job_id(position)) {
                Ok(command) => {
                    if let Some(first) = lines_by_id.insert(command.job_id, number) {
                        let job_id = command.job_id;
                        violations.push(format!("line {number}: job_id: {job_id} is also the id of line {first}"));
                    }
                    commands.push(command);
                }
                Err(InvalidCommand { violations: fields, .. }) => {
                    violations.push(format!("line {number}: {}", fields.join("; ")));
                }
            }
        }
        if violations.is_empty() {
            return Ok(commands);
        }
        let invalid = violations.len();
        violations.truncate(MAX_LISTED_LINES);
        if invalid > MAX_LISTED_LINES {
            violations.push(format!("and {} more lines", invalid - MAX_LISTED_LINES));
        }
        Err(CliError::Usage(format!("invalid commands in {}:\n  {}", self.name, violations.join("\n  "))))
    }
}
