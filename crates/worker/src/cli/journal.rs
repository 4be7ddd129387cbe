//! The journal of a file of commands: the ids of its jobs, and how many of them are on the queue.
//!
//! It stands beside the file, so that an interrupted submission continues with the same ids. One JSON object a line: a
//! header, the id of each command, and after each batch the number of confirmed commands.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::command_list::CommandList;
use super::exit::CliError;

/// Suffix of the name of the file.
const SUFFIX: &str = ".submitted";
/// The key of `config` that a repeated flag sets to another value.
const EXPIRES_AT: &str = "expires_at";

/// What was submitted: the file, and the flags that apply to each command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    file_sha256: String,
    commands: usize,
    /// The keys of `config` that flags set.
    pub(super) config: Map<String, Value>,
    pub(super) priority: Option<u8>,
}

impl Header {
    pub(super) fn new(list: &CommandList, config: Map<String, Value>, priority: Option<u8>) -> Self {
        Self { file_sha256: list.digest(), commands: list.len(), config, priority }
    }

    /// Whether another submission is the same: `expires_at` follows from the time at which it began.
    fn is_same(&self, other: &Self) -> bool {
        let without_time = |header: &Self| {
            let mut header = header.clone();
            header.config.entry(EXPIRES_AT).and_modify(|time| *time = json!(true));
            header
        };
        without_time(self) == without_time(other)
    }
}

impl Header {
    /// Whether the time of `expires_at` has passed.
    fn has_expired(&self) -> bool {
        let expires_at = self.config.get(EXPIRES_AT).and_then(Value::as_str);
        expires_at
            .and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok())
            .is_some_and(|expires_at| expires_at <= OffsetDateTime::now_utc())
    }
}

/// An open journal, which no other process may open.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// The submission that it belongs to: the first one.
    pub(super) header: Header,
    /// The ids of all commands, in the order of their lines.
    pub(super) ids: Vec<Uuid>,
    /// Number of commands that are on the queue: the first ones.
    pub(super) confirmed: usize,
    /// Whether an earlier submission has written the ids.
    pub(super) is_resumed: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Confirmed { confirmed: usize },
    Id { job_id: Uuid },
}

impl Journal {
    /// Opens the journal of a file, and reads the ids of an earlier submission. Without one, these `ids` are used.
    ///
    /// # Errors
    ///
    /// [`CliError::Usage`] if the journal cannot be read, is open in another process, belongs to another submission, or
    /// holds expired commands that were not sent.
    pub(super) fn open(file: &Path, header: Header, ids: Vec<Uuid>) -> Result<Self, CliError> {
        let mut name = OsString::from(file);
        name.push(SUFFIX);
        let path = PathBuf::from(name);
        let unusable = |error: io::Error| CliError::Usage(format!("{} cannot be used ({error})", path.display()));
        let options = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = options.map_err(unusable)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                CliError::Usage(format!("{} is in use: another process submits this file", path.display()))
            }
            TryLockError::Error(error) => unusable(error),
        })?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(unusable)?;
        let (first, known_ids, confirmed) = match parse(&text) {
            Contents::Complete(first, known_ids, confirmed) => (first, known_ids, confirmed),
            // Nothing has been sent before all ids were written.
            Contents::Unwritten => {
                return Ok(Self { file, path, header, ids, confirmed: 0, is_resumed: false });
            }
            Contents::Unknown => {
                return Err(CliError::Usage(format!(
                    "{} is not a journal of this program; move it, because the ids of the jobs are written there",
                    path.display()
                )));
            }
        };
        // A line that was not written to its end is removed.
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(complete as u64).map_err(unusable)?;
        let start_over = "to submit it again from its start, remove this file";
        if !first.is_same(&header) {
            return Err(CliError::Usage(format!(
                "{} belongs to another submission: the file or the flags were changed; {start_over}",
                path.display()
            )));
        }
        if confirmed < known_ids.len() && first.has_expired() {
            return Err(CliError::Usage(format!(
                "--expires-in: the other commands have expired since the submission began; {} of {} were sent; \
                 {start_over}: {}",
                confirmed,
                known_ids.len(),
                path.display()
            )));
        }
        Ok(Self { file, path, header: first, ids: known_ids, confirmed, is_resumed: true })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes header and ids durably, unless an earlier submission has written them.
    ///
    /// # Errors
    ///
    /// [`CliError::Unreachable`] if they cannot be written.
    pub(super) fn write_ids(&mut self) -> Result<(), CliError> {
        if self.is_resumed {
            return Ok(());
        }
        let mut text = json!(self.header).to_string() + "\n";
        for job_id in &self.ids {
            text += &json!(Line::Id { job_id: *job_id }).to_string();
            text.push('\n');
        }
        self.file.set_len(0).map_err(|error| self.unwritable(&error))?;
        self.append(&text)
    }

    /// Records durably that the first `confirmed` commands are on the queue.
    ///
    /// # Errors
    ///
    /// [`CliError::Unreachable`] if it cannot be written.
    pub(super) fn record_confirmed(&mut self, confirmed: usize) -> Result<(), CliError> {
        self.append(&(json!(Line::Confirmed { confirmed }).to_string() + "\n"))?;
        self.confirmed = confirmed;
        Ok(())
    }

    fn append(&mut self, text: &str) -> Result<(), CliError> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(|error| self.unwritable(&error))
    }

    fn unwritable(&self, error: &io::Error) -> CliError {
        CliError::unreachable(format!("{} cannot be written ({error})", self.path.display()))
    }
}

/// What a file contains.
enum Contents {
    /// All ids, and the number of confirmed commands.
    Complete(Header, Vec<Uuid>, usize),
    /// Nothing, or the beginning of a journal.
    Unwritten,
    /// Something else.
    Unknown,
}

fn parse(text: &str) -> Contents {
    let Some((first, lines)) = text.split_once('\n') else {
        // A header that was not written to its end.
        return if text.is_empty() || text.starts_with('{') { Contents::Unwritten } else { Contents::Unknown };
    };
    let Ok(header) = serde_json::from_str::<Header>(first) else { return Contents::Unknown };
    let (mut ids, mut confirmed) = (Vec::new(), None);
    for line in lines.lines() {
        match serde_json::from_str(line) {
            Ok(Line::Id { job_id }) => ids.push(job_id),
            Ok(Line::Confirmed { confirmed: count }) => confirmed = Some(count.min(header.commands)),
            // The last line may not be written to its end.
            Err(_) => {}
        }
    }
    match confirmed {
        _ if ids.len() == header.commands => Contents::Complete(header, ids, confirmed.unwrap_or_default()),
        None => Contents::Unwritten,
        Some(_) => Contents::Unknown,
    }
}
