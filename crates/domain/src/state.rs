//! The states of jobs, images and API keys, and every transition between them.
//!
//! The store performs these transitions and no others: each of its updates takes its precondition and its result from
//! here. `docs/state-machine.md` lists the transitions; a test compares it with this module.

/// A transition from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition<S: 'static> {
    /// The states it may start from; empty if the transition creates the row.
    pub from: &'static [S],
    /// The state it leads to.
    pub to: S,
}

macro_rules! states {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// All states.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used in rows.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

states! {
    /// The state of a job.
    JobState {
        /// No worker is running it; its command is on a queue.
        Waiting => "waiting",
        /// A worker has its lease.
        Running => "running",
        /// It succeeded; its terminal event is stored.
        Completed => "completed",
        /// It failed; its terminal event is stored.
        Failed => "failed",
        /// It was cancelled before its command arrived; it ends when the command arrives.
        Cancelled => "cancelled",
        /// It had ended, and was removed: only its id, digest and kind of end are kept.
        Purged => "purged",
    }
}

/// The transitions of a job.
pub mod job {
    use super::JobState::{Cancelled, Completed, Failed, Purged, Running, Waiting};
    use super::{JobState, Transition};

    /// The first claim creates the row.
    pub const CREATE: Transition<JobState> = Transition { from: &[], to: Running };
    /// The job fails before it was claimed: its command is invalid or exceeded the delivery limit.
    pub const FAIL_UNCLAIMED: Transition<JobState> = Transition { from: &[], to: Failed };
    /// The row is created before the command is published.
    pub const SUBMIT: Transition<JobState> = Transition { from: &[], to: Waiting };
    /// A cancellation creates the row of a job that is not known yet.
    pub const REMEMBER: Transition<JobState> = Transition { from: &[], to: Cancelled };
    /// A job that was cancelled before is submitted.
    pub const SUBMIT_REMEMBERED: Transition<JobState> = Transition { from: &[Cancelled], to: Waiting };
    /// A later claim of a job without a lease.
    pub const CLAIM: Transition<JobState> = Transition { from: &[Waiting, Cancelled], to: Running };
    /// A claim of a job whose lease expired.
    pub const TAKE_OVER: Transition<JobState> = Transition { from: &[Running], to: Running };
    /// The holder renews the lease.
    pub const RENEW: Transition<JobState> = Transition { from: &[Running], to: Running };
    /// The holder releases the lease before the job has ended.
    pub const RELEASE: Transition<JobState> = Transition { from: &[Running], to: Waiting };
    /// The job succeeded.
    pub const COMPLETE: Transition<JobState> = Transition { from: &[Running], to: Completed };
    /// The job failed.
    pub const FAIL: Transition<JobState> = Transition { from: &[Running], to: Failed };
    /// A cancelled or expired job without a lease fails.
    pub const FAIL_WAITING: Transition<JobState> = Transition { from: &[Waiting], to: Failed };
    /// An expired job without a lease has reached its success rate.
    pub const COMPLETE_WAITING: Transition<JobState> = Transition { from: &[Waiting], to: Completed };
    /// A purge removes an ended job.
    pub const PURGE: Transition<JobState> = Transition { from: &[Completed, Failed], to: Purged };
}

states! {
    /// The state of an image's row.
    RowState {
        /// Not attempted, or the attempt was interrupted.
        Pending => "pending",
        /// Its file is stored and its row is complete.
        Completed => "completed",
        /// It failed, permanently or with a retryable cause.
        Failed => "failed",
    }
}

/// The transitions of an image's row.
pub mod asset {
    use super::RowState::{Completed, Failed, Pending};
    use super::{RowState, Transition};

    /// The row is created.
    pub const CREATE: Transition<RowState> = Transition { from: &[], to: Pending };
    /// The image is completed.
    pub const COMPLETE: Transition<RowState> = Transition { from: &[Pending, Failed], to: Completed };
    /// The image failed.
    pub const FAIL: Transition<RowState> = Transition { from: &[Pending, Failed], to: Failed };
}

states! {
    /// The state of an API key, shared by all workers that use it.
    KeyState {
        /// Requests may be paid for.
        Accepted => "accepted",
        /// The API refused a paid request: the key is rejected or the account lacks credits. Nothing may be paid for.
        Refused => "refused",
        /// A worker asks the API for the account's credits. If they suffice, one of its jobs may pay.
        Probing => "probing",
        /// One job may pay, to find out whether the API accepts paid requests again.
        Admitting => "admitting",
    }
}

/// The transitions of an API key.
pub mod key {
    use super::KeyState::{Accepted, Admitting, Probing, Refused};
    use super::{KeyState, Transition};

    /// The first payment with the key creates its row.
    pub const CREATE: Transition<KeyState> = Transition { from: &[], to: Accepted };
    /// The API refuses a paid request.
    pub const REFUSE: Transition<KeyState> = Transition { from: &[Accepted], to: Refused };
    /// A worker starts a probe.
    pub const PROBE: Transition<KeyState> = Transition { from: &[Refused, Probing, Admitting], to: Probing };
    /// The first payment after a successful probe.
    pub const ADMIT: Transition<KeyState> = Transition { from: &[Probing], to: Admitting };
    /// The API refuses a paid request of the admitted job.
    pub const REFUSE_ADMITTED: Transition<KeyState> = Transition { from: &[Admitting], to: Refused };
    /// A paid request of the admitted job succeeds.
    pub const ACCEPT: Transition<KeyState> = Transition { from: &[Admitting], to: Accepted };
}

#[cfg(test)]
mod tests;
