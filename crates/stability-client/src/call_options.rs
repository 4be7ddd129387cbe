//! Options of one call: what stops it, what pays for it, and which party's turns it uses.

use std::fmt;

use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, Unlimited};
use crate::turns::Party;

/// Options of one call of [`crate::Client::generate_with`].
#[derive(Clone)]
pub struct CallOptions<'a> {
    /// Once cancelled, no further request is sent, and no wait for a turn, the quota or a retry goes on. A request in flight comes to its
    /// end, since it may be paid already.
    pub stop: CancellationToken,
    /// Pays for each request.
    pub budget: &'a dyn Budget,
    /// The party that the call belongs to, where several share a client.
    pub party: Party,
}

impl Default for CallOptions<'_> {
    /// Nothing stops the call, its budget has no limit, and it belongs to the default party.
    fn default() -> Self {
        Self { stop: CancellationToken::new(), budget: &Unlimited, party: Party::default() }
    }
}

impl fmt::Debug for CallOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stop, budget: _, party } = self;
        f.debug_struct("CallOptions").field("stop", stop).field("party", party).finish_non_exhaustive()
    }
}
