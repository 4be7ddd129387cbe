//! What must hold of any bytes that come from outside. Each function takes some, and panics where it does not hold.
//!
//! `make fuzz` searches for such bytes; what was once found, and what shows the way, lies in `corpus/` and is replayed by an ordinary test.

mod answer;
mod command;
mod picture;

pub use answer::answer;
pub use command::command;
pub use picture::picture;

/// A message for people must not be longer than this many characters: it goes into a header, a row and an event.
const MAX_MESSAGE_CHARS: usize = 4_000;

/// A sentence for people: there is one, it is no book, and a log takes it as one line.
fn assert_sentence(text: &str) {
    assert!(!text.is_empty(), "nothing is said");
    assert!(text.chars().count() <= MAX_MESSAGE_CHARS, "{} characters are said", text.chars().count());
    assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
}
