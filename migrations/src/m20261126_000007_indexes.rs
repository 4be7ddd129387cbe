//! Indexes for the queries of a large database: cached images, lists of jobs, and events that are not published.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// Each index with its table and columns. The conditions are those of the queries.
const INDEXES: [(&str, &str); 3] = [
    ("assets_cached", "assets (fingerprint, updated_at) WHERE status = 'completed'"),
    ("jobs_project_id_created_at", "jobs (project_id, created_at)"),
    ("jobs_unpublished", "jobs (finished_at, id) WHERE terminal_event IS NOT NULL AND published_at IS NULL"),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, columns) in INDEXES {
            manager.get_connection().execute_unprepared(&format!("CREATE INDEX {name} ON {columns}")).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, _) in INDEXES {
            manager.get_connection().execute_unprepared(&format!("DROP INDEX {name}")).await?;
        }
        Ok(())
    }
}
