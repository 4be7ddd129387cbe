//! What stops a call, and who pays for it.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::terms::{Budget, BudgetError, Receipt};

/// Pays as long as it has money, and remembers what it paid and what it got back.
#[derive(Default)]
struct Wallet {
    coins: Mutex<Vec<u32>>,
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
    async fn charge(&self) -> Result<Receipt, BudgetError> {
        if self.out_of_reach {
            return Err(BudgetError::Unavailable("no answer".into()));
        }
        let coin = self.coins.lock().unwrap().pop();
        coin.map(|coin| Receipt(coin.to_string())).ok_or_else(|| BudgetError::Exceeded("no coin is left".into()))
    }

    async fn settle(&self, receipt: Receipt, charged: bool) {
        if !charged {
            self.refunded.lock().unwrap().push(receipt.0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_is_paid_for_and_what_was_surely_free_is_given_back() {
    let script = [status(500, &json!({})), too_many(None), Err(Error::Timeout), good()];
    let (client, _) = client(script, 60);
    let wallet = Wallet::with(5);
    let terms = Terms { budget: &wallet, ..Terms::default() };
    let generated = client.generate_on(&terms, &request()).await.expect("the fourth request succeeds");
    assert_eq!(charged(&generated.spent), (4, 2));
    assert_eq!(*wallet.coins.lock().unwrap(), [5], "four requests were paid for");
    assert_eq!(*wallet.refunded.lock().unwrap(), ["1", "2"], "a time-out may have been charged");
}

#[tokio::test(start_paused = true)]
async fn without_money_nothing_is_sent_and_no_other_request_would_be() {
    let (client, transport) = client([Err(Error::Timeout)], 60);
    let wallet = Wallet::with(1);
    let terms = Terms { budget: &wallet, ..Terms::default() };
    let error = client.generate_on(&terms, &request()).await.expect_err("there is no second coin");
    assert_eq!(error.error.to_string(), "no coin is left");
    assert!(error.error.fate().fatal && !error.error.fate().retry);
    assert_eq!(error.spent.requests, 1);
    assert_eq!(transport.seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_budget_out_of_reach_lets_nothing_through_and_is_not_asked_again_at_once() {
    let (client, transport) = client([], 60);
    let wallet = Wallet { out_of_reach: true, ..Wallet::default() };
    let terms = Terms { budget: &wallet, ..Terms::default() };
    let error = client.generate_on(&terms, &request()).await.expect_err("nobody pays");
    assert!(error.error.fate().retry && !error.error.fate().fatal, "{error:?}");
    assert!(transport.seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_for_a_retry() {
    let (client, transport) = client([status(500, &json!({}))], 60);
    let terms = Terms::default();
    let (stop, start) = (terms.stop.clone(), Instant::now());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { client.generate_on(&terms, &request()).await });
    sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let error = tasks.join_next().await.expect("a task").expect("no panic").expect_err("it was stopped");
    assert!(matches!(error.error, Error::Stopped), "{error:?}");
    assert_eq!(charged(&error.spent), (1, 0));
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
        let (client, terms) = (client.clone(), Terms { stop: stop.clone(), ..Terms::default() });
        tasks.spawn(async move { client.generate_on(&terms, &request()).await });
    }
    sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let start = Instant::now();
    for outcome in tasks.join_all().await {
        let error = outcome.expect_err("it was stopped");
        assert!(matches!(error.error, Error::Stopped), "{error:?}");
        assert_eq!(error.spent, Spent::default());
    }
    assert!(start.elapsed().is_zero());
    assert!(transport.seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn retries_that_were_used_up_before_are_not_had_again() {
    let failing = || status(500, &json!({}));
    let (client, transport) = client([failing(), failing()], 60);
    let terms = Terms { retries_used: 2, ..Terms::default() };
    client.generate_on(&terms, &request()).await.expect_err("one retry is left");
    assert_eq!(transport.seconds(), [0.0, 10.0]);
}

#[tokio::test(start_paused = true)]
async fn whether_a_damaged_picture_is_asked_for_again_is_the_callers_choice() {
    let damaged = || {
        Ok(Answer {
            status: 200,
            body: json!({"artifacts": [{"base64": "iVBORw=="}]}).to_string().into(),
            ..Answer::default()
        })
    };
    let (usual, transport) = client([damaged(), good()], 60);
    usual.generate(&request()).await.expect("the second picture is whole");
    assert_eq!(transport.seconds(), [0.0, 2.0]);
    let (mut once, transport) = client([damaged()], 60);
    Arc::get_mut(&mut once.inner).expect("no clone").retries.damaged = false;
    let error = once.generate(&request()).await.expect_err("it is damaged");
    assert!(matches!(error.error, Error::Damaged { .. }), "{error:?}");
    assert_eq!(transport.seconds(), [0.0]);
}
