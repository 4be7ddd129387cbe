//! The worker. stub
pub mod broker;
mod causes;
pub mod event_sink;
pub mod health;
pub mod intake;
pub mod job;
pub mod parts;
pub mod picture;
pub mod settings;
pub mod storage;
pub mod store;
pub mod worker;
/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
