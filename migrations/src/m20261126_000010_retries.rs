//! Jobs that make images of another job again.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{integer_null, uuid_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    /// The job whose images are made again.
    RetryOf,
}

#[derive(DeriveIden)]
enum Assets {
    Table,
    /// The index of the image in the job whose images are made again.
    OriginalIndex,
    /// The index that its seed follows from, if it is not its own.
    SeedIndex,
}

const INDEX: &str = "jobs_retry_of";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let retry_of = uuid_null(Jobs::RetryOf);
        manager.alter_table(Table::alter().table(Jobs::Table).add_column(retry_of).to_owned()).await?;
        let original_index = integer_null(Assets::OriginalIndex);
        manager.alter_table(Table::alter().table(Assets::Table).add_column(original_index).to_owned()).await?;
        let seed_index = integer_null(Assets::SeedIndex);
        manager.alter_table(Table::alter().table(Assets::Table).add_column(seed_index).to_owned()).await?;
        let columns = "jobs (retry_of) WHERE retry_of IS NOT NULL";
        manager.get_connection().execute_unprepared(&format!("CREATE INDEX {INDEX} ON {columns}")).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(&format!("DROP INDEX {INDEX}")).await?;
        let drop_column = Table::alter().table(Assets::Table).drop_column(Assets::SeedIndex).to_owned();
        manager.alter_table(drop_column).await?;
        let drop_column = Table::alter().table(Assets::Table).drop_column(Assets::OriginalIndex).to_owned();
        manager.alter_table(drop_column).await?;
        manager.alter_table(Table::alter().table(Jobs::Table).drop_column(Jobs::RetryOf).to_owned()).await
    }
}
