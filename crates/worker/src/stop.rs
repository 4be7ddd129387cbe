//! SIGTERM and SIGINT.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What a process that was told twice to stop exits with: it did not do what it was started for.
const CUT_OFF: i32 = 1;

/// Listens to signals while it lives.
pub(crate) struct Stop {
    token: CancellationToken,
    _listener: JoinSet<()>,
}

impl Stop {
    /// The first SIGTERM or SIGINT cancels the token; a second one ends the process at once.
    ///
    /// # Errors
    ///
    /// Where the system does not let signals be listened to.
    pub(crate) fn on_signal() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let token = CancellationToken::new();
        let mut listener = JoinSet::new();
        let cancelled = token.clone();
        listener.spawn(async move {
            let signal = next(&mut terminate, &mut interrupt).await;
            info!(signal, "told to stop");
            cancelled.cancel();
            let signal = next(&mut terminate, &mut interrupt).await;
            warn!(signal, "told to stop again; ending now");
            std::process::exit(CUT_OFF);
        });
        Ok(Self { token, _listener: listener })
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
