//! Points at which a test can hold the process, to kill it there. Only development builds have them.

/// Stays here where `ASSET_WORKER_PAUSE_AT` names this point, and says so in the log: until the file `ASSET_WORKER_PAUSE_UNTIL` is there, else for ever.
pub(crate) async fn reach(name: &'static str) {
    #[cfg(debug_assertions)]
    if is_asked_for(name) {
        tracing::warn!(point = name, "paused");
        while !is_over() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "as below")]
fn is_over() -> bool {
    std::env::var_os("ASSET_WORKER_PAUSE_UNTIL").is_some_and(|file| std::path::Path::new(&file).exists())
}

#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "no setting: it is for tests, and a released program does not have it")]
fn is_asked_for(name: &str) -> bool {
    std::env::var_os("ASSET_WORKER_PAUSE_AT").is_some_and(|asked| asked == name)
}
