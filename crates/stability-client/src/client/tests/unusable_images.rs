//! Tests of unusable images: damaged ones, and those that the caller rejects.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::budget::{Budget, BudgetError, Reservation};

#[expect(clippy::unnecessary_wraps, reason = "a script contains responses and errors")]
fn damaged_response() -> Result<HttpResponse, Error> {
    let body = json!({"artifacts": [{"base64": "iVBORw=="}]}).to_string().into();
    Ok(HttpResponse { status: 200, body, ..HttpResponse::default() })
}

/// Accepts only image number `accepted` (from 1); returns the usage of the call.
async fn generate(
    client: &Client,
    request: &TextToImage,
    accepted: u32,
    damaged: bool,
) -> Result<Usage, GenerateError> {
    let seen = AtomicU32::new(0);
    let accept = |generated: Generation| {
        let number = seen.fetch_add(1, Ordering::Relaxed) + 1;
        let reason = "single colour".to_owned();
        ready(if number == accepted { Ok(generated.usage) } else { Err(UnusableImage { reason, damaged }) })
    };
    client.generate_with(request, &CallOptions::default(), accept).await
}

fn request_with_seed() -> TextToImage {
    request().seed(7).expect("a valid seed")
}

#[tokio::test(start_paused = true)]
async fn unusable_image_is_generated_once_more_without_delay() {
    let (client, transport) = client([ok_response(), ok_response()], 60);
    let usage = generate(&client, &request(), 2, false).await.expect("the second image is accepted");
    assert_eq!(usage, Usage { requests: 2, possibly_charged: 2, images: 2, retries: 1 });
    assert_eq!(transport.sent_seconds(), [0.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn unusable_image_is_not_generated_a_third_time() {
    for script in
        [[ok_response(), ok_response()], [damaged_response(), ok_response()], [ok_response(), damaged_response()]]
    {
        let (client, transport) = client(script, 60);
        let error = generate(&client, &request(), 0, false).await.expect_err("no image is accepted");
        assert!(matches!(error.error, Error::Unusable(_) | Error::Damaged { .. }), "{error:?}");
        assert_eq!(error.usage, Usage { requests: 2, possibly_charged: 2, images: 2, retries: 1 });
        assert_eq!(transport.sent_seconds(), [0.0, 0.0]);
    }
}

#[tokio::test(start_paused = true)]
async fn extra_generation_is_used_once_despite_retries_in_between() {
    let (client, transport) = client([ok_response(), response(500, &json!({})), ok_response()], 60);
    let error = generate(&client, &request(), 0, false).await.expect_err("no image is accepted");
    assert_eq!(error.usage, Usage { requests: 3, possibly_charged: 2, images: 2, retries: 2 });
    assert_eq!(transport.sent_seconds(), [0.0, 0.0, 5.0]);
}

#[tokio::test(start_paused = true)]
async fn explicit_seed_repeats_only_damaged_images() {
    let (unlucky, transport) = client([ok_response()], 60);
    let error = generate(&unlucky, &request_with_seed(), 2, false)
        .await
        .expect_err("the same seed would produce the same image");
    assert_eq!(error.error.to_string(), "the image cannot be used: single colour");
    assert_eq!(transport.sent_seconds(), [0.0]);
    let (lucky, transport) = client([ok_response(), ok_response()], 60);
    generate(&lucky, &request_with_seed(), 2, true).await.expect("a damaged image is generated once more");
    assert_eq!(transport.sent_seconds(), [0.0, 0.0]);
    let (lucky, transport) = client([damaged_response(), ok_response()], 60);
    generate(&lucky, &request_with_seed(), 1, false).await.expect("a damaged image is generated once more");
    assert_eq!(transport.sent_seconds(), [0.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn extra_generation_counts_as_a_retry() {
    let failing = || response(500, &json!({}));
    let (used_up, transport) = client([failing(), failing(), failing(), ok_response()], 60);
    let error = generate(&used_up, &request(), 2, false).await.expect_err("no retry is left");
    assert_eq!(error.usage, Usage { requests: 4, possibly_charged: 1, images: 1, retries: 3 });
    assert_eq!(transport.sent_seconds(), [0.0, 2.0, 7.0, 17.0]);
    // The extra generation counts as the first retry, so the next delay is that of the second.
    let (client, transport) = client([ok_response(), failing(), ok_response()], 60);
    generate(&client, &request(), 2, false).await.expect("the third request succeeds");
    assert_eq!(transport.sent_seconds(), [0.0, 0.0, 5.0]);
}

#[tokio::test(start_paused = true)]
async fn total_timeout_covers_the_extra_generation() {
    let late = |minutes| {
        move |_| async move {
            sleep(Duration::from_mins(minutes)).await;
            Err::<(), _>(UnusableImage { reason: "late".to_owned(), damaged: true })
        }
    };
    let (too_late, transport) = client([ok_response()], 60);
    let result = too_late.generate_with(&request(), &CallOptions::default(), late(6)).await;
    assert_eq!(result.expect_err("the time limit of 5 minutes is exceeded").error.kind(), "unusable");
    assert_eq!(transport.sent_seconds(), [0.0]);
    // The extra generation does not reset the time limit.
    let (client, transport) = client([ok_response(), rate_limited(Some(90))], 60);
    let result = client.generate_with(&request(), &CallOptions::default(), late(4)).await;
    assert_eq!(result.expect_err("a pause of 90 s exceeds the minute that is left").error.kind(), "rate_limited");
    assert_eq!(transport.sent_seconds(), [0.0, 240.0]);
}

/// A budget that counts reservations and commits.
#[derive(Default)]
struct CountingBudget {
    reserved: AtomicU32,
    committed: AtomicU32,
}

#[async_trait]
impl Budget for CountingBudget {
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
async fn accept_runs_after_turn_release_and_budget_commit() {
    let (client, transport) = client([ok_response()], 60);
    let counter = CountingBudget::default();
    let options = CallOptions { budget: &counter, ..CallOptions::default() };
    let accept = |_| {
        assert_eq!(client.in_flight(), 0, "the turn was released");
        assert_eq!(counter.committed.load(Ordering::Relaxed), 1, "the reservation was committed");
        ready(Ok(()))
    };
    client.generate_with(&request(), &options, accept).await.expect("the image is accepted");
    assert_eq!(counter.reserved.load(Ordering::Relaxed), 1);
    assert_eq!(transport.sent_seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn extra_generation_is_paid_for() {
    let (client, transport) = client([ok_response(), ok_response()], 60);
    let counter = CountingBudget::default();
    let options = CallOptions { budget: &counter, ..CallOptions::default() };
    let refuse = |_| ready(Err::<(), _>(UnusableImage { reason: "single colour".to_owned(), damaged: false }));
    client.generate_with(&request(), &options, refuse).await.expect_err("no image is accepted");
    let paid = (counter.reserved.load(Ordering::Relaxed), counter.committed.load(Ordering::Relaxed));
    assert_eq!(paid, (2, 2));
    assert_eq!(transport.sent_seconds(), [0.0, 0.0]);
}
