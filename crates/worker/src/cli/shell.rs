//! `completions` and `man`: what the shell of a user needs.

use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;

use super::exit::CliError;
use super::screen::Screen;

#[derive(Debug, clap::Args)]
pub(super) struct CompletionOptions {
    /// Shell whose completions are printed
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManOptions {
    /// Existing directory that the man pages are written to, for example ~/.local/share/man/man1
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Prints the completions of this program.
pub(super) fn print_completions(options: &CompletionOptions, mut command: Command, screen: &Screen) {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(options.shell, &mut command, name, &mut script);
    screen.print(&String::from_utf8_lossy(&script));
}

/// Writes a man page for the program and one for each subcommand.
pub(super) fn write_man_pages(options: &ManOptions, command: Command) -> Result<(), CliError> {
    clap_mangen::generate_to(command, &options.directory).map_err(|error| {
        CliError::Usage(format!("DIRECTORY: {} cannot be written ({error})", options.directory.display()))
    })
}
