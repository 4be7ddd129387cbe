//! Options of one call: cancellation, budget and tenant.

use std::fmt;

use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, UnlimitedBudget};
use crate::fair_scheduler::Tenant;

/// Options of one call of [`Client::generate_with`](crate::Client::generate_with) or
/// [`Client::upscale_with`](crate::Client::upscale_with).
///
/// ```
/// use stability_client::{CallOptions, CancellationToken};
///
/// let stop = CancellationToken::new();
/// let options = CallOptions::default().stop(stop.clone());
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct CallOptions<'a> {
    /// Cancel it to stop the call.
    ///
    /// No further request is sent, and waits for a turn, the quota or a retry end at once. A request in flight is
    /// completed, because it may already be charged.
    pub stop: CancellationToken,
    /// Pays for each request of the call.
    pub budget: &'a dyn Budget,
    /// The tenant that the call belongs to, if several share a client.
    pub tenant: Tenant,
}

impl Default for CallOptions<'_> {
    /// A new cancellation token, an unlimited budget and the default tenant.
    fn default() -> Self {
        Self { stop: CancellationToken::new(), budget: &UnlimitedBudget, tenant: Tenant::default() }
    }
}

impl<'a> CallOptions<'a> {
    /// Sets [`stop`](Self::stop).
    #[must_use]
    pub fn stop(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Sets [`budget`](Self::budget).
    #[must_use]
    pub fn budget(mut self, budget: &'a dyn Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Sets [`tenant`](Self::tenant).
    #[must_use]
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.tenant = tenant;
        self
    }
}

impl fmt::Debug for CallOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stop, budget: _, tenant } = self;
        f.debug_struct("CallOptions").field("stop", stop).field("tenant", tenant).finish_non_exhaustive()
    }
}
