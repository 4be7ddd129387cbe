//! The `asset-worker` program; see [`asset_worker::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    asset_worker::cli::main()
}
