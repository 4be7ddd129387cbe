use super::*;

/// A transition with its name, and when and by which worker it is made.
type DocumentedTransition<S> = (Transition<S>, &'static str, &'static str);

const JOB_TRANSITIONS: [DocumentedTransition<JobState>; 14] = [
    (job::CREATE, "create", "a command is claimed for the first time"),
    (
        job::FAIL_UNCLAIMED,
        "fail unclaimed",
        "a command is invalid, or exceeds the delivery limit before its job is claimed",
    ),
    (
        job::SUBMIT,
        "submit",
        "the HTTP API accepts it, images of another job are to be made again, or the job is due later; its command is published next, or when it is due",
    ),
    (job::REMEMBER, "remember", "it is cancelled before its command has arrived"),
    (job::SUBMIT_REMEMBERED, "submit remembered", "it is submitted after its cancellation; it ends without a request"),
    (job::CLAIM, "claim", "its command is delivered again, or arrives after its submission or cancellation"),
    (job::TAKE_OVER, "take over", "its command is delivered again after its lease expired: the last holder is lost"),
    (job::RENEW, "renew", "every quarter of `WORKER_LEASE`, by the holder of the lease"),
    (job::RELEASE, "release", "the holder shuts down, its time slice ends, or the missing images are retried later"),
    (job::COMPLETE, "complete", "the required success rate is reached; by the holder of the lease"),
    (job::FAIL, "fail", "the job cannot succeed any more, or its last attempt failed; by the holder of the lease"),
    (
        job::FAIL_WAITING,
        "fail waiting",
        "it is cancelled, or expires, while no worker has its lease; or the broker gives up its command before it is claimed",
    ),
    (
        job::COMPLETE_WAITING,
        "complete waiting",
        "it expires while no worker has its lease, and the required success rate is reached",
    ),
    (
        job::PURGE,
        "purge",
        "it ended before `WORKER_RETENTION`, or `asset-worker purge` removes it; its events are published",
    ),
];

const ASSET_TRANSITIONS: [DocumentedTransition<RowState>; 3] = [
    (asset::CREATE, "create", "its job is created"),
    (
        asset::COMPLETE,
        "complete",
        "its file is stored: generated, adopted, or from the cache; by the holder of the job's lease",
    ),
    (asset::FAIL, "fail", "it failed, or its job ended before it was attempted; a retryable failure is retried"),
];

const KEY_TRANSITIONS: [DocumentedTransition<KeyState>; 6] = [
    (key::CREATE, "create", "a request is paid for with the key for the first time"),
    (key::REFUSE, "refuse", "the API refuses a paid request because of the key or the credits"),
    (
        key::PROBE,
        "probe",
        "the next probe is due, or `generate` starts one; never while the admitted job has its lease",
    ),
    (key::ADMIT, "admit", "the first payment of a job after a successful probe, by the worker that made the probe"),
    (key::REFUSE_ADMITTED, "refuse admitted", "the API refuses a paid request of the admitted job"),
    (key::ACCEPT, "accept", "a paid request of the admitted job succeeds"),
];

fn markdown_table<S: Copy>(steps: &[DocumentedTransition<S>], name: impl Fn(S) -> &'static str) -> String {
    let row = |(step, step_name, when): &DocumentedTransition<S>| {
        let from: Vec<_> = step.from.iter().map(|state| name(*state)).collect();
        let from = if from.is_empty() { "(none)".to_owned() } else { from.join(", ") };
        format!("| {step_name} | {from} | {} | {when} |\n", name(step.to))
    };
    let rows: String = steps.iter().map(row).collect();
    format!("| transition | from | to | when |\n| --- | --- | --- | --- |\n{rows}")
}

#[test]
fn documentation_lists_exactly_these_transitions() {
    let page = include_str!("../../../../docs/state-machine.md");
    let jobs = markdown_table(&JOB_TRANSITIONS, JobState::as_str);
    let images = markdown_table(&ASSET_TRANSITIONS, RowState::as_str);
    assert!(page.contains(&jobs), "docs/state-machine.md does not contain this table:\n{jobs}");
    let keys = markdown_table(&KEY_TRANSITIONS, KeyState::as_str);
    assert!(page.contains(&images), "docs/state-machine.md does not contain this table:\n{images}");
    assert!(page.contains(&keys), "docs/state-machine.md does not contain this table:\n{keys}");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).count();
    assert_eq!(
        rows,
        JOB_TRANSITIONS.len() + ASSET_TRANSITIONS.len() + KEY_TRANSITIONS.len() + 3,
        "docs/state-machine.md lists an unknown transition"
    );
}

#[test]
fn every_transition_in_code_is_documented() {
    let code = include_str!("../state.rs");
    assert_eq!(
        code.matches("pub const ").count() - code.matches("pub const ALL").count(),
        JOB_TRANSITIONS.len() + ASSET_TRANSITIONS.len() + KEY_TRANSITIONS.len()
    );
}

#[test]
fn only_a_purge_leaves_a_terminal_state() {
    let ended = [JobState::Completed, JobState::Failed];
    for (step, ..) in JOB_TRANSITIONS {
        let leaves_end = step.from.iter().any(|from| ended.contains(from));
        assert_eq!(leaves_end, step.to == JobState::Purged);
        assert!(!step.from.contains(&JobState::Purged));
    }
    assert!(ASSET_TRANSITIONS.iter().all(|(step, ..)| !step.from.contains(&RowState::Completed)));
}

#[test]
fn every_state_is_reachable_and_only_terminal_states_are_final() {
    let reached: Vec<_> = JOB_TRANSITIONS.iter().map(|(step, ..)| step.to).collect();
    assert!(JobState::ALL.iter().all(|state| reached.contains(state)));
    for state in [JobState::Waiting, JobState::Running] {
        assert!(JOB_TRANSITIONS.iter().any(|(step, ..)| step.from.contains(&state) && step.to != state));
    }
}
