//! Messages that are stored with the end of a job, and published before its terminal event.

use domain::outgoing::OutgoingMessage;
use sea_orm::ActiveValue::Set;
use sea_orm::entity::prelude::*;
use sea_orm::{QueryOrder, QuerySelect};
use tracing::Instrument;
use uuid::Uuid;

use super::{QueryExt, Store, StoreError};

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "outbox")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) job_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    position: i32,
    message: Json,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// A message of an ended job that was not published, or that no queue has received.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    position: i32,
    /// The message.
    pub message: OutgoingMessage,
}

impl Store {
    /// Messages of an ended job in the order in which they are published.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_outbox(&self, job_id: Uuid) -> Result<Vec<StoredMessage>, StoreError> {
        let rows = Entity::find()
            .filter(Column::JobId.eq(job_id))
            .order_by_asc(Column::Position)
            .all(&self.db)
            .with_timeout("read the outbox")
            .instrument(self.operation_span("find", "outbox"))
            .await?;
        let message = |row: Model| {
            Some(StoredMessage { position: row.position, message: serde_json::from_value(row.message).ok()? })
        };
        Ok(rows.into_iter().filter_map(message).collect())
    }

    /// Stores messages that no queue has received, under the id of the job or task that they follow.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn keep_messages(&self, id: Uuid, messages: &[OutgoingMessage]) -> Result<(), StoreError> {
        if messages.is_empty() {
            return Ok(());
        }
        // The same messages may be kept again after a crash.
        Entity::insert_many(rows(id, messages))
            .on_conflict_do_nothing()
            .exec_without_returning(&self.db)
            .with_timeout("keep messages in the outbox")
            .instrument(self.operation_span("insert", "outbox"))
            .await
            .map(drop)
    }

    /// Removes messages that need not be published again.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was removed, and the messages are published again.
    pub async fn remove_from_outbox(&self, job_id: Uuid, sent: &[StoredMessage]) -> Result<(), StoreError> {
        Entity::delete_many()
            .filter(Column::JobId.eq(job_id))
            .filter(Column::Position.is_in(sent.iter().map(|message| message.position)))
            .exec(&self.db)
            .with_timeout("remove messages from the outbox")
            .instrument(self.operation_span("delete", "outbox"))
            .await
            .map(drop)
    }

    /// Ended jobs with messages in the outbox.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_jobs_in_outbox(&self) -> Result<Vec<Uuid>, StoreError> {
        Entity::find()
            .select_only()
            .column(Column::JobId)
            .distinct()
            .into_tuple()
            .all(&self.db)
            .with_timeout("find jobs with messages in the outbox")
            .await
    }
}

/// Stores the messages of a job that ends in this transaction.
pub(super) async fn insert_messages(
    db: &impl ConnectionTrait,
    job_id: Uuid,
    messages: &[OutgoingMessage],
) -> Result<(), DbErr> {
    // Inserted by one transaction only, which ends the job.
    Entity::insert_many(rows(job_id, messages)).exec_without_returning(db).await.map(drop)
}

fn rows(id: Uuid, messages: &[OutgoingMessage]) -> impl Iterator<Item = ActiveModel> {
    (0..).zip(messages).map(move |(position, message)| ActiveModel {
        job_id: Set(id),
        position: Set(position),
        message: Set(serde_json::to_value(message).expect("a message is serialisable")),
    })
}
