//! How the sandbox behaves.

use std::net::SocketAddr;
use std::time::Duration;

/// The sandbox's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Keys that are accepted.
    pub keys: Vec<String>,
    /// Requests that are allowed within `window`.
    pub limit: u32,
    /// The window of the limit.
    pub window: Duration,
    /// How long a caller that went over the limit is locked out.
    pub lockout: Duration,
    /// How long painting takes at least.
    pub latency: Duration,
    /// Whether pictures are sketches, which take a tenth of the time of a scene.
    pub sketch: bool,
    /// Credits of the account at the start.
    pub credits: f64,
    /// Credits that one picture costs.
    pub credits_per_picture: f64,
}

impl Default for Settings {
    /// The real API's limits: 150 requests in 10 seconds, else a lock-out of 60 seconds.
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
            credits_per_picture: 2.0,
        }
    }
}
