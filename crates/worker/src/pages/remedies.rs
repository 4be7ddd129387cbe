//! What to do about each failure, for the pages. `docs/operations.md` says more.

use domain::failure::{ImageFailureCode, JobFailureCode};

/// What to do about a failed image or job with this code; empty for a code that is not known.
pub(super) fn remedy(code: &str) -> &'static str {
    if let Ok(code) = code.parse::<ImageFailureCode>() {
        return image_remedy(code);
    }
    code.parse::<JobFailureCode>().map_or("", job_remedy)
}

fn image_remedy(code: ImageFailureCode) -> &'static str {
    match code {
        ImageFailureCode::ContentPolicy => "Change the description; the same text is refused again.",
        ImageFailureCode::InvalidImage => "Retry: another request may return a usable image.",
        ImageFailureCode::RateLimited => "Retry later, or raise the account's quota and STABILITY_RATE_LIMIT.",
        ImageFailureCode::ProviderUnavailable => "Retry once the API answers again.",
        ImageFailureCode::Timeout => "Retry; if it happens often, raise STABILITY_TIMEOUT.",
        ImageFailureCode::TranslationUnavailable => {
            "Write it in English, add it to the phrase book, or set GEMINI_API_KEY."
        }
        ImageFailureCode::RejectedRequest => {
            "Change the description or the config: the API refuses the request itself."
        }
        ImageFailureCode::Storage => "Check space and permissions of the storage, then retry.",
        ImageFailureCode::NotAttempted => "Remove the cause of the job's end, then retry.",
    }
}

fn job_remedy(code: JobFailureCode) -> &'static str {
    match code {
        JobFailureCode::SuccessRateTooLow => "See the failed images; retry them, or lower min_success_rate.",
        JobFailureCode::InvalidRequest => "Correct the command and submit it with another id.",
        JobFailureCode::Unauthorized => "Replace STABILITY_API_KEY, then retry.",
        JobFailureCode::InsufficientCredits => "Buy credits, then retry.",
        JobFailureCode::UnknownEngine => "Name an engine that the API has.",
        JobFailureCode::BudgetExceeded => "Raise max_cost_usd, or ask for fewer images.",
        JobFailureCode::AttemptsExhausted => "See the logs of the workers, then retry.",
        JobFailureCode::Cancelled => "Retry, if the images are wanted after all.",
        JobFailureCode::Expired => "Retry; the new job has no expires_at.",
    }
}
