//! Faults injected on request, by a marker in the prompt or by the control endpoint.
//!
//! A marker is written in brackets: `[fault:status=500]`, or `[upscale-fault:status=500]` for requests to upscale the
//! image of that prompt. With a count, it applies only to the first such requests: `[fault:drop x2]`. The faults cover
//! every kind of failure that a client must handle.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A fault that the sandbox can inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `status=503`: this status with the API's error body; `status=429:7` adds `Retry-After: 7`.
    Status(u16, Option<u64>),
    /// `filtered`: the image is blurred and has the finish reason `CONTENT_FILTERED`.
    Filtered,
    /// `error`: the finish reason is `ERROR`, which means that the image could not be finished.
    Error,
    /// `corrupt`: the image file is cut off in the middle.
    Corrupt,
    /// `wrong-size`: an image of 512x512, also where an image is to be upscaled.
    WrongSize,
    /// `blank`: an image of one colour.
    Blank,
    /// `blurred`: an image blurred beyond recognition, with the finish reason `SUCCESS`.
    Blurred,
    /// `bomb`: a small file whose header declares 30000x30000 pixels.
    Bomb,
    /// `oversized`: a body of 65 MiB, longer than the client accepts.
    Oversized,
    /// `truncated`: the response body ends in the middle.
    Truncated,
    /// `html`: an HTML page, with status 200.
    Html,
    /// `empty`: no body, with status 200.
    Empty,
    /// `slow=1500`: a normal response, this many milliseconds later.
    Slow(u64),
    /// `drop`: the connection breaks in the middle of the response.
    Drop,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let unknown_fault = || {
            format!(
                "unknown fault {text:?}; allowed: status=N, status=429:SECONDS, slow=MILLISECONDS, filtered, error, corrupt, wrong-size, blank, blurred, bomb, oversized, truncated, html, empty, drop"
            )
        };
        match name {
            "status" => {
                let (status, retry_after) = value.split_once(':').unwrap_or((value, ""));
                let status =
                    status.parse().ok().filter(|status| (400..600).contains(status)).ok_or_else(unknown_fault)?;
                let retry_after =
                    if retry_after.is_empty() { None } else { Some(retry_after.parse().map_err(|_| unknown_fault())?) };
                Ok(Self::Status(status, retry_after))
            }
            "slow" => value.parse().map(Self::Slow).map_err(|_| unknown_fault()),
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
            _ => Err(unknown_fault()),
        }
    }
}

impl Fault {
    /// Additional delay of the response.
    pub(crate) fn delay(self) -> Duration {
        match self {
            Self::Slow(ms) => Duration::from_millis(ms),
            _ => Duration::ZERO,
        }
    }
}

/// A fault to inject, with the requests that it applies to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    /// The fault as in a prompt marker, without `fault:`, such as `status=500`.
    pub fault: String,
    /// Number of requests that it applies to; all if unset.
    pub times: Option<u32>,
    /// Applies only to prompts that contain this text; to all if unset.
    pub prompt_contains: Option<String>,
}

struct InjectedFault {
    fault: Fault,
    remaining: Option<u32>,
    prompt_contains: Option<String>,
}

/// Injected faults, and the number of requests for each prompt with a marker.
#[derive(Default)]
pub(crate) struct Faults {
    injected: Vec<InjectedFault>,
    hits_by_prompt: HashMap<(Target, String), u32>,
}

/// What a fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Generation,
    Upscale,
}

impl Target {
    /// The beginning of a marker.
    fn marker(self) -> &'static str {
        match self {
            Self::Generation => "[fault:",
            Self::Upscale => "[upscale-fault:",
        }
    }
}

impl Faults {
    pub(crate) fn inject(&mut self, spec: FaultSpec) -> Result<(), String> {
        let FaultSpec { fault, times, prompt_contains } = spec;
        self.injected.push(InjectedFault { fault: fault.parse()?, remaining: times, prompt_contains });
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.injected.clear();
    }

    /// The fault for a request with this prompt, if any. Injected faults have precedence over markers.
    pub(crate) fn next_fault(&mut self, target: Target, prompt: &str) -> Result<Option<Fault>, String> {
        let injected = self.injected.iter_mut().find(|injected| {
            injected.remaining != Some(0) && injected.prompt_contains.as_ref().is_none_or(|text| prompt.contains(text))
        });
        if let Some(injected) = injected {
            injected.remaining = injected.remaining.map(|times| times - 1);
            return Ok(Some(injected.fault));
        }
        let Some(marker) = find_marker(target, prompt) else { return Ok(None) };
        let (name, times) = match marker.rsplit_once(" x") {
            None => (marker, None),
            Some((name, times)) => {
                (name, Some(times.parse::<u32>().map_err(|_| format!("fault {marker:?}: invalid count {times:?}"))?))
            }
        };
        let fault = name.trim().parse()?;
        let hits = self.hits_by_prompt.entry((target, prompt.to_owned())).or_default();
        *hits += 1;
        Ok((times.is_none_or(|times| *hits <= times)).then_some(fault))
    }
}

/// The text between the beginning of a marker and `]`.
fn find_marker(target: Target, prompt: &str) -> Option<&str> {
    let (_, rest) = prompt.split_once(target.marker())?;
    Some(rest.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_marker_triggers_its_fault_as_often_as_requested() {
        let mut faults = Faults::default();
        let twice = "A fox [fault:status=500 x2], 4k";
        assert_eq!(faults.next_fault(Target::Generation, twice), Ok(Some(Fault::Status(500, None))));
        assert_eq!(faults.next_fault(Target::Generation, twice), Ok(Some(Fault::Status(500, None))));
        assert_eq!(faults.next_fault(Target::Generation, twice), Ok(None));
        for _ in 0..5 {
            assert_eq!(
                faults.next_fault(Target::Generation, "A fox [fault:status=429:7]"),
                Ok(Some(Fault::Status(429, Some(7))))
            );
        }
        assert_eq!(faults.next_fault(Target::Generation, "A fox"), Ok(None));
        let upscaled = "An owl [upscale-fault:drop x1]";
        assert_eq!(faults.next_fault(Target::Generation, upscaled), Ok(None));
        assert_eq!(faults.next_fault(Target::Upscale, upscaled), Ok(Some(Fault::Drop)));
        assert_eq!(faults.next_fault(Target::Upscale, upscaled), Ok(None));
        assert_eq!(faults.next_fault(Target::Upscale, "A fox [fault:drop]"), Ok(None));
        assert!(
            faults
                .next_fault(Target::Generation, "A fox [fault:explode]")
                .is_err_and(|error| error.contains("explode"))
        );
    }

    #[test]
    fn injected_fault_applies_only_to_matching_prompts() {
        let mut faults = Faults::default();
        let order = FaultSpec { fault: "slow=5".into(), times: Some(1), prompt_contains: Some("fox".into()) };
        faults.inject(order).expect("a known fault");
        assert_eq!(faults.next_fault(Target::Generation, "A cat"), Ok(None));
        assert_eq!(faults.next_fault(Target::Generation, "A fox"), Ok(Some(Fault::Slow(5))));
        assert_eq!(faults.next_fault(Target::Generation, "A fox"), Ok(None));
    }
}
