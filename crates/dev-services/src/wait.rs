//! Waiting for conditions, and free ports.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Looks at a condition until it gives a value.
///
/// # Errors
///
/// Where it has given none within `limit`; the message says `what` was waited for.
pub async fn wait_until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = look().await {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Different loopback addresses whose ports nobody listens on at this moment.
///
/// # Errors
///
/// Where the system has no free port.
pub fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    // All are held until all are chosen, so that none is given twice.
    let mut listeners = Vec::with_capacity(N);
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for address in &mut addresses {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        *address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(addresses)
}
