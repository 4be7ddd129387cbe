//! The `asset-worker` program; see [`asset_worker::cli`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    asset_worker::cli::main()
}
