//! Faults injected on request.

use std::str::FromStr;

/// A fault that the sandbox can inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `status=503`: this status with the API's error body; a 429 also specifies a retry delay of 0.05 s.
    Status(u16),
    /// `blocked`: the prompt is blocked; there is no candidate.
    Blocked,
    /// `safety`: the candidate has the finish reason `SAFETY` and no text.
    Safety,
    /// `max-tokens`: the text ends in the middle, with the finish reason `MAX_TOKENS`.
    MaxTokens,
    /// `short`: the last translation is missing.
    Short,
    /// `swapped`: the translations are in reverse order.
    Swapped,
    /// `fenced`: valid JSON in a Markdown code fence.
    Fenced,
    /// `prose`: a sentence instead of JSON.
    Prose,
    /// `chinese`: the texts are returned untranslated.
    Chinese,
    /// `slow`: the response comes after ten minutes.
    Slow,
    /// `suspended`: status 403 with a message that contains the whole key.
    Suspended,
    /// `html`: an HTML page, as from a proxy, with status 200.
    Html,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown_fault = || {
            format!(
                "unknown fault {text:?}; allowed: status=N, blocked, safety, max-tokens, short, swapped, fenced, prose, chinese, slow, suspended, html"
            )
        };
        if let Some(status) = text.strip_prefix("status=") {
            let status = status.parse().ok().filter(|status| (400..600).contains(status));
            return status.map(Self::Status).ok_or_else(unknown_fault);
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
            _ => Err(unknown_fault()),
        }
    }
}

/// The fault of the first marker in these texts, such as `[gemini:blocked]`.
pub(crate) fn find_in_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Option<Fault>, String> {
    let marker = texts.into_iter().find_map(|text| Some(text.split_once("[gemini:")?.1.split_once(']')?.0));
    marker.map(str::parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marker_in_a_text_selects_its_fault() {
        assert_eq!(find_in_texts(["狐狸", "熊 [gemini:status=503]"]), Ok(Some(Fault::Status(503))));
        assert_eq!(find_in_texts(["狐狸", "熊"]), Ok(None));
        assert!(find_in_texts(["熊 [gemini:explode]"]).is_err_and(|error| error.contains("explode")));
    }
}
