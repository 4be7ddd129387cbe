//! Money: each request is paid for before it is sent, in its image's row and in the day's sum of all workers.
//!
//! Whatever dies between the payment and the answer leaves the request paid, so that no crash loop burns more than a day's budget.

use domain::money::MicroUsd;
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::Expr;
use sea_orm::{DatabaseTransaction, ExprTrait, Statement};

use tracing::Instrument;

use super::dialect::Dialect;
use super::{Doing, Lease, Store, StoreError, asset, job};

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "spending")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) day: String,
    pub(super) requests: i64,
    pub(super) micro_usd: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// What came of paying for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payment {
    /// It is paid, in the sum of this day.
    Paid(String),
    /// The day's budget does not hold it.
    OverBudget,
}

/// Whose request is paid for.
#[derive(Debug, Clone, Copy)]
pub struct PaidImage {
    /// The right to work on its job.
    pub lease: Lease,
    /// The image's row.
    pub asset_id: Uuid,
}

impl Store {
    /// Pays for one request for an image, unless the day's sum of all workers would go above `daily`. The day is the database's, in UTC.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn pay(&self, image: PaidImage, price: MicroUsd, daily: Option<MicroUsd>) -> Result<Payment, StoreError> {
        async {
            let doing = "pay for a request";
            if daily.is_some_and(|daily| price > daily) {
                return Ok(Payment::OverBudget);
            }
            let transaction = self.begin_held(image.lease, doing).await?;
            let Some(day) = added(&transaction, price, daily).doing(doing).await? else {
                // In so many words: one that is merely dropped keeps its locks until its connection is used again.
                transaction.rollback().doing(doing).await?;
                return Ok(Payment::OverBudget);
            };
            booked(&transaction, image, price, 1, 1).doing(doing).await?;
            transaction.commit().doing(doing).await?;
            Ok(Payment::Paid(day))
        }
        .instrument(self.asked("pay", "spending"))
        .await
    }

    /// Takes back what was paid for a request that turned out to be free. That it was sent stays counted.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written, and the request stays paid.
    pub async fn take_back(&self, image: PaidImage, price: MicroUsd, day: &str) -> Result<(), StoreError> {
        async {
            let doing = "take back a payment";
            let transaction = self.begin_held(image.lease, doing).await?;
            Entity::update_many()
                .col_expr(Column::MicroUsd, Expr::col(Column::MicroUsd).sub(price.0))
                .filter(Column::Day.eq(day))
                .exec(&transaction)
                .doing(doing)
                .await?;
            booked(&transaction, image, MicroUsd(-price.0), 0, -1).doing(doing).await?;
            transaction.commit().doing(doing).await
        }
        .instrument(self.asked("refund", "spending"))
        .await
    }
}

impl Store {
    /// What all workers have spent today.
    pub async fn spent_today(&self) -> Result<MicroUsd, StoreError> {
        let sql =
            format!("SELECT micro_usd FROM spending WHERE day = {}", Dialect::of(self.db.get_database_backend()).today);
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        let row = self.db.query_one_raw(statement).doing("look at today's spending").await?;
        Ok(row.and_then(|row| row.try_get("", "micro_usd").ok()).map(MicroUsd).unwrap_or_default())
    }
}

/// Adds to what an image and its job have cost.
async fn booked(
    db: &DatabaseTransaction,
    image: PaidImage,
    cost: MicroUsd,
    requests: i32,
    charged: i32,
) -> Result<(), DbErr> {
    asset::Entity::update_many()
        .col_expr(asset::Column::Requests, Expr::col(asset::Column::Requests).add(requests))
        .col_expr(asset::Column::Charged, Expr::col(asset::Column::Charged).add(charged))
        .filter(asset::Column::Id.eq(image.asset_id))
        .exec(db)
        .await?;
    job::Entity::update_many()
        .col_expr(job::Column::CostUsd, Expr::col(job::Column::CostUsd).add(cost.usd()))
        .filter(job::Column::Id.eq(image.lease.job_id))
        .exec(db)
        .await
        .map(drop)
}

/// Adds a price to the sum of today, which it returns, unless that would go above the budget.
async fn added(db: &DatabaseTransaction, price: MicroUsd, daily: Option<MicroUsd>) -> Result<Option<String>, DbErr> {
    let backend = db.get_database_backend();
    let today = Dialect::of(backend).today;
    // One statement, so that two workers cannot both take the last cent.
    let sql = format!(
        "INSERT INTO spending (day, requests, micro_usd) VALUES ({today}, 1, $1) \
         ON CONFLICT (day) DO UPDATE SET requests = spending.requests + 1, micro_usd = spending.micro_usd + excluded.micro_usd \
         WHERE spending.micro_usd + excluded.micro_usd <= $2 RETURNING day"
    );
    let limit = daily.map_or(i64::MAX, |daily| daily.0);
    let statement = Statement::from_sql_and_values(backend, sql, [price.0.into(), limit.into()]);
    db.query_one_raw(statement).await?.map(|row| row.try_get("", "day")).transpose()
}
