//! What goes wrong on request: by a word in the prompt, or by the control endpoint.
//!
//! A word stands in brackets: `[fault:status=500]`, and with a count only the first requests of that prompt meet it:
//! `[fault:timeout x2]`. Faults can be had in every kind a client must survive.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// One way to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `status=503`: this status with the API's error body; `status=429:7` adds `Retry-After: 7`.
    Status(u16, Option<u64>),
    /// `filtered`: the picture is made and, blurred, withheld.
    Filtered,
    /// `error`: the API says that the picture could not be finished.
    Error,
    /// `corrupt`: the picture's bytes are damaged.
    Corrupt,
    /// `wrong-size`: a picture of 512x512.
    WrongSize,
    /// `blank`: a picture of one colour.
    Blank,
    /// `blurred`: a picture that is blurred away, sent as if it were good.
    Blurred,
    /// `bomb`: a small file that unpacks to a picture of 30000x30000.
    Bomb,
    /// `oversized`: a body of 40 MiB.
    Oversized,
    /// `truncated`: the JSON ends in the middle.
    Truncated,
    /// `html`: a page instead of JSON, with status 200.
    Html,
    /// `empty`: no body, with status 200.
    Empty,
    /// `slow=1500`: this many milliseconds later, but well.
    Slow(u64),
    /// `drop`: the connection breaks in the middle of the answer.
    Drop,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let refused = || {
            format!(
                "fault {text:?} is not known; status=N, status=429:SECONDS, slow=MILLISECONDS, filtered, error, corrupt, wrong-size, blank, blurred, bomb, oversized, truncated, html, empty, drop"
            )
        };
        match name {
            "status" => {
                let (status, wait) = value.split_once(':').unwrap_or((value, ""));
                let status = status.parse().ok().filter(|status| (400..600).contains(status)).ok_or_else(refused)?;
                let wait = if wait.is_empty() { None } else { Some(wait.parse().map_err(|_| refused())?) };
                Ok(Self::Status(status, wait))
            }
            "slow" => value.parse().map(Self::Slow).map_err(|_| refused()),
            "filtered" => Ok(Self::Filtered),
            "error" => Ok(Self::Error),
            "corrupt" => Ok(Self::Corrupt),
            "wrong-size" => Ok(Self::WrongSize),
            "blank" => Ok(Self::Blank),
            "blurred" => Ok(Self::Blurred),
            "bomb" => Ok(Self::Bomb),
            "oversized" => Ok(Self::Oversized),
            "truncated" => Ok(Self::Truncated),
            "html" => Ok(Self::Html),
            "empty" => Ok(Self::Empty),
            "drop" => Ok(Self::Drop),
            _ => Err(refused()),
        }
    }
}

impl Fault {
    /// How much later than usual the answer comes.
    pub(crate) fn delay(self) -> Duration {
        match self {
            Self::Slow(ms) => Duration::from_millis(ms),
            _ => Duration::ZERO,
        }
    }
}

/// A fault that the control endpoint was asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultOrder {
    /// As it would stand in a prompt, without `fault:`, such as `status=500`.
    pub fault: String,
    /// How many requests meet it; all unless set.
    pub times: Option<u32>,
    /// Only prompts that hold this text; all unless set.
    pub prompt_contains: Option<String>,
}

struct Ordered {
    fault: Fault,
    times: Option<u32>,
    prompt_contains: Option<String>,
}

/// The faults in force.
#[derive(Default)]
pub(crate) struct Faults {
    ordered: Vec<Ordered>,
    met: HashMap<String, u32>,
}

impl Faults {
    pub(crate) fn order(&mut self, order: FaultOrder) -> Result<(), String> {
        let FaultOrder { fault, times, prompt_contains } = order;
        self.ordered.push(Ordered { fault: fault.parse()?, times, prompt_contains });
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.ordered.clear();
    }

    /// The fault that this request meets, if any. What was ordered comes before what stands in the prompt.
    pub(crate) fn next(&mut self, prompt: &str) -> Result<Option<Fault>, String> {
        let ordered = self.ordered.iter_mut().find(|ordered| {
            ordered.times != Some(0) && ordered.prompt_contains.as_ref().is_none_or(|text| prompt.contains(text))
        });
        if let Some(ordered) = ordered {
            ordered.times = ordered.times.map(|times| times - 1);
            return Ok(Some(ordered.fault));
        }
        let Some(word) = word_in(prompt) else { return Ok(None) };
        let (name, times) = match word.rsplit_once(" x") {
            None => (word, None),
            Some((name, times)) => {
                (name, Some(times.parse::<u32>().map_err(|_| format!("fault {word:?}: {times:?} is not a count"))?))
            }
        };
        let fault = name.trim().parse()?;
        let met = self.met.entry(prompt.to_owned()).or_default();
        *met += 1;
        Ok((times.is_none_or(|times| *met <= times)).then_some(fault))
    }
}

/// What stands between `[fault:` and `]`.
fn word_in(prompt: &str) -> Option<&str> {
    let (_, rest) = prompt.split_once("[fault:")?;
    Some(rest.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_the_prompt_is_met_as_often_as_it_says() {
        let mut faults = Faults::default();
        let twice = "A fox [fault:status=500 x2], 4k";
        assert_eq!(faults.next(twice), Ok(Some(Fault::Status(500, None))));
        assert_eq!(faults.next(twice), Ok(Some(Fault::Status(500, None))));
        assert_eq!(faults.next(twice), Ok(None));
        for _ in 0..5 {
            assert_eq!(faults.next("A fox [fault:status=429:7]"), Ok(Some(Fault::Status(429, Some(7)))));
        }
        assert_eq!(faults.next("A fox"), Ok(None));
        assert!(faults.next("A fox [fault:explode]").is_err_and(|error| error.contains("explode")));
    }

    #[test]
    fn an_ordered_fault_is_met_by_the_prompts_it_names() {
        let mut faults = Faults::default();
        let order = FaultOrder { fault: "slow=5".into(), times: Some(1), prompt_contains: Some("fox".into()) };
        faults.order(order).expect("a known fault");
        assert_eq!(faults.next("A cat"), Ok(None));
        assert_eq!(faults.next("A fox"), Ok(Some(Fault::Slow(5))));
        assert_eq!(faults.next("A fox"), Ok(None));
    }
}
