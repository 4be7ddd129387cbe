//! The workers' database, as subcommands open it.

use store::Store;

use super::exit::CliError;
use crate::settings::Settings;

/// Connects to the workers' database. Fails if there is none, or if migrations are pending.
pub(super) async fn open_store(settings: &Settings) -> Result<Store, CliError> {
    let store = open_existing_store(settings).await?;
    let pending = store.read_schema_state().await?.pending;
    if pending > 0 {
        return Err(CliError::unreachable(format!(
            "{pending} database migrations are pending; apply them with: asset-worker migrate"
        )));
    }
    Ok(store)
}

/// Connects to the workers' database. A new SQLite file would be the database of no worker.
pub(super) async fn open_existing_store(settings: &Settings) -> Result<Store, CliError> {
    Store::connect_existing(&settings.database_url).await?.ok_or_else(|| {
        CliError::unreachable("DATABASE_URL: there is no database; set it to the URL that the workers use, or create it with: asset-worker migrate")
    })
}
