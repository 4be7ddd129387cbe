//! Terminal output: results on standard output; progress, notes and log lines on standard error.

use std::io::{self, IsTerminal, Write};

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

use super::tables::EventView;

/// Standard output and standard error, which may be a terminal. Clones share the progress bars.
#[derive(Clone)]
pub(super) struct Screen {
    bars: MultiProgress,
    is_terminal: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { bars: MultiProgress::new(), is_terminal: io::stderr().is_terminal() }
    }

    /// Prints a result to standard output.
    pub(super) fn print(&self, text: &str) {
        // If the reader has closed the pipe, that is not an error of this program.
        let _ = self.bars.suspend(|| writeln!(io::stdout(), "{}", text.trim_end()));
    }

    /// Prints a result in the place of the one printed last, if standard output is a terminal; otherwise after it.
    pub(super) fn replace(&self, last: Option<&str>, text: &str) {
        let terminal = Term::stdout();
        if let Some(last) = last.filter(|last| !last.is_empty() && terminal.is_term()) {
            // If it fails, both are shown.
            let _ = terminal.clear_last_lines(last.trim_end().lines().count());
        }
        self.print(text);
    }

    /// Prints an error to standard error.
    pub(super) fn print_error(&self, text: &str) {
        self.print_note(&format!("asset-worker: {text}"));
    }

    /// Prints a note to standard error.
    pub(super) fn print_note(&self, text: &str) {
        let _ = self.bars.suspend(|| writeln!(io::stderr(), "{text}"));
    }

    /// Returns a writer for log lines that suspends the progress bar while it writes.
    pub(super) fn log_writer(&self) -> LogWriter {
        LogWriter(self.bars.clone())
    }

    /// Starts the progress display of a job with `total` images.
    pub(super) fn start_progress(&self, total: usize) -> Progress {
        Progress { screen: self.clone(), bar: self.add_bar(total, "images").map(|bar| bar.with_message("waiting")) }
    }

    /// Starts a bar that counts to `total`; `unit` names what it counts.
    pub(super) fn start_bar(&self, total: usize, unit: &'static str) -> CountBar {
        CountBar { screen: self.clone(), bar: self.add_bar(total, unit), total, unit }
    }

    /// Adds a bar if standard error is a terminal.
    fn add_bar(&self, total: usize, unit: &str) -> Option<ProgressBar> {
        self.is_terminal.then(|| {
            let template = format!("{{spinner}} [{{bar:40}}] {{pos}}/{{len}} {unit}  {{msg}}  {{elapsed}}");
            let style = ProgressStyle::with_template(&template).expect("the template is valid").progress_chars("=> ");
            let bar = ProgressBar::new(total as u64).with_style(style);
            bar.enable_steady_tick(std::time::Duration::from_millis(200));
            self.bars.add(bar)
        })
    }
}

/// Counts what is done: a bar on a terminal, otherwise one line for each change.
pub(super) struct CountBar {
    screen: Screen,
    bar: Option<ProgressBar>,
    total: usize,
    unit: &'static str,
}

impl CountBar {
    pub(super) fn set_position(&self, position: usize) {
        match &self.bar {
            Some(bar) => bar.set_position(position as u64),
            None if position > 0 => self.screen.print_note(&format!("{position} of {} {}", self.total, self.unit)),
            None => {}
        }
    }
}

impl Drop for CountBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress display of one job: a bar on a terminal, otherwise one line per image.
pub(super) struct Progress {
    screen: Screen,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Updates the display from an event.
    pub(super) fn show(&self, event: &EventView) {
        let Some(line) = event.progress_line() else { return };
        let data = &event.data;
        match &self.bar {
            None => self.screen.print_note(&line),
            Some(bar) => {
                bar.set_position(u64::from(data.succeeded + data.failed));
                bar.set_message(if data.failed == 0 { String::new() } else { format!("{} failed", data.failed) });
                if data.code.is_some() || event.is_started() {
                    self.screen.print_note(&line);
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[derive(Clone)]
pub(super) struct LogWriter(MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Formats data that is printed with `--json`.
pub(super) fn to_json(data: &impl Serialize) -> String {
    serde_json::to_string_pretty(data).expect("plain data serialises")
}
