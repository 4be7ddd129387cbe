//! `asset-worker`: see [`asset_worker::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    asset_worker::cli::main()
}
