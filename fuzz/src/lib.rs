//! Invariants that must hold for every input from outside. Each function takes bytes and panics if an invariant fails.
//!
//! `make fuzz` searches for such inputs. The corpus in `corpus/` contains earlier findings and seed inputs; an ordinary
//! test replays it.

mod answer;
mod command;
mod encoder;
mod picture;

pub use answer::check_answer;
pub use command::check_command;
pub use encoder::check_encoder;
pub use picture::check_picture;

/// The longest message, in characters: it is written into a header, a row and an event.
const MAX_MESSAGE_CHARS: usize = 4_000;

/// Asserts that a message is not empty, is at most [`MAX_MESSAGE_CHARS`] long, and is a single line.
fn assert_valid_message(text: &str) {
    assert!(!text.is_empty(), "the message is empty");
    assert!(text.chars().count() <= MAX_MESSAGE_CHARS, "the message has {} characters", text.chars().count());
    assert!(!text.contains(|c: char| c.is_control()), "the message contains a control character: {text:?}");
}
