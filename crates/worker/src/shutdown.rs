//! Shutdown: signal handling, and the two cancellation tokens of running jobs.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Exit code after a second stop signal: the process ended without finishing its work.
const FORCED_EXIT_CODE: i32 = 1;

/// Cancellation tokens that stop running jobs.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Once cancelled, no new request is sent; requests in flight finish.
    pub stop: CancellationToken,
    /// Once cancelled, requests in flight are dropped and leases are released.
    pub grace_expired: CancellationToken,
}

/// Listens for stop signals until it is dropped.
pub(crate) struct Signals {
    stop: CancellationToken,
    _listener: JoinSet<()>,
}

impl Signals {
    /// Starts listening: the first SIGTERM or SIGINT cancels the token; a second one ends the process at once.
    ///
    /// # Errors
    ///
    /// The I/O error if a signal handler cannot be installed.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = CancellationToken::new();
        let mut listener = JoinSet::new();
        let cancelled = stop.clone();
        listener.spawn(async move {
            let signal = next_signal(&mut terminate, &mut interrupt).await;
            info!(signal, "stop signal received");
            cancelled.cancel();
            let signal = next_signal(&mut terminate, &mut interrupt).await;
            warn!(signal, "second stop signal received; exiting immediately");
            std::process::exit(FORCED_EXIT_CODE);
        });
        Ok(Self { stop, _listener: listener })
    }

    /// The token that the first signal cancels.
    pub(crate) fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
