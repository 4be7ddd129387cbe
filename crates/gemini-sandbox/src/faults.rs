//! What goes wrong on request.

use std::str::FromStr;

/// One way to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `status=503`: this status with the API's error body; of a 429 with the wait it asks for.
    Status(u16),
    /// `blocked`: the prompt is blocked before it is answered.
    Blocked,
    /// `safety`: the answer is cut off for safety.
    Safety,
    /// `max-tokens`: the answer ends in the middle.
    MaxTokens,
    /// `short`: one translation too few.
    Short,
    /// `swapped`: the translations stand in another order.
    Swapped,
    /// `fenced`: good JSON between fences.
    Fenced,
    /// `prose`: a sentence instead of JSON.
    Prose,
    /// `chinese`: the texts come back as they are.
    Chinese,
    /// `slow`: the answer comes after ten minutes.
    Slow,
    /// `suspended`: the key is suspended, and repeated in full.
    Suspended,
    /// `html`: a page of something in between, with status 200.
    Html,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "fault {text:?} is not known; status=N, blocked, safety, max-tokens, short, swapped, fenced, prose, chinese, slow, suspended, html"
            )
        };
        if let Some(status) = text.strip_prefix("status=") {
            let status = status.parse().ok().filter(|status| (400..600).contains(status));
            return status.map(Self::Status).ok_or_else(refused);
        }
        match text {
            "blocked" => Ok(Self::Blocked),
            "safety" => Ok(Self::Safety),
            "max-tokens" => Ok(Self::MaxTokens),
            "short" => Ok(Self::Short),
            "swapped" => Ok(Self::Swapped),
            "fenced" => Ok(Self::Fenced),
            "prose" => Ok(Self::Prose),
            "chinese" => Ok(Self::Chinese),
            "slow" => Ok(Self::Slow),
            "suspended" => Ok(Self::Suspended),
            "html" => Ok(Self::Html),
            _ => Err(refused()),
        }
    }
}

/// The fault that one of these texts asks for: `[gemini:blocked]`.
pub(crate) fn in_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Option<Fault>, String> {
    let word = texts.into_iter().find_map(|text| Some(text.split_once("[gemini:")?.1.split_once(']')?.0));
    word.map(str::parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_a_text_is_a_fault() {
        assert_eq!(in_texts(["狐狸", "熊 [gemini:status=503]"]), Ok(Some(Fault::Status(503))));
        assert_eq!(in_texts(["狐狸", "熊"]), Ok(None));
        assert!(in_texts(["熊 [gemini:explode]"]).is_err_and(|error| error.contains("explode")));
    }
}
