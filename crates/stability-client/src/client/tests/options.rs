//! What stops a call, and what pays for it.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::budget::{Budget, BudgetError, Reservation};

/// Pays as long as it has money, and remembers what it paid and what it got back.
#[derive(Default)]
struct Wallet {
    coins: Mutex<Vec<u32>>,
    committed: Mutex<Vec<String>>,
    refunded: Mutex<Vec<String>>,
    out_of_reach: bool,
}

impl Wallet {
    fn with(coins: u32) -> Self {
        Self { coins: Mutex::new((1..=coins).rev().collect()), ..Self::default() }
    }
}

#[async_trait]
impl Budget for Wallet {
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        if self.out_of_reach {
            return Err(BudgetError::Unavailable("no answer".into()));
        }
        let coin = self.coins.lock().unwrap().pop();
        coin.map(|coin| Reservation(coin.to_string())).ok_or_else(|| BudgetError::Exceeded("no coin is left".into()))
    }

    async fn commit(&self, reservation: Reservation) {
        self.committed.lock().unwrap().push(reservation.0);
    }

    async fn refund(&self, reservation: Reservation) {
        self.refunded.lock().unwrap().push(reservation.0);
    }
}

/// Generates a picture with these options; every whole picture will do.
async fn generate(client: &Client, options: &CallOptions<'_>) -> Result<Generated, GenerateError> {
    client.generate_with(&request(), options, |generated| ready(Ok(generated))).await
}

#[tokio::test(start_paused = true)]
async fn every_request_is_paid_for_and_what_was_surely_free_is_given_back() {
    let script = [status(500, &json!({})), too_many(None), Err(Error::Timeout), good()];
    let (client, _) = client(script, 60);
    let wallet = Wallet::with(5);
    let options = CallOptions { budget: &wallet, ..CallOptions::default() };
    let generated = generate(&client, &options).await.expect("the fourth request succeeds");
    assert_eq!(charged(&generated.usage), (4, 2));
    assert_eq!(*wallet.coins.lock().unwrap(), [5], "four requests were paid for");
    assert_eq!(*wallet.refunded.lock().unwrap(), ["1", "2"], "a time-out may have been charged");
    assert_eq!(*wallet.committed.lock().unwrap(), ["3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn without_money_nothing_is_sent_and_no_other_request_would_be() {
    let (client, transport) = client([Err(Error::Timeout)], 60);
    let wallet = Wallet::with(1);
    let options = CallOptions { budget: &wallet, ..CallOptions::default() };
    let error = generate(&client, &options).await.expect_err("there is no second coin");
    assert_eq!(error.error.to_string(), "no coin is left");
    assert!(error.error.class().fatal && !error.error.class().retryable);
    assert_eq!(error.usage.requests, 1);
    assert_eq!(transport.seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_budget_out_of_reach_lets_nothing_through_and_is_not_asked_again_at_once() {
    let (client, transport) = client([], 60);
    let wallet = Wallet { out_of_reach: true, ..Wallet::default() };
    let options = CallOptions { budget: &wallet, ..CallOptions::default() };
    let error = generate(&client, &options).await.expect_err("the budget is unavailable");
    assert!(error.error.class().retryable && !error.error.class().fatal, "{error:?}");
    assert!(transport.seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_for_a_retry() {
    let (client, transport) = client([status(500, &json!({}))], 60);
    let options = CallOptions::default();
    let (stop, start) = (options.stop.clone(), Instant::now());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { generate(&client, &options).await });
    sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let error = tasks.join_next().await.expect("a task").expect("no panic").expect_err("it was stopped");
    assert!(matches!(error.error, Error::Stopped), "{error:?}");
    assert_eq!(charged(&error.usage), (1, 0));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    assert_eq!(transport.seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_for_the_quota_and_for_a_turn() {
    let (client, transport) = client([], 60);
    client.inner.quota.pause(Instant::now() + Duration::from_mins(2)).await;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    // Four have a turn and wait for the quota; the others wait for a turn.
    for _ in 0..6 {
        let (client, options) = (client.clone(), CallOptions { stop: stop.clone(), ..CallOptions::default() });
        tasks.spawn(async move { generate(&client, &options).await });
    }
    sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let start = Instant::now();
    for outcome in tasks.join_all().await {
        let error = outcome.expect_err("it was stopped");
        assert!(matches!(error.error, Error::Stopped), "{error:?}");
        assert_eq!(error.usage, Usage::default());
    }
    assert!(start.elapsed().is_zero());
    assert!(transport.seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_ends_the_wait_for_a_turn_while_others_keep_theirs() {
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
    let error = waiter.join_next().await.expect("a task").expect("no panic").expect_err("it was stopped");
    assert!(matches!(error.error, Error::Stopped), "{error:?}");
    assert_eq!((start.elapsed(), client.in_flight()), (Duration::from_secs(1), 4));
    holders.shutdown().await;
    assert!(transport.seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_reserved_before_the_quota_permits_a_request() {
    let (client, transport) = client([], 60);
    client.inner.quota.pause(Instant::now() + Duration::from_mins(2)).await;
    let wallet = Wallet::with(1);
    let options = CallOptions { budget: &wallet, ..CallOptions::default() };
    let stop = async {
        sleep(Duration::from_secs(1)).await;
        options.stop.cancel();
    };
    let (result, ()) = tokio::join!(generate(&client, &options), stop);
    assert!(matches!(result.expect_err("it was stopped").error, Error::Stopped));
    assert_eq!(*wallet.coins.lock().unwrap(), [1], "the coin was not spent");
    assert!(transport.seconds().is_empty());
}

/// A budget that is used up only after the call was stopped.
struct Slow(CancellationToken);

#[async_trait]
impl Budget for Slow {
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        self.0.cancelled().await;
        Err(BudgetError::Exceeded("no coin is left".into()))
    }

    async fn commit(&self, _reservation: Reservation) {}

    async fn refund(&self, _reservation: Reservation) {}
}

#[tokio::test(start_paused = true)]
async fn budget_that_fails_after_a_stop_is_a_stop() {
    let (client, transport) = client([], 60);
    let stop = CancellationToken::new();
    let slow = Slow(stop.clone());
    let options = CallOptions { budget: &slow, stop: stop.clone(), ..CallOptions::default() };
    let stopping = async {
        sleep(Duration::from_secs(1)).await;
        stop.cancel();
    };
    let (result, ()) = tokio::join!(generate(&client, &options), stopping);
    assert!(matches!(result.expect_err("it was stopped").error, Error::Stopped));
    assert!(transport.seconds().is_empty());
}
