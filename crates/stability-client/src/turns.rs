//! Who is next, where more requests are asked for than may be in flight: the parties that share a client take turns, and within each of them whoever
//! waits longest is next.

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Who asks. All that name no party are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// What tells it from others.
    pub id: u128,
    /// How many requests it may send in each round.
    pub weight: NonZeroU32,
}

impl Default for Party {
    fn default() -> Self {
        Self { id: 0, weight: NonZeroU32::MIN }
    }
}

/// The turns of a client: a bounded number is out at once.
pub(crate) struct Turns {
    table: Arc<Table>,
}

/// The right to have one request in flight, until it is dropped.
pub(crate) struct Turn {
    /// None where it was handed on.
    table: Option<Arc<Table>>,
}

struct Table(Mutex<State>);

struct State {
    /// Turns there are.
    all: usize,
    /// Turns that nobody has. While there are some, nobody waits.
    free: usize,
    /// The parties that wait; the first one is next.
    ring: VecDeque<Waiting>,
}

struct Waiting {
    party: Party,
    /// How many turns it has left in this round.
    left: u32,
    waiters: VecDeque<oneshot::Sender<Turn>>,
}

impl Turns {
    pub(crate) fn new(at_once: NonZeroUsize) -> Self {
        let all = at_once.get();
        let state = State { all, free: all, ring: VecDeque::new() };
        Self { table: Arc::new(Table(Mutex::new(state))) }
    }

    /// How many turns are out.
    pub(crate) fn out(&self) -> usize {
        let state = self.table.lock();
        state.all - state.free
    }

    /// Waits for a turn. Cancel-safe: whoever is dropped while waiting has used none.
    pub(crate) async fn next(&self, party: Party) -> Turn {
        let waiter = {
            let mut state = self.table.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn { table: Some(self.table.clone()) };
            }
            let (sender, waiter) = oneshot::channel();
            match state.ring.iter_mut().find(|waiting| waiting.party.id == party.id) {
                Some(waiting) => waiting.waiters.push_back(sender),
                None => state.ring.push_back(Waiting { party, left: party.weight.get(), waiters: [sender].into() }),
            }
            waiter
        };
        waiter.await.expect("a turn comes to each waiter that waits for it")
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever is next; `None`, and one more turn is free, where nobody waits.
    fn take_next(&self) -> Option<oneshot::Sender<Turn>> {
        let mut state = self.lock();
        while let Some(mut waiting) = state.ring.pop_front() {
            let Some(waiter) = waiting.waiters.pop_front() else { continue };
            waiting.left -= 1;
            if waiting.waiters.is_empty() {
                // Its round is over: when it asks again it comes last.
            } else if waiting.left > 0 {
                state.ring.push_front(waiting);
            } else {
                waiting.left = waiting.party.weight.get();
                state.ring.push_back(waiting);
            }
            return Some(waiter);
        }
        state.free += 1;
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(table) = self.table.take() else { return };
        while let Some(waiter) = table.take_next() {
            match waiter.send(Turn { table: Some(table.clone()) }) {
                Ok(()) => return,
                // It has gone away meanwhile.
                Err(mut turn) => turn.table = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    fn party(id: u128, weight: u32) -> Party {
        Party { id, weight: NonZeroU32::new(weight).expect("not 0") }
    }

    /// The order in which waiters of these parties get the one turn there is, where all of them wait already.
    async fn order(asked: &[Party]) -> Vec<u128> {
        let turns = Arc::new(Turns::new(NonZeroUsize::MIN));
        let first = turns.next(Party::default()).await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = JoinSet::new();
        for party in asked.iter().copied() {
            let (turns, served) = (turns.clone(), served.clone());
            waiters.spawn(async move {
                let turn = turns.next(party).await;
                served.lock().expect("no panic").push(party.id);
                drop(turn);
            });
            // So that they wait in this order.
            tokio::task::yield_now().await;
        }
        drop(first);
        waiters.join_all().await;
        let served = served.lock().expect("no panic");
        served.clone()
    }

    #[tokio::test]
    async fn parties_take_turns_however_many_requests_each_has() {
        let asked = [1, 1, 1, 1, 2, 2, 3].map(|id| party(id, 1));
        assert_eq!(order(&asked).await, [1, 2, 3, 1, 2, 1, 1]);
    }

    #[tokio::test]
    async fn a_party_of_twice_the_weight_has_two_turns_in_each_round() {
        let asked = [party(1, 1), party(1, 1), party(1, 1), party(2, 2), party(2, 2), party(2, 2)];
        assert_eq!(order(&asked).await, [1, 2, 2, 1, 2, 1]);
    }

    #[tokio::test]
    async fn whoever_goes_away_has_used_no_turn() {
        let turns = Turns::new(NonZeroUsize::MIN);
        let first = turns.next(party(1, 1)).await;
        let mut gone = Box::pin(turns.next(party(2, 1)));
        let mut waits = Box::pin(turns.next(party(3, 1)));
        assert!(futures_now(&mut gone).await.is_none() && futures_now(&mut waits).await.is_none());
        drop(gone);
        drop(first);
        let third = futures_now(&mut waits).await.expect("it is next");
        // One that got its turn and never looked gives it on.
        let mut unseen = Box::pin(turns.next(party(4, 1)));
        assert!(futures_now(&mut unseen).await.is_none());
        drop(third);
        drop(unseen);
        assert!(futures_now(&mut Box::pin(turns.next(party(5, 1)))).await.is_some());
    }

    /// What a future has to give at this moment.
    async fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(value) => Some(value),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
