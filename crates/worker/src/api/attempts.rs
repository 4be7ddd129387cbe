//! Limits how often an address may present wrong tokens.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Wrong tokens that an address may present at once.
const BURST: u32 = 10;
/// Time after which it may present another one.
const INTERVAL: Duration = Duration::from_secs(6);
/// Maximum number of addresses that are remembered.
const MAX_ADDRESSES: usize = 10_000;

/// Wrong tokens by address. An IPv6 network of 64 bits counts as one address: one customer has it.
#[derive(Default)]
pub(super) struct FailedAttempts {
    /// For each address when all its attempts will be forgotten.
    forgotten_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl FailedAttempts {
    /// How long an address has to wait before its next attempt, if it has to.
    pub(super) fn remaining_wait(&self, address: IpAddr) -> Option<Duration> {
        let forgotten_at = self.forgotten_at.lock().unwrap_or_else(PoisonError::into_inner);
        let open = forgotten_at.get(&network(address))?.saturating_duration_since(Instant::now());
        open.checked_sub(INTERVAL * (BURST - 1)).filter(|wait| !wait.is_zero())
    }

    /// Records a wrong token.
    pub(super) fn record(&self, address: IpAddr) {
        let now = Instant::now();
        let mut forgotten_at = self.forgotten_at.lock().unwrap_or_else(PoisonError::into_inner);
        if forgotten_at.len() >= MAX_ADDRESSES {
            forgotten_at.retain(|_, forgotten_at| *forgotten_at > now);
        }
        if forgotten_at.len() >= MAX_ADDRESSES {
            // Too many attackers to remember them all: the memory of this process counts more.
            forgotten_at.clear();
        }
        let entry = forgotten_at.entry(network(address)).or_insert(now);
        *entry = (*entry).max(now) + INTERVAL;
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn address_waits_after_ten_wrong_tokens() {
        let attempts = FailedAttempts::default();
        let (attacker, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        for _ in 0..BURST {
            assert_eq!(attempts.remaining_wait(attacker), None);
            attempts.record(attacker);
        }
        assert_eq!(attempts.remaining_wait(attacker), Some(INTERVAL));
        assert_eq!(attempts.remaining_wait(other), None);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(attempts.remaining_wait(attacker), None);
        attempts.record(attacker);
        assert_eq!(attempts.remaining_wait(attacker), Some(INTERVAL));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_an_ipv6_network_count_together() {
        let attempts = FailedAttempts::default();
        for host in 0..10 {
            attempts.record(format!("2001:db8::{host}").parse().expect("an address"));
        }
        assert!(attempts.remaining_wait("2001:db8::ff".parse().expect("an address")).is_some());
        assert_eq!(attempts.remaining_wait("2001:db8:0:1::1".parse().expect("an address")), None);
    }
}
