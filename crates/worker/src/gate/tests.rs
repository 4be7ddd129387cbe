//! Tests of what a closed gate means for this worker.

use store::{Pause, Refusal};
use time::OffsetDateTime;

use super::*;

fn paused() -> GateReason {
    GateReason::Paused(Pause { since: OffsetDateTime::UNIX_EPOCH, reason: None })
}

fn refused(code: JobFailureCode) -> GateReason {
    GateReason::Refused(Refusal { code, detail: String::new(), since: OffsetDateTime::UNIX_EPOCH })
}

fn budget_spent() -> GateReason {
    GateReason::DailyBudget { limit: domain::money::MicroUsd(70_000) }
}

/// A state with these reasons, whose latest probe is number 2.
fn state(reasons: &[GateReason]) -> GateState {
    let (latest_probe, reasons) = (Some(Probe(2)), reasons.to_vec());
    GateState { reasons, latest_probe, ..GateState::default() }
}

#[test]
fn each_reason_limits_intake_and_attempts() {
    let (old, latest) = (Probe(1), Probe(2));
    let probed = |reasons: &[GateReason]| GateState { own_probe: Some(latest), ..state(reasons) };
    let unauthorized = || refused(JobFailureCode::Unauthorized);
    let no_credits = || refused(JobFailureCode::InsufficientCredits);
    // The state, what it takes, and whether it interrupts attempts that started while the gate was open, after an
    // older probe, and after the latest probe.
    let table = [
        (state(&[]), Intake::All, [false, false, false]),
        (GateState { budget_may_be_refunded: true, ..state(&[]) }, Intake::Closed, [false, false, false]),
        (state(&[budget_spent()]), Intake::Closed, [false, false, false]),
        (state(&[paused()]), Intake::Closed, [true, true, true]),
        (state(&[unauthorized()]), Intake::Closed, [true, true, false]),
        (state(&[no_credits()]), Intake::Closed, [true, true, false]),
        (probed(&[unauthorized()]), Intake::One(latest), [true, true, false]),
        (probed(&[no_credits()]), Intake::One(latest), [true, true, false]),
        (probed(&[paused(), unauthorized()]), Intake::Closed, [true, true, true]),
        (probed(&[budget_spent(), no_credits()]), Intake::Closed, [true, true, false]),
        (probed(&[]), Intake::All, [false, false, false]),
    ];
    for (state, intake, interrupted) in table {
        assert_eq!(state.intake(), intake, "{state:?}");
        assert_eq!([None, Some(old), Some(latest)].map(|probe| state.interrupts(probe)), interrupted, "{state:?}");
    }
}

#[test]
fn every_reason_has_a_metric_label() {
    let reasons =
        [paused(), budget_spent(), refused(JobFailureCode::Unauthorized), refused(JobFailureCode::InsufficientCredits)];
    assert_eq!(reasons.map(|reason| reason.name()), GateReason::NAMES);
}
