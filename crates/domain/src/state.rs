//! What a job and an image can be, and every step from one state to the next.
//!
//! The store makes these steps and no others: each of its updates takes its precondition and its result from here. `docs/state-machine.md` shows
//! the tables and is tested against them.

/// A step from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<S: 'static> {
    /// The states it can be made from; none for a row that is made by it.
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
            /// Every state.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in rows.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

states! {
    /// What a job is.
    JobState {
        /// Nobody works on it; its command is on a queue.
        Waiting => "waiting",
        /// Somebody holds its lease.
        Running => "running",
        /// It has ended well; its terminal event is stored.
        Completed => "completed",
        /// It has ended badly; its terminal event is stored.
        Failed => "failed",
    }
}

/// The steps of a job.
pub mod job {
    use super::JobState::{Completed, Failed, Running, Waiting};
    use super::{JobState, Step};

    /// The first claim.
    pub const OPEN: Step<JobState> = Step { from: &[], to: Running };
    /// A command that cannot be followed.
    pub const REFUSE: Step<JobState> = Step { from: &[], to: Failed };
    /// A later claim.
    pub const CLAIM: Step<JobState> = Step { from: &[Waiting], to: Running };
    /// A claim of what somebody else held.
    pub const TAKE_OVER: Step<JobState> = Step { from: &[Running], to: Running };
    /// A heartbeat.
    pub const RENEW: Step<JobState> = Step { from: &[Running], to: Running };
    /// Work is put down.
    pub const RETURN: Step<JobState> = Step { from: &[Running], to: Waiting };
    /// A good end.
    pub const COMPLETE: Step<JobState> = Step { from: &[Running], to: Completed };
    /// A bad end.
    pub const FAIL: Step<JobState> = Step { from: &[Running], to: Failed };
}

states! {
    /// What an image's row is.
    RowState {
        /// Not tried, or a try was cut off.
        Pending => "pending",
        /// Its file is stored and its row complete.
        Completed => "completed",
        /// It failed, for good or for now.
        Failed => "failed",
    }
}

/// The steps of an image's row.
pub mod image {
    use super::RowState::{Completed, Failed, Pending};
    use super::{RowState, Step};

    /// The row is made.
    pub const OPEN: Step<RowState> = Step { from: &[], to: Pending };
    /// It is made.
    pub const COMPLETE: Step<RowState> = Step { from: &[Pending, Failed], to: Completed };
    /// It is not made.
    pub const FAIL: Step<RowState> = Step { from: &[Pending, Failed], to: Failed };
}

#[cfg(test)]
mod tests;
