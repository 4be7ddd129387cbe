//! `storage verify`: lists files without rows, and rows without files.

use super::database::open_store;
use super::exit::CliError;
use super::screen::{Screen, to_json};
use crate::settings::Settings;
use crate::storage::Storage;
use crate::storage_check::{MissingFile, StorageCheckError, StorageDifferences, compare};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// List files without a row in the database, and completed images without a file; exit with 1 if there are any
    ///
    /// Changes nothing, and may be used while workers run. Whether files are damaged is not checked.
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    let Subcommand::Verify { json } = &options.subcommand;
    let store = open_store(settings).await?;
    let storage = Storage::open_existing(&settings.storage_root)?;
    let storage = storage.ok_or_else(|| CliError::unreachable("ASSET_STORAGE_URL: the folder does not exist"))?;
    let differences = compare(&store, &storage).await?;
    screen.print(&if *json { to_json(&differences) } else { format_differences(&differences) });
    let (files, rows) = (differences.files_without_rows.len(), differences.rows_without_files.len());
    if files + rows > 0 {
        return Err(CliError::JobFailed(format!("{files} files without rows, {rows} rows without files")));
    }
    Ok(())
}

fn format_differences(differences: &StorageDifferences) -> String {
    let StorageDifferences { files, images, files_without_rows, rows_without_files } = differences;
    let mut text = format!("files: {files}, completed images: {images}\n");
    for path in files_without_rows {
        text += &format!("file without a row: {path}\n");
    }
    for MissingFile { path, job_id, index } in rows_without_files {
        text += &format!("row without a file: {path} (job {job_id}, image {index})\n");
    }
    text
}

impl From<StorageCheckError> for CliError {
    fn from(error: StorageCheckError) -> Self {
        match error {
            StorageCheckError::Store(error) => error.into(),
            StorageCheckError::Storage(error) => error.into(),
        }
    }
}
