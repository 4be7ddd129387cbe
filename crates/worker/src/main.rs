//! `asset-worker`: see [`worker::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    worker::cli::main()
}
