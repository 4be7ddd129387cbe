//! The note of `submit` that the account gate is closed.

use std::time::Duration;

use store::{KeyHash, Store};
use tokio::time::timeout;

use super::screen::Screen;
use crate::cost_policy::CostPolicy;
use crate::gate;
use crate::settings::Settings;

/// Limit for reading the account gate, which `submit` only reports.
const GATE_TIMEOUT: Duration = Duration::from_secs(3);

/// Notes that the account gate is closed, if the database is known to say so: producers need no database.
pub(super) async fn note_closed_gate(settings: &Settings, screen: &Screen) {
    let reading = async {
        match Store::connect_existing(&settings.database_url).await {
            Ok(Some(store)) => {
                // Producers usually have no key.
                let key = settings.stability.api_key.as_ref().map(KeyHash::new);
                gate::read_reasons(&store, CostPolicy::new(settings), key.as_ref()).await.unwrap_or_default()
            }
            Ok(None) | Err(_) => Vec::new(),
        }
    };
    for reason in timeout(GATE_TIMEOUT, reading).await.unwrap_or_default() {
        screen.print_note(&format!("the account gate is closed: {reason}; the command waits on the queue"));
    }
}
