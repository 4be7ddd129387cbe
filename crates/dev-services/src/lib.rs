//! Real services for tests and the demo, and the demo itself. Nothing here is part of the product.
//!
//! In reading order: [`services`] obtains RabbitMQ and PostgreSQL from wherever they can be had and stops what it started;
//! [`programs`] finds and starts our own built programs; [`demo`] plays the main job with them; [`live`] tests with the real API. [`process`], [`wait`] and
//! [`variable`] are what all of them need.

pub mod demo;
pub mod live;
pub mod process;
pub mod programs;
pub mod services;
pub mod wait;

/// Says something by the way.
#[expect(clippy::print_stderr, reason = "programs for developers speak to them")]
pub fn print_status(text: &str) {
    eprintln!("dev-services: {text}");
}

/// An HTTP client that gives up in good time.
///
/// # Errors
///
/// Where TLS cannot be set up.
pub fn http_client() -> anyhow::Result<reqwest::Client> {
    // Fails only where a provider was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // All it talks to is on this machine.
    Ok(reqwest::Client::builder().no_proxy().timeout(std::time::Duration::from_secs(10)).build()?)
}

/// Cleans up in a place where nothing can be awaited. What cannot be removed is in nobody's way.
pub fn run_cleanup_blocking(work: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(10), work).await? })
    });
    // Neither a failure nor a panic of it is of interest any more.
    let _ = thread.join();
}

/// An environment variable that is set and not empty.
#[expect(clippy::disallowed_methods, reason = "this crate's one door to the environment")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}
