//! The jobs that this process works on: none of them twice at once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// Ids of jobs. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Running(Arc<Mutex<HashSet<Uuid>>>);

/// A job is held until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    running: Running,
    job_id: Uuid,
}

impl Running {
    /// Holds a job; `None` where it is held already.
    pub(super) fn hold(&self, job_id: Uuid) -> Option<Held> {
        self.lock().insert(job_id).then(|| Held { running: self.clone(), job_id })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.running.lock().remove(&self.job_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_held_once_until_it_is_let_go() {
        let running = Running::default();
        let held = running.clone().hold(Uuid::nil());
        assert!(held.is_some());
        assert!(running.hold(Uuid::nil()).is_none());
        assert!(running.hold(Uuid::max()).is_some());
        drop(held);
        assert!(running.hold(Uuid::nil()).is_some());
    }
}
