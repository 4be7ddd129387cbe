//! Spending: before a request is sent, its price is added to its image's row and to the daily total of all workers.
//!
//! After a crash between this write and the response, the request stays counted, so that a crash loop spends at most
//! the daily budget.

use domain::job_over::JobOver;
use domain::money::MicroUsd;
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{DatabaseTransaction, ExprTrait, Statement};

use tracing::Instrument;

use super::account_key::{self, Payer};
use super::cancel::is_payable;
use super::dialect::Dialect;
use super::{Lease, QueryExt, Store, StoreError, asset, job};

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

/// The result of reserving the cost of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CostReservation {
    /// Reserved; holds the day in whose total the cost is counted.
    Reserved(String),
    /// Not reserved: the cost would exceed the daily budget.
    OverBudget,
    /// Not reserved: the workers are paused, or the API refuses the key and this job is not admitted.
    GateClosed,
    /// Not reserved: the job is cancelled or has expired.
    JobOver(JobOver),
}

/// The image whose request is counted, with the lease of its job.
#[derive(Debug, Clone, Copy)]
pub struct LeasedImage {
    /// The lease of its job.
    pub lease: Lease,
    /// The id of the image's row.
    pub asset_id: Uuid,
}

impl Store {
    /// Reserves the cost of one request for an image, unless the job is over, the account gate is closed or the daily total of all
    /// workers would exceed `daily_limit`.
    ///
    /// The day is that of the database's clock, in UTC.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn reserve_cost(
        &self,
        image: LeasedImage,
        payer: Payer<'_>,
        price: MicroUsd,
        daily_limit: Option<MicroUsd>,
    ) -> Result<CostReservation, StoreError> {
        async {
            let doing = "reserve the cost of a request";
            if daily_limit.is_some_and(|daily_limit| price > daily_limit) {
                return Ok(CostReservation::OverBudget);
            }
            // The statement that records the cost also refuses it, so that a cancellation needs no luck.
            let payable = is_payable(self.db.get_database_backend());
            let begun = self.begin_and_update_job(image.lease, doing, Some(cost_change(price)), Some(payable)).await;
            let transaction = match begun {
                Err(StoreError::LeaseLost) => {
                    let over = self.read_job_over(image.lease.job_id).await?;
                    return over.map(CostReservation::JobOver).ok_or(StoreError::LeaseLost);
                }
                begun => begun?,
            };
            if !account_key::may_pay(&transaction, payer, image.lease.job_id).with_timeout(doing).await? {
                transaction.rollback().with_timeout(doing).await?;
                return Ok(CostReservation::GateClosed);
            }
            count_requests(&transaction, image, 1, 1, price).with_timeout(doing).await?;
            // The day's row comes last: the payments of all workers wait for each other from here to the commit.
            let Some(day) = add_within_daily_limit(&transaction, price, daily_limit).with_timeout(doing).await? else {
                // An explicit rollback: a dropped transaction keeps its locks until its connection is used again.
                transaction.rollback().with_timeout(doing).await?;
                return Ok(CostReservation::OverBudget);
            };
            transaction.commit().with_timeout(doing).await?;
            Ok(CostReservation::Reserved(day))
        }
        .instrument(self.operation_span("reserve_cost", "spending"))
        .await
    }

    /// Refunds a request that was not charged. It still counts as sent.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written, and the cost stays counted.
    pub async fn refund(&self, image: LeasedImage, price: MicroUsd, day: &str) -> Result<(), StoreError> {
        async {
            let doing = "refund a request";
            let change = cost_change(MicroUsd(-price.0));
            let transaction = self.begin_and_update_job(image.lease, doing, Some(change), None).await?;
            count_requests(&transaction, image, 0, -1, MicroUsd(-price.0)).with_timeout(doing).await?;
            Entity::update_many()
                .col_expr(Column::MicroUsd, Expr::col(Column::MicroUsd).sub(price.0))
                .filter(Column::Day.eq(day))
                .exec(&transaction)
                .with_timeout(doing)
                .await?;
            transaction.commit().with_timeout(doing).await
        }
        .instrument(self.operation_span("refund", "spending"))
        .await
    }
}

impl Store {
    /// What all workers together have spent on the current UTC day.
    pub async fn read_spent_today(&self) -> Result<MicroUsd, StoreError> {
        let sql = format!(
            "SELECT micro_usd FROM spending WHERE day = {}",
            Dialect::for_backend(self.db.get_database_backend()).today
        );
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        let row = self.db.query_one_raw(statement).with_timeout("read today's spending").await?;
        Ok(row.and_then(|row| row.try_get("", "micro_usd").ok()).map(MicroUsd).unwrap_or_default())
    }
}

/// Adds to the cost of a job.
fn cost_change(cost: MicroUsd) -> (job::Column, SimpleExpr) {
    (job::Column::CostUsd, Expr::col(job::Column::CostUsd).add(cost.usd()))
}

/// Adds to the request counts and the cost of an image.
async fn count_requests(
    db: &DatabaseTransaction,
    image: LeasedImage,
    requests: i32,
    charged: i32,
    cost: MicroUsd,
) -> Result<(), DbErr> {
    asset::Entity::update_many()
        .col_expr(asset::Column::Requests, Expr::col(asset::Column::Requests).add(requests))
        .col_expr(asset::Column::Charged, Expr::col(asset::Column::Charged).add(charged))
        .col_expr(asset::Column::CostMicroUsd, Expr::col(asset::Column::CostMicroUsd).add(cost.0))
        .filter(asset::Column::Id.eq(image.asset_id))
        .exec(db)
        .await
        .map(drop)
}

/// Adds a price to today's total and returns the day; `None` if the total would exceed the limit.
async fn add_within_daily_limit(
    db: &DatabaseTransaction,
    price: MicroUsd,
    daily_limit: Option<MicroUsd>,
) -> Result<Option<String>, DbErr> {
    let backend = db.get_database_backend();
    let today = Dialect::for_backend(backend).today;
    // One statement, so that two workers cannot both spend the remaining budget.
    let sql = format!(
        "INSERT INTO spending (day, requests, micro_usd) VALUES ({today}, 1, $1) \
         ON CONFLICT (day) DO UPDATE SET requests = spending.requests + 1, micro_usd = spending.micro_usd + excluded.micro_usd \
         WHERE spending.micro_usd + excluded.micro_usd <= $2 RETURNING day"
    );
    let limit = daily_limit.map_or(i64::MAX, |daily_limit| daily_limit.0);
    let statement = Statement::from_sql_and_values(backend, sql, [price.0.into(), limit.into()]);
    db.query_one_raw(statement).await?.map(|row| row.try_get("", "day")).transpose()
}
