//! Pictures that cannot be used: damaged ones, and those that the caller does not accept.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::budget::{Budget, BudgetError, Reservation};

#[expect(clippy::unnecessary_wraps, reason = "a script holds answers and failures alike")]
fn damaged() -> Result<HttpResponse, Error> {
    let body = json!({"artifacts": [{"base64": "iVBORw=="}]}).to_string().into();
    Ok(HttpResponse { status: 200, body, ..HttpResponse::default() })
}

/// Accepts the picture number `accepted` (from 1) and no other; returns what the call used.
async fn generate(
    client: &Client,
    request: &TextToImage,
    accepted: u32,
    damaged: bool,
) -> Result<Usage, GenerateError> {
    let seen = AtomicU32::new(0);
    let accept = |generated: Generated| {
        let number = seen.fetch_add(1, Ordering::Relaxed) + 1;
        let reason = "of one colour".to_owned();
        ready(if number == accepted { Ok(generated.usage) } else { Err(UnusablePicture { reason, damaged }) })
    };
    client.generate_with(request, &CallOptions::default(), accept).await
}

fn seeded() -> TextToImage {
    request().seed(7).expect("a good seed")
}

#[tokio::test(start_paused = true)]
async fn unusable_picture_is_generated_once_more_without_a_wait() {
    let (client, transport) = client([good(), good()], 60);
    let usage = generate(&client, &request(), 2, false).await.expect("the second picture is accepted");
    assert_eq!(usage, Usage { requests: 2, possibly_charged: 2, retries: 1 });
    assert_eq!(transport.seconds(), [0.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn unusable_picture_is_not_generated_a_third_time() {
    for script in [[good(), good()], [damaged(), good()], [good(), damaged()]] {
        let (client, transport) = client(script, 60);
        let error = generate(&client, &request(), 0, false).await.expect_err("no picture is accepted");
        assert!(matches!(error.error, Error::Unusable(_) | Error::Damaged { .. }), "{error:?}");
        assert_eq!(error.usage, Usage { requests: 2, possibly_charged: 2, retries: 1 });
        assert_eq!(transport.seconds(), [0.0, 0.0]);
    }
}

#[tokio::test(start_paused = true)]
async fn extra_generation_is_used_once_with_retries_in_between() {
    let (client, transport) = client([good(), status(500, &json!({})), good()], 60);
    let error = generate(&client, &request(), 0, false).await.expect_err("no picture is accepted");
    assert_eq!(error.usage, Usage { requests: 3, possibly_charged: 2, retries: 2 });
    assert_eq!(transport.seconds(), [0.0, 0.0, 5.0]);
}

#[tokio::test(start_paused = true)]
async fn same_seed_repeats_only_damaged_pictures() {
    let (unlucky, transport) = client([good()], 60);
    let error = generate(&unlucky, &seeded(), 2, false).await.expect_err("it would be the same picture");
    assert_eq!(error.error.to_string(), "the picture cannot be used: of one colour");
    assert_eq!(transport.seconds(), [0.0]);
    let (lucky, transport) = client([good(), good()], 60);
    generate(&lucky, &seeded(), 2, true).await.expect("it was damaged on its way");
    assert_eq!(transport.seconds(), [0.0, 0.0]);
    let (lucky, transport) = client([damaged(), good()], 60);
    generate(&lucky, &seeded(), 1, false).await.expect("it was damaged on its way");
    assert_eq!(transport.seconds(), [0.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn extra_generation_is_one_of_the_retries() {
    let failing = || status(500, &json!({}));
    let (used_up, transport) = client([failing(), failing(), failing(), good()], 60);
    let error = generate(&used_up, &request(), 2, false).await.expect_err("no retry is left");
    assert_eq!(error.usage, Usage { requests: 4, possibly_charged: 1, retries: 3 });
    assert_eq!(transport.seconds(), [0.0, 2.0, 7.0, 17.0]);
    // It takes the place of the first retry, so that the next wait is that of the second.
    let (client, transport) = client([good(), failing(), good()], 60);
    generate(&client, &request(), 2, false).await.expect("the third request succeeds");
    assert_eq!(transport.seconds(), [0.0, 0.0, 5.0]);
}

#[tokio::test(start_paused = true)]
async fn total_limit_covers_the_extra_generation() {
    let late = |minutes| {
        move |_| async move {
            sleep(Duration::from_mins(minutes)).await;
            Err::<(), _>(UnusablePicture { reason: "late".to_owned(), damaged: true })
        }
    };
    let (too_late, transport) = client([good()], 60);
    let result = too_late.generate_with(&request(), &CallOptions::default(), late(6)).await;
    assert_eq!(result.expect_err("5 minutes are over").error.kind(), "unusable");
    assert_eq!(transport.seconds(), [0.0]);
    // The limit does not begin anew with the extra generation.
    let (client, transport) = client([good(), too_many(Some(90))], 60);
    let result = client.generate_with(&request(), &CallOptions::default(), late(4)).await;
    assert_eq!(result.expect_err("one minute is left").error.kind(), "rate_limited");
    assert_eq!(transport.seconds(), [0.0, 240.0]);
}

/// Counts payments by their state.
#[derive(Default)]
struct Counter {
    reserved: AtomicU32,
    committed: AtomicU32,
}

#[async_trait]
impl Budget for Counter {
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        self.reserved.fetch_add(1, Ordering::Relaxed);
        Ok(Reservation(String::new()))
    }

    async fn commit(&self, _reservation: Reservation) {
        self.committed.fetch_add(1, Ordering::Relaxed);
    }

    async fn refund(&self, _reservation: Reservation) {}
}

#[tokio::test]
async fn picture_is_judged_after_turn_and_payment() {
    let (client, transport) = client([good()], 60);
    let counter = Counter::default();
    let options = CallOptions { budget: &counter, ..CallOptions::default() };
    let accept = |_| {
        assert_eq!(client.in_flight(), 0, "the turn was given up");
        assert_eq!(counter.committed.load(Ordering::Relaxed), 1, "the payment was committed");
        ready(Ok(()))
    };
    client.generate_with(&request(), &options, accept).await.expect("the picture is accepted");
    assert_eq!(counter.reserved.load(Ordering::Relaxed), 1);
    assert_eq!(transport.seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn extra_generation_is_paid_for() {
    let (client, transport) = client([good(), good()], 60);
    let counter = Counter::default();
    let options = CallOptions { budget: &counter, ..CallOptions::default() };
    let refuse = |_| ready(Err::<(), _>(UnusablePicture { reason: "of one colour".to_owned(), damaged: false }));
    client.generate_with(&request(), &options, refuse).await.expect_err("no picture is accepted");
    let paid = (counter.reserved.load(Ordering::Relaxed), counter.committed.load(Ordering::Relaxed));
    assert_eq!(paid, (2, 2));
    assert_eq!(transport.seconds(), [0.0, 0.0]);
}
