//! How a job ends, given how its images ended.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::{ImageFailureCode, JobFailureCode};
use crate::image_spec::ImageFormat;
use crate::recipe::Recipe;

/// Where a finished image came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The API made it for this job.
    Generated,
    /// An image made before stands in.
    Cache,
}

impl Origin {
    /// The name in rows and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Cache => "cache",
        }
    }
}

/// A finished image: its file is stored whole and its row is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asset {
    /// The row's id.
    pub id: Uuid,
    /// The place of its description in the command, from 1.
    pub index: u32,
    /// The path below the storage root.
    pub file_path: String,
    /// Where a renderer opens it.
    pub uri: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// How the file is encoded.
    pub format: ImageFormat,
    /// Length of the file.
    pub size_bytes: u64,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: String,
    /// As the command has it.
    pub description: String,
    /// What the API was asked for.
    pub recipe: Recipe,
    /// As the API chose or took it.
    pub seed: u32,
    /// Where it came from.
    pub origin: Origin,
}

/// An image that was not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFailure {
    /// The place of its description in the command, from 1.
    pub index: u32,
    /// As the command has it.
    pub description: String,
    /// Why.
    pub code: ImageFailureCode,
    /// Why, in a sentence.
    pub message: String,
    /// Requests that were sent for it.
    pub attempts: u32,
    /// Whether it may succeed later.
    #[serde(skip)]
    pub may_pass: bool,
}

/// How far one image of a job has come.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageState {
    /// It has not been tried, or a try was cut off before its end.
    Untried,
    /// It is finished.
    Completed(Box<Asset>),
    /// It failed, for good or for now.
    Failed(ImageFailure),
}

/// The images of a job, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All images of the job.
    pub total: u32,
    /// Finished, cached ones included.
    pub completed: u32,
    /// Finished from the cache.
    pub from_cache: u32,
    /// Failed for a reason that stays.
    pub failed_for_good: u32,
    /// Failed for a reason that may pass.
    pub failed_for_now: u32,
    /// Those of `failed_for_now` whose reason is our own storage.
    pub failed_by_storage: u32,
    /// Neither.
    pub untried: u32,
}

/// Rates are compared with this tolerance, since 0.8 has no exact binary form.
const EPSILON: f64 = 1e-9;

impl Tally {
    /// Counts the images of a job.
    pub fn of<'a>(images: impl IntoIterator<Item = &'a ImageState>) -> Self {
        let mut tally = Self::default();
        for image in images {
            tally.total += 1;
            match image {
                ImageState::Untried => tally.untried += 1,
                ImageState::Completed(asset) => {
                    tally.completed += 1;
                    tally.from_cache += u32::from(asset.origin == Origin::Cache);
                }
                ImageState::Failed(failure) if failure.may_pass => {
                    tally.failed_for_now += 1;
                    tally.failed_by_storage += u32::from(failure.code == ImageFailureCode::Storage);
                }
                ImageState::Failed(_) => tally.failed_for_good += 1,
            }
        }
        tally
    }

    /// Failed, for good or for now.
    pub fn failed(&self) -> u32 {
        self.failed_for_good + self.failed_for_now
    }

    /// The share of images that are finished, 0 to 1.
    pub fn success_rate(&self) -> f64 {
        share(self.completed, self.total)
    }

    /// Whether enough images are finished.
    pub fn reached(&self, min_success_rate: f64) -> bool {
        self.success_rate() >= min_success_rate - EPSILON
    }

    /// Whether enough images can still be finished.
    pub fn reachable(&self, min_success_rate: f64) -> bool {
        share(self.total - self.failed_for_good, self.total) >= min_success_rate - EPSILON
    }
}

fn share(part: u32, total: u32) -> f64 {
    if total == 0 { 0.0 } else { f64::from(part) / f64::from(total) }
}

/// What becomes of a job after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is done; some images may have failed.
    Complete,
    /// What is missing is tried again later.
    TryAgain,
    /// It has failed.
    Fail(JobFailureCode),
}

