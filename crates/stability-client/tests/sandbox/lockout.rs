//! A lock-out of the account, met by many callers at once.

use std::time::{Duration, Instant};

use stability_sandbox::{Sandbox, Settings};

use super::{builder, request};

/// Long enough to tell what came during it from what came after it.
const LOCKOUT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn ten_callers_send_nothing_from_the_first_429_until_the_pause_ends_and_all_of_them_finish() {
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
        spent += generated.expect("it waits the lock-out out").usage.requests;
    }
    let arrivals = sandbox.arrivals();
    assert_eq!(u32::try_from(arrivals.len()), Ok(spent));
    // Each 429 comes with a pause; nothing arrives in it but what was in flight already.
    let refused: Vec<Instant> = arrivals.iter().filter(|arrival| arrival.status == Some(429)).map(|a| a.at).collect();
    let first = *refused.first().expect("four at once are more than three");
    let in_pause = arrivals.iter().filter(|arrival| arrival.at > first && arrival.at < first + LOCKOUT).count();
    assert!(in_pause <= 3, "no more than three others were in flight: {in_pause}");
    let in_flight_until = first + Duration::from_millis(250);
    let late = arrivals.iter().filter(|a| a.at > in_flight_until && a.at < first + LOCKOUT).count();
    assert_eq!(late, 0, "not one request was sent in the pause");
}
