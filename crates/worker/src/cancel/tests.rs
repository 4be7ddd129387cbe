use super::*;

#[test]
fn first_reason_wins() {
    let token = CancelToken::child_of(&CancellationToken::new());
    assert_eq!(token.reason(), None);
    assert!(token.cancel(CancelReason::Preempted));
    assert!(!token.clone().cancel(CancelReason::SuccessRateUnreachable));
    assert_eq!(token.reason(), Some(&CancelReason::Preempted));
}

#[test]
fn later_reason_does_not_replace_a_stop() {
    let stop = CancellationToken::new();
    let token = CancelToken::child_of(&stop);
    stop.cancel();
    assert!(token.is_cancelled());
    assert!(!token.cancel(CancelReason::Infrastructure));
    assert_eq!(token.reason(), Some(&CancelReason::Stopped));
}

#[test]
fn cancelling_an_attempt_does_not_stop_its_parent() {
    let stop = CancellationToken::new();
    CancelToken::child_of(&stop).cancel(CancelReason::SuccessRateUnreachable);
    assert!(!stop.is_cancelled());
}

#[test]
fn stop_after_another_reason_is_noticed() {
    let stop = CancellationToken::new();
    let token = CancelToken::child_of(&stop);
    token.cancel(CancelReason::Preempted);
    assert!(!token.is_stopping());
    stop.cancel();
    assert!(token.is_stopping());
    assert_eq!(token.reason(), Some(&CancelReason::Preempted));
}
