//! Failpoints: places where a test can pause the process, for example to kill it there. Only debug builds have them.

/// Pauses here if `ASSET_WORKER_PAUSE_AT` names this failpoint, and logs it.
///
/// The pause ends when the file that `ASSET_WORKER_PAUSE_UNTIL` names exists; if the variable is not set, it never
/// ends.
pub(crate) async fn reach(name: &'static str) {
    #[cfg(debug_assertions)]
    if is_asked_for(name) {
        tracing::warn!(point = name, "paused at a failpoint");
        while !is_over() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "not a setting: for tests only, and not in release builds")]
fn is_over() -> bool {
    std::env::var_os("ASSET_WORKER_PAUSE_UNTIL").is_some_and(|file| std::path::Path::new(&file).exists())
}

#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "not a setting: for tests only, and not in release builds")]
fn is_asked_for(name: &str) -> bool {
    std::env::var_os("ASSET_WORKER_PAUSE_AT").is_some_and(|asked| asked == name)
}
