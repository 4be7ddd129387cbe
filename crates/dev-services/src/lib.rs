//! Real services for tests and the demo, and the demo itself. Nothing here is part of the product.
//!
//! In reading order: [`services`] obtains RabbitMQ and PostgreSQL and stops what it started; [`programs`] finds the
//! workspace's built programs; [`demo`] runs a job with them; [`live`] tests with the real API. All of them use
//! [`process`], [`wait`] and [`env_var`].

pub mod demo;
pub mod live;
pub mod node;
pub mod process;
pub mod programs;
pub mod python;
pub mod services;
mod tool_folder;
pub mod wait;

/// Prints a status message to standard error.
#[expect(clippy::print_stderr, reason = "developer tools print to the terminal")]
pub fn print_status(text: &str) {
    eprintln!("dev-services: {text}");
}

/// Returns an HTTP client that uses no proxy and times out after 10 seconds.
///
/// # Errors
///
/// If TLS cannot be initialised.
pub fn http_client() -> anyhow::Result<reqwest::Client> {
    // Fails only if a provider was installed before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // All requests go to this machine.
    Ok(reqwest::Client::builder().no_proxy().timeout(std::time::Duration::from_secs(10)).build()?)
}

/// Runs a cleanup in code that cannot await, such as `Drop`; blocks for at most 10 seconds and ignores errors.
pub fn run_cleanup_blocking(work: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(10), work).await? })
    });
    // Errors and panics of the cleanup are ignored.
    let _ = thread.join();
}

/// Returns an environment variable if it is set and not blank.
#[expect(clippy::disallowed_methods, reason = "the only place in this crate that reads the environment")]
pub fn env_var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}
