//! Tests of [`CallOptions`]: cancellation and budget.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::budget::{Budget, BudgetError, Reservation};

/// A budget with a limited number of reservations, which records commits and refunds.
#[derive(Default)]
struct LimitedBudget {
    available: Mutex<Vec<u32>>,
    committed: Mutex<Vec<String>>,
    refunded: Mutex<Vec<String>>,
    unavailable: bool,
}

impl LimitedBudget {
    fn with_reservations(coins: u32) -> Self {
        Self { available: Mutex::new((1..=coins).rev().collect()), ..Self::default() }
    }
}

#[async_trait]
impl Budget for LimitedBudget {
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        if self.unavailable {
            return Err(BudgetError::Unavailable("the storage cannot be reached".into()));
        }
        let coin = self.available.lock().unwrap().pop();
        coin.map(|coin| Reservation(coin.to_string()))
            .ok_or_else(|| BudgetError::Exceeded("no reservation is left".into()))
    }

    async fn commit(&self, reservation: Reservation) {
        self.committed.lock().unwrap().push(reservation.0);
    }

    async fn refund(&self, reservation: Reservation) {
        self.refunded.lock().unwrap().push(reservation.0);
    }
}

/// Generates an image with these options, and accepts every complete image.
async fn generate(client: &Client, options: &CallOptions<'_>) -> Result<Generation, GenerateError> {
    client.generate_with(&request(), options, |generated| ready(Ok(generated))).await
}

#[tokio::test(start_paused = true)]
async fn every_request_is_reserved_and_uncharged_ones_are_refunded() {
    let script = [response(500, &json!({})), rate_limited(None), Err(Error::Timeout), ok_response()];
    let (client, _) = client(script, 60);
    let wallet = LimitedBudget::with_reservations(5);
    let options = CallOptions { budget: &wallet, ..CallOptions::default() };
    let generated = generate(&client, &options).await.expect("the fourth request succeeds");
    assert_eq!(request_counts(&generated.usage), (4, 2));
    assert_eq!(*wallet.available.lock().unwrap(), [5], "four requests were reserved");
    assert_eq!(
        *wallet.refunded.lock().unwrap(),
        ["1", "2"],
        "only requests that were certainly not charged are refunded"
    );
    assert_eq!(*wallet.committed.lock().unwrap(), ["3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn exceeded_budget_sends_nothing_and_is_fatal() {
    let (client, transport) = client([Err(Error::Timeout)], 60);
    let wallet = LimitedBudget::with_reservations(1);
    let options = CallOptions { budget: &wallet, ..CallOptions::default() };
    let error = generate(&client, &options).await.expect_err("no second reservation is left");
    assert_eq!(error.error.to_string(), "no reservation is left");
    assert!(error.error.class().fatal && !error.error.class().retryable);
    assert_eq!(error.usage.requests, 1);
    assert_eq!(transport.sent_seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn unavailable_budget_sends_nothing_and_is_retryable() {
    let (client, transport) = client([], 60);
    let wallet = LimitedBudget { unavailable: true, ..LimitedBudget::default() };
    let options = CallOptions { budget: &wallet, ..CallOptions::default() };
    let error = generate(&client, &options).await.expect_err("the budget is unavailable");
    assert!(error.error.class().retryable && !error.error.class().fatal, "{error:?}");
    assert!(transport.sent_seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_ends_the_wait_for_a_retry() {
    let (client, transport) = client([response(500, &json!({}))], 60);
    let options = CallOptions::default();
    let (stop, start) = (options.stop.clone(), Instant::now());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { generate(&client, &options).await });
    sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let error = tasks.join_next().await.expect("a task").expect("no panic").expect_err("the call was stopped");
    assert!(matches!(error.error, Error::Stopped), "{error:?}");
    assert_eq!(request_counts(&error.usage), (1, 0));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    assert_eq!(transport.sent_seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn stop_ends_the_waits_for_quota_and_turn() {
    let (client, transport) = client([], 60);
    client.inner.quota.pause(Instant::now() + Duration::from_mins(2)).await;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    // Four calls hold a turn and wait for the quota; the others wait for a turn.
    for _ in 0..6 {
        let (client, options) = (client.clone(), CallOptions { stop: stop.clone(), ..CallOptions::default() });
        tasks.spawn(async move { generate(&client, &options).await });
    }
    sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let start = Instant::now();
    for outcome in tasks.join_all().await {
        let error = outcome.expect_err("the call was stopped");
        assert!(matches!(error.error, Error::Stopped), "{error:?}");
        assert_eq!(error.usage, Usage::default());
    }
    assert!(start.elapsed().is_zero());
    assert!(transport.sent_seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_of_one_call_leaves_the_others_their_turns() {
    let (client, transport) = client([], 60);
    client.inner.quota.pause(Instant::now() + Duration::from_mins(2)).await;
    let mut holders = JoinSet::new();
    for _ in 0..4 {
        let client = client.clone();
        holders.spawn(async move { client.generate(&request()).await.map(drop) });
    }
    sleep(Duration::from_secs(1)).await;
    let options = CallOptions::default();
    let (stop, start) = (options.stop.clone(), Instant::now());
    let mut waiter = JoinSet::new();
    waiter.spawn({
        let client = client.clone();
        async move { generate(&client, &options).await }
    });
    sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let error = waiter.join_next().await.expect("a task").expect("no panic").expect_err("the call was stopped");
    assert!(matches!(error.error, Error::Stopped), "{error:?}");
    assert_eq!((start.elapsed(), client.in_flight()), (Duration::from_secs(1), 4));
    holders.shutdown().await;
    assert!(transport.sent_seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_reserved_before_the_quota_permits_a_request() {
    let (client, transport) = client([], 60);
    client.inner.quota.pause(Instant::now() + Duration::from_mins(2)).await;
    let wallet = LimitedBudget::with_reservations(1);
    let options = CallOptions { budget: &wallet, ..CallOptions::default() };
    let stop = async {
        sleep(Duration::from_secs(1)).await;
        options.stop.cancel();
    };
    let (result, ()) = tokio::join!(generate(&client, &options), stop);
    assert!(matches!(result.expect_err("the call was stopped").error, Error::Stopped));
    assert_eq!(*wallet.available.lock().unwrap(), [1], "nothing was reserved");
    assert!(transport.sent_seconds().is_empty());
}

/// A budget that reports `Exceeded` only after the call was stopped.
struct ExceededAfterStop(CancellationToken);

#[async_trait]
impl Budget for ExceededAfterStop {
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        self.0.cancelled().await;
        Err(BudgetError::Exceeded("no reservation is left".into()))
    }

    async fn commit(&self, _reservation: Reservation) {}

    async fn refund(&self, _reservation: Reservation) {}
}

#[tokio::test(start_paused = true)]
async fn budget_failure_after_a_stop_is_reported_as_stopped() {
    let (client, transport) = client([], 60);
    let stop = CancellationToken::new();
    let slow = ExceededAfterStop(stop.clone());
    let options = CallOptions { budget: &slow, stop: stop.clone(), ..CallOptions::default() };
    let stopping = async {
        sleep(Duration::from_secs(1)).await;
        stop.cancel();
    };
    let (result, ()) = tokio::join!(generate(&client, &options), stopping);
    assert!(matches!(result.expect_err("the call was stopped").error, Error::Stopped));
    assert!(transport.sent_seconds().is_empty());
}
