//! Stopping: the signals that ask for it, and the two stop tokens of running jobs.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The exit code of a process that was told twice to stop: it ended without finishing its work.
const CUT_OFF: i32 = 1;

/// How running jobs are told to stop.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// No new request is sent; requests in flight come to their end.
    pub stop: CancellationToken,
    /// Requests in flight are dropped, and leases are released.
    pub grace_over: CancellationToken,
}

/// Listens to signals while it lives.
pub(crate) struct Signals {
    stop: CancellationToken,
    _listener: JoinSet<()>,
}

impl Signals {
    /// The first SIGTERM or SIGINT cancels the token; a second one ends the process at once.
    ///
    /// # Errors
    ///
    /// Where the system refuses to deliver signals.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = CancellationToken::new();
        let mut listener = JoinSet::new();
        let cancelled = stop.clone();
        listener.spawn(async move {
            let signal = next(&mut terminate, &mut interrupt).await;
            info!(signal, "told to stop");
            cancelled.cancel();
            let signal = next(&mut terminate, &mut interrupt).await;
            warn!(signal, "told to stop again; ending now");
            std::process::exit(CUT_OFF);
        });
        Ok(Self { stop, _listener: listener })
    }

    /// Cancelled by the first signal.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
