//! What a person sees: progress and log lines on standard error, results on standard output.

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use super::tables::Seen;

/// The terminal, or what stands in for it. Clones share it.
#[derive(Clone)]
pub(super) struct Screen {
    bars: MultiProgress,
    terminal: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { bars: MultiProgress::new(), terminal: io::stderr().is_terminal() }
    }

    /// Prints a result.
    pub(super) fn print(&self, text: &str) {
        // A reader that has seen enough and hung up is no failure of ours.
        let _ = self.bars.suspend(|| writeln!(io::stdout(), "{}", text.trim_end()));
    }

    /// Says what went wrong.
    pub(super) fn complain(&self, text: &str) {
        self.note(&format!("asset-worker: {text}"));
    }

    /// Says something by the way.
    pub(super) fn note(&self, text: &str) {
        let _ = self.bars.suspend(|| writeln!(io::stderr(), "{text}"));
    }

    /// Writes log lines without tearing the progress bar.
    pub(super) fn log_writer(&self) -> LogWriter {
        LogWriter(self.bars.clone())
    }

    /// Begins to show how a job of so many images comes along.
    pub(super) fn progress(&self, total: usize) -> Progress {
        let bar = self.terminal.then(|| {
            let style = ProgressStyle::with_template("{spinner} [{bar:40}] {pos}/{len} images  {msg}  {elapsed}")
                .expect("the template is well formed")
                .progress_chars("=> ");
            let bar = ProgressBar::new(total as u64).with_style(style).with_message("waiting");
            bar.enable_steady_tick(std::time::Duration::from_millis(200));
            self.bars.add(bar)
        });
        Progress { screen: self.clone(), bar }
    }
}

/// How one job comes along: a bar on a terminal, else a line an image.
pub(super) struct Progress {
    screen: Screen,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows what an event says.
    pub(super) fn show(&self, seen: &Seen) {
        let Some(line) = seen.line() else { return };
        let data = &seen.data;
        match &self.bar {
            None => self.screen.note(&line),
            Some(bar) => {
                bar.set_position(u64::from(data.succeeded + data.failed));
                bar.set_message(if data.failed == 0 { String::new() } else { format!("{} failed", data.failed) });
                if data.code.is_some() || seen.is_started() {
                    self.screen.note(&line);
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
