//! Concurrent calls during a rate-limit pause of the account.

use std::time::{Duration, Instant};

use stability_sandbox::{Sandbox, Settings};

use super::{builder, request};

/// Long enough to tell requests during the pause from requests after it.
const LOCKOUT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn no_call_sends_during_a_pause_and_all_finish() {
    let settings =
        Settings { limit: 3, window: Duration::from_millis(100), lockout: LOCKOUT / 2, ..Settings::default() };
    let sandbox = Sandbox::start(settings).await.expect("a free port");
    sandbox.set_latency(Duration::from_millis(300));
    let client = builder(&sandbox, "sk-sandbox").lockout(LOCKOUT).build().expect("a client");
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let client = client.clone();
        callers.spawn(async move { client.generate(&request()).await });
    }
    let mut spent = 0;
    for generated in callers.join_all().await {
        spent += generated.expect("the call waits for the end of the pause").usage.requests;
    }
    let arrivals = sandbox.request_log();
    assert_eq!(u32::try_from(arrivals.len()), Ok(spent));
    // Each 429 starts a pause, in which only requests that were already in flight may arrive.
    let refused: Vec<Instant> =
        arrivals.iter().filter(|arrival| arrival.status == Some(429)).map(|a| a.received_at).collect();
    let first = *refused.first().expect("four concurrent requests exceed the limit of three");
    let in_pause =
        arrivals.iter().filter(|arrival| arrival.received_at > first && arrival.received_at < first + LOCKOUT).count();
    assert!(in_pause <= 3, "more than three other requests were in flight: {in_pause}");
    let in_flight_until = first + Duration::from_millis(250);
    let late = arrivals.iter().filter(|a| a.received_at > in_flight_until && a.received_at < first + LOCKOUT).count();
    assert_eq!(late, 0, "requests were sent during the pause");
}
