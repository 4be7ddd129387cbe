//! What a job and an image can be, and every step from one state to the next.
//!
//! The store makes these steps and no others: each of its updates takes its precondition and its result from here. `docs/state-machine.md` shows
//! the tables and is tested against them.

/// A step from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<S: 'static> {
    /// What it is called.
    pub name: &'static str,
    /// The states it can be made from; none for a row that is made by it.
    pub from: &'static [S],
    /// The state it leads to.
    pub to: S,
    /// When it is made, and by whom.
    pub when: &'static str,
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
    pub const OPEN: Step<JobState> =
        Step { name: "open", from: &[], to: Running, when: "a command is taken on for the first time" };
    /// A command that cannot be followed.
    pub const REFUSE: Step<JobState> = Step {
        name: "refuse",
        from: &[],
        to: Failed,
        when: "a command cannot be followed, or ends each worker before its job is claimed",
    };
    /// A later claim.
    pub const CLAIM: Step<JobState> =
        Step { name: "claim", from: &[Waiting], to: Running, when: "its command is delivered again" };
    /// A claim of what somebody else held.
    pub const TAKE_OVER: Step<JobState> = Step {
        name: "take over",
        from: &[Running],
        to: Running,
        when: "its command is delivered again and its lease has run out: whoever held it is gone",
    };
    /// A heartbeat.
    pub const RENEW: Step<JobState> =
        Step { name: "renew", from: &[Running], to: Running, when: "every few seconds, by the holder of the lease" };
    /// Work is put down.
    pub const RETURN: Step<JobState> = Step {
        name: "return",
        from: &[Running],
        to: Waiting,
        when: "the holder is told to stop, its slice is over, or the rest is tried again later",
    };
    /// A good end.
    pub const COMPLETE: Step<JobState> =
        Step { name: "complete", from: &[Running], to: Completed, when: "enough images are there; by the holder" };
    /// A bad end.
    pub const FAIL: Step<JobState> =
        Step { name: "fail", from: &[Running], to: Failed, when: "enough images cannot be had; by the holder" };
    /// Every step.
    pub const STEPS: &[Step<JobState>] = &[OPEN, REFUSE, CLAIM, TAKE_OVER, RENEW, RETURN, COMPLETE, FAIL];
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
    pub const OPEN: Step<RowState> = Step { name: "open", from: &[], to: Pending, when: "its job is opened" };
    /// It is made.
    pub const COMPLETE: Step<RowState> = Step {
        name: "complete",
        from: &[Pending, Failed],
        to: Completed,
        when: "its file is stored: generated, adopted, or from the cache; by the holder of the job's lease",
    };
    /// It is not made.
    pub const FAIL: Step<RowState> = Step {
        name: "fail",
        from: &[Pending, Failed],
        to: Failed,
        when: "it could not be made, or its job ends before its turn; a failure that may pass is tried again",
    };

    /// Every step.
    pub const STEPS: &[Step<RowState>] = &[OPEN, COMPLETE, FAIL];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table<S: Copy>(steps: &[Step<S>], name: impl Fn(S) -> &'static str) -> String {
        let row = |step: &Step<S>| {
            let from: Vec<_> = step.from.iter().map(|state| name(*state)).collect();
            let from = if from.is_empty() { "(none)".to_owned() } else { from.join(", ") };
            format!("| {} | {from} | {} | {} |\n", step.name, name(step.to), step.when)
        };
        let rows: String = steps.iter().map(row).collect();
        format!("| step | from | to | when |\n| --- | --- | --- | --- |\n{rows}")
    }

    #[test]
    fn the_documentation_shows_every_step_and_no_other() {
        let page = include_str!("../../../docs/state-machine.md");
        let jobs = table(job::STEPS, JobState::as_str);
        let images = table(image::STEPS, RowState::as_str);
        assert!(page.contains(&jobs), "docs/state-machine.md lacks this table:\n{jobs}");
        assert!(page.contains(&images), "docs/state-machine.md lacks this table:\n{images}");
        let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).count();
        assert_eq!(
            rows,
            job::STEPS.len() + image::STEPS.len() + 2,
            "docs/state-machine.md shows a step that is not there"
        );
    }

    #[test]
    fn what_has_ended_stays_as_it_is() {
        let ended = [JobState::Completed, JobState::Failed];
        assert!(job::STEPS.iter().all(|step| step.from.iter().all(|from| !ended.contains(from))));
        assert!(image::STEPS.iter().all(|step| !step.from.contains(&RowState::Completed)));
    }

    #[test]
    fn every_state_can_be_reached_and_none_but_the_ends_is_a_trap() {
        let reached: Vec<_> = job::STEPS.iter().map(|step| step.to).collect();
        assert!(JobState::ALL.iter().all(|state| reached.contains(state)));
        for state in [JobState::Waiting, JobState::Running] {
            assert!(job::STEPS.iter().any(|step| step.from.contains(&state) && step.to != state));
        }
    }
}
