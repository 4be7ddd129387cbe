use super::*;

/// A step with its name, and when it is made and by what.
type Documented<S> = (Step<S>, &'static str, &'static str);

const JOB_STEPS: [Documented<JobState>; 8] = [
    (job::OPEN, "open", "a command is taken on for the first time"),
    (job::REFUSE, "refuse", "a command cannot be followed, or ends each worker before its job is claimed"),
    (job::CLAIM, "claim", "its command is delivered again"),
    (job::TAKE_OVER, "take over", "its command is delivered again and its lease has expired: its last worker is lost"),
    (job::RENEW, "renew", "every few seconds, by the holder of the lease"),
    (job::RETURN, "return", "the holder is told to stop, its slice is over, or the rest is tried again later"),
    (job::COMPLETE, "complete", "enough images are there; by the holder"),
    (job::FAIL, "fail", "enough images cannot be had; by the holder"),
];

const IMAGE_STEPS: [Documented<RowState>; 3] = [
    (image::OPEN, "open", "its job is opened"),
    (
        image::COMPLETE,
        "complete",
        "its file is stored: generated, adopted, or from the cache; by the holder of the job's lease",
    ),
    (image::FAIL, "fail", "it could not be made, or its job ends before its turn; a retryable failure is tried again"),
];

fn table<S: Copy>(steps: &[Documented<S>], name: impl Fn(S) -> &'static str) -> String {
    let row = |(step, step_name, when): &Documented<S>| {
        let from: Vec<_> = step.from.iter().map(|state| name(*state)).collect();
        let from = if from.is_empty() { "(none)".to_owned() } else { from.join(", ") };
        format!("| {step_name} | {from} | {} | {when} |\n", name(step.to))
    };
    let rows: String = steps.iter().map(row).collect();
    format!("| step | from | to | when |\n| --- | --- | --- | --- |\n{rows}")
}

#[test]
fn the_documentation_shows_every_step_and_no_other() {
    let page = include_str!("../../../../docs/state-machine.md");
    let jobs = table(&JOB_STEPS, JobState::as_str);
    let images = table(&IMAGE_STEPS, RowState::as_str);
    assert!(page.contains(&jobs), "docs/state-machine.md lacks this table:\n{jobs}");
    assert!(page.contains(&images), "docs/state-machine.md lacks this table:\n{images}");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).count();
    assert_eq!(rows, JOB_STEPS.len() + IMAGE_STEPS.len() + 2, "docs/state-machine.md shows a step that is not there");
}

#[test]
fn every_step_of_the_code_is_documented() {
    let code = include_str!("../state.rs");
    assert_eq!(
        code.matches("pub const ").count() - code.matches("pub const ALL").count(),
        JOB_STEPS.len() + IMAGE_STEPS.len()
    );
}

#[test]
fn what_has_ended_stays_as_it_is() {
    let ended = [JobState::Completed, JobState::Failed];
    assert!(JOB_STEPS.iter().all(|(step, ..)| step.from.iter().all(|from| !ended.contains(from))));
    assert!(IMAGE_STEPS.iter().all(|(step, ..)| !step.from.contains(&RowState::Completed)));
}

#[test]
fn every_state_can_be_reached_and_none_but_the_ends_is_a_trap() {
    let reached: Vec<_> = JOB_STEPS.iter().map(|(step, ..)| step.to).collect();
    assert!(JobState::ALL.iter().all(|state| reached.contains(state)));
    for state in [JobState::Waiting, JobState::Running] {
        assert!(JOB_STEPS.iter().any(|(step, ..)| step.from.contains(&state) && step.to != state));
    }
}
