//! Points at which a test can hold the process, to kill it there. Only development builds have them.

/// Stays here for ever where `ASSET_WORKER_PAUSE_AT` names this point, and says so in the log.
pub(crate) async fn point(name: &'static str) {
    #[cfg(debug_assertions)]
    if is_asked_for(name) {
        tracing::warn!(point = name, "paused");
        std::future::pending::<()>().await;
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "no setting: it is for tests, and a released program does not have it")]
fn is_asked_for(name: &str) -> bool {
    std::env::var_os("ASSET_WORKER_PAUSE_AT").is_some_and(|asked| asked == name)
}
