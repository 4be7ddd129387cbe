//! Formats errors for log lines and messages.

/// Formats an error and its causes in one line.
///
/// A cause whose text already ends the line is skipped: errors of other crates may repeat their source. Errors of this
/// crate never do.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
