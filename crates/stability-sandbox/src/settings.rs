//! Settings of the sandbox.

use std::net::SocketAddr;
use std::time::Duration;

/// Behaviour of a sandbox: address, keys, rate limit, latency and credits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address to listen on; port 0 chooses a free port.
    pub listen: SocketAddr,
    /// Accepted API keys.
    pub keys: Vec<String>,
    /// Number of requests allowed within `window`.
    pub limit: u32,
    /// Length of the sliding window of `limit`.
    pub window: Duration,
    /// How long all requests are rejected after the limit was exceeded.
    pub lockout: Duration,
    /// Minimum duration of a generation.
    pub latency: Duration,
    /// Whether images are sketches, which take a tenth of the rendering time of scenes.
    pub sketch: bool,
    /// Initial credits of the account.
    pub credits: f64,
}

impl Default for Settings {
    /// The real API's limits: 150 requests in 10 seconds, and a lockout of 60 seconds when they are exceeded.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            keys: vec!["sk-sandbox".to_owned()],
            limit: 150,
            window: Duration::from_secs(10),
            lockout: Duration::from_mins(1),
            latency: Duration::ZERO,
            sketch: false,
            credits: 10_000.0,
        }
    }
}