/// Decides after a try of a job.
///
/// `fatal` is the cause, if any, that every further request would have met; `tries_left` says whether another try is allowed.
///
/// A job whose images have all been tried completes as soon as its rate is reached, even if some failures might pass. A job whose
/// rate cannot be reached any more fails at once, and so does one whose fatal cause stays.
pub fn decide(tally: &Tally, min_success_rate: f64, fatal: Option<JobFailureCode>, tries_left: bool) -> Decision {
    if !tally.reachable(min_success_rate) {
        return Decision::Fail(JobFailureCode::SuccessRateTooLow);
    }
    let tries_left = tries_left && fatal.is_none_or(JobFailureCode::may_pass);
    let all_tried = tally.untried == 0;
    if tally.reached(min_success_rate) && (all_tried || !tries_left) {
        return Decision::Complete;
    }
    if tries_left {
        return Decision::TryAgain;
    }
    let missing_for_now = tally.failed_for_now + tally.untried;
    Decision::Fail(match fatal {
        Some(code) => code,
        None if missing_for_now == tally.failed_by_storage + tally.untried => JobFailureCode::AttemptsExhausted,
        None => JobFailureCode::SuccessRateTooLow,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tally(completed: u32, failed_for_good: u32, failed_for_now: u32, untried: u32) -> Tally {
        Tally {
            total: completed + failed_for_good + failed_for_now + untried,
            completed,
            failed_for_good,
            failed_for_now,
            untried,
            ..Tally::default()
        }
    }

    #[test]
    fn a_job_ends_as_the_contract_says() {
        use Decision::{Complete, Fail, TryAgain};
        use JobFailureCode::{AttemptsExhausted, BudgetExceeded, InsufficientCredits, SuccessRateTooLow};
        let check = |tally: Tally, fatal, tries_left, expected| {
            assert_eq!(decide(&tally, 0.8, fatal, tries_left), expected, "{tally:?} {fatal:?} {tries_left}");
        };
        // Everything was tried.
        check(tally(10, 0, 0, 0), None, true, Complete);
        check(tally(8, 2, 0, 0), None, true, Complete);
        check(tally(8, 0, 2, 0), None, true, Complete);
        check(tally(7, 3, 0, 0), None, true, Fail(SuccessRateTooLow));
        // Some failures may pass.
        check(tally(7, 1, 2, 0), None, true, TryAgain);
        check(tally(7, 1, 2, 0), None, false, Fail(SuccessRateTooLow));
        check(tally(0, 0, 10, 0), None, true, TryAgain);
        // It cannot be reached any more, so the rest is not tried.
        check(tally(0, 3, 0, 7), None, true, Fail(SuccessRateTooLow));
        check(tally(5, 3, 2, 0), None, true, Fail(SuccessRateTooLow));
        // A cause that every request would meet.
        check(tally(3, 0, 0, 7), Some(InsufficientCredits), true, TryAgain);
        check(tally(8, 0, 0, 2), Some(InsufficientCredits), true, TryAgain);
        check(tally(3, 0, 0, 7), Some(InsufficientCredits), false, Fail(InsufficientCredits));
        check(tally(8, 0, 0, 2), Some(InsufficientCredits), false, Complete);
        // Stand-ins from the cache made up for it.
        check(tally(10, 0, 0, 0), Some(InsufficientCredits), true, Complete);
        // A budget does not grow by waiting.
        check(tally(3, 0, 0, 7), Some(BudgetExceeded), true, Fail(BudgetExceeded));
        check(tally(8, 0, 0, 2), Some(BudgetExceeded), true, Complete);
        // Infrastructure was the cause.
        check(Tally { failed_by_storage: 3, ..tally(7, 0, 3, 0) }, None, false, Fail(AttemptsExhausted));
        check(Tally { failed_by_storage: 2, ..tally(7, 0, 3, 0) }, None, false, Fail(SuccessRateTooLow));
    }

    #[test]
    fn exactly_the_asked_share_is_enough_whatever_the_total() {
        for total in 1..=200_u32 {
            for percent in 0..=100_u32 {
                let needed = (total * percent).div_ceil(100);
                let rate = f64::from(percent) / 100.0;
                assert!(tally(needed, total - needed, 0, 0).reached(rate), "{needed} of {total} at {rate}");
                if needed > 0 {
                    assert!(
                        !tally(needed - 1, total - needed + 1, 0, 0).reached(rate),
                        "{needed} - 1 of {total} at {rate}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_job_never_completes_below_its_rate_and_never_waits_for_nothing(
            completed in 0..50_u32, good in 0..50_u32, now in 0..50_u32, untried in 0..50_u32,
            rate in 0.0..=1.0_f64, tries_left: bool, fatal: bool,
        ) {
            let tally = tally(completed, good, now, untried);
            let fatal = fatal.then_some(JobFailureCode::Unauthorized);
            match decide(&tally, rate, fatal, tries_left) {
                Decision::Complete => prop_assert!(tally.reached(rate)),
                Decision::TryAgain => {
                    prop_assert!(tries_left && tally.reachable(rate));
                    prop_assert!(now + untried > 0);
                }
                Decision::Fail(_) => prop_assert!(!tally.reached(rate) || !tally.reachable(rate)),
            }
        }
    }
}
