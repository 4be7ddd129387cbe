//! Fair scheduling of requests that wait because the maximum number is in flight.
//!
//! Turns are granted by weighted round-robin among the tenants of a client, and in order of arrival within a tenant.

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A group of calls that shares a client fairly with other groups.
///
/// Calls that name no tenant belong to the default one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    /// Identifies the tenant.
    pub id: u128,
    /// Number of requests that the tenant may send in each round.
    pub weight: NonZeroU32,
}

impl Default for Tenant {
    /// Id 0, weight 1.
    fn default() -> Self {
        Self { id: 0, weight: NonZeroU32::MIN }
    }
}

/// Grants turns to the calls of a client: at most `capacity` are in use at a time.
pub(crate) struct FairScheduler {
    shared: Arc<Shared>,
}

/// Permission for one request in flight. Dropping it passes the turn on, or releases it if no call waits.
pub(crate) struct Turn {
    /// `None` if dropping the turn must not release it.
    shared: Option<Arc<Shared>>,
}

struct Shared(Mutex<SchedulerState>);

struct SchedulerState {
    /// Number of turns in total.
    capacity: usize,
    /// Number of unused turns. While it is above 0, no call waits.
    available: usize,
    /// The tenants with waiting calls; the first one is next.
    queues: VecDeque<TenantQueue>,
}

struct TenantQueue {
    tenant: Tenant,
    /// Number of turns left to the tenant in this round.
    turns_left: u32,
    waiters: VecDeque<oneshot::Sender<Turn>>,
}

impl FairScheduler {
    pub(crate) fn new(capacity: NonZeroUsize) -> Self {
        let all = capacity.get();
        let state = SchedulerState { capacity: all, available: all, queues: VecDeque::new() };
        Self { shared: Arc::new(Shared(Mutex::new(state))) }
    }

    /// Number of turns in use.
    pub(crate) fn in_use(&self) -> usize {
        let state = self.shared.lock();
        state.capacity - state.available
    }

    /// Waits for a turn. Cancel-safe: a future that is dropped while it waits uses no turn.
    pub(crate) async fn acquire(&self, tenant: Tenant) -> Turn {
        let waiter = {
            let mut state = self.shared.lock();
            if state.available > 0 {
                state.available -= 1;
                return Turn { shared: Some(self.shared.clone()) };
            }
            let (sender, waiter) = oneshot::channel();
            match state.queues.iter_mut().find(|queue| queue.tenant.id == tenant.id) {
                Some(queue) => queue.waiters.push_back(sender),
                None => state.queues.push_back(TenantQueue {
                    tenant,
                    turns_left: tenant.weight.get(),
                    waiters: [sender].into(),
                }),
            }
            waiter
        };
        waiter.await.expect("the sender of a waiting call is not dropped before it sends a turn")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, SchedulerState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes and returns the next waiter. If no call waits, counts the turn as available and returns `None`.
    fn next_waiter_or_release(&self) -> Option<oneshot::Sender<Turn>> {
        let mut state = self.lock();
        while let Some(mut waiting) = state.queues.pop_front() {
            let Some(waiter) = waiting.waiters.pop_front() else { continue };
            waiting.turns_left -= 1;
            if waiting.waiters.is_empty() {
                // No call of this tenant waits any more: its next one is queued last.
            } else if waiting.turns_left > 0 {
                state.queues.push_front(waiting);
            } else {
                waiting.turns_left = waiting.tenant.weight.get();
                state.queues.push_back(waiting);
            }
            return Some(waiter);
        }
        state.available += 1;
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(table) = self.shared.take() else { return };
        while let Some(waiter) = table.next_waiter_or_release() {
            match waiter.send(Turn { shared: Some(table.clone()) }) {
                Ok(()) => return,
                // The waiter was dropped meanwhile; its turn must not be released while this one is passed on.
                Err(mut turn) => turn.shared = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    fn tenant(id: u128, weight: u32) -> Tenant {
        Tenant { id, weight: NonZeroU32::new(weight).expect("the weight is not 0") }
    }

    /// The order in which waiting calls of these tenants get the only turn.
    async fn service_order(tenants: &[Tenant]) -> Vec<u128> {
        let turns = Arc::new(FairScheduler::new(NonZeroUsize::MIN));
        let first = turns.acquire(Tenant::default()).await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = JoinSet::new();
        for tenant in tenants.iter().copied() {
            let (turns, served) = (turns.clone(), served.clone());
            waiters.spawn(async move {
                let turn = turns.acquire(tenant).await;
                served.lock().expect("no panic").push(tenant.id);
                drop(turn);
            });
            // The task starts to wait before the next one is spawned, which fixes their order.
            tokio::task::yield_now().await;
        }
        drop(first);
        waiters.join_all().await;
        let served = served.lock().expect("no panic");
        served.clone()
    }

    #[tokio::test]
    async fn tenants_are_served_round_robin() {
        let tenants = [1, 1, 1, 1, 2, 2, 3].map(|id| tenant(id, 1));
        assert_eq!(service_order(&tenants).await, [1, 2, 3, 1, 2, 1, 1]);
    }

    #[tokio::test]
    async fn tenant_of_weight_two_gets_two_turns_per_round() {
        let tenants = [tenant(1, 1), tenant(1, 1), tenant(1, 1), tenant(2, 2), tenant(2, 2), tenant(2, 2)];
        assert_eq!(service_order(&tenants).await, [1, 2, 2, 1, 2, 1]);
    }

    #[tokio::test]
    async fn dropped_waiter_uses_no_turn() {
        let turns = FairScheduler::new(NonZeroUsize::MIN);
        let first = turns.acquire(tenant(1, 1)).await;
        let mut dropped = Box::pin(turns.acquire(tenant(2, 1)));
        let mut waiting = Box::pin(turns.acquire(tenant(3, 1)));
        assert!(poll_once(&mut dropped).await.is_none() && poll_once(&mut waiting).await.is_none());
        drop(dropped);
        drop(first);
        let third = poll_once(&mut waiting).await.expect("the waiting call is next");
        // A waiter that is dropped after it was sent a turn, but before it was polled, passes the turn on.
        let mut unpolled = Box::pin(turns.acquire(tenant(4, 1)));
        assert!(poll_once(&mut unpolled).await.is_none());
        drop(third);
        drop(unpolled);
        assert!(poll_once(&mut Box::pin(turns.acquire(tenant(5, 1)))).await.is_some());
    }

    /// Polls a future once and returns its output if it is ready.
    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(value) => Some(value),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
