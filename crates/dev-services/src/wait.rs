//! Waiting for conditions, and free ports of this machine.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

/// Time between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Polls a condition until it returns a value.
///
/// # Errors
///
/// If it returns none within `limit`; the message names `what`.
pub async fn wait_until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = look().await {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("timed out after {limit:?} waiting for {what}");
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Returns distinct loopback addresses whose ports are free at the moment.
///
/// # Errors
///
/// If the system has no free port.
pub fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    // All listeners stay open until all ports are chosen, so that no port is chosen twice.
    let mut listeners = Vec::with_capacity(N);
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for address in &mut addresses {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        *address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(addresses)
}
