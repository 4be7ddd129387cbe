//! Replaces `docker` in builds without the feature `containers`: no engine is available.

use anyhow::{Result, bail};

use super::{Postgres, RabbitMq};

const NO_ENGINE: &str = "no Docker engine answered when this program was built";

#[expect(clippy::unused_async, reason = "has the signature of `docker::rabbitmq`")]
pub(super) async fn rabbitmq() -> Result<RabbitMq> {
    bail!(NO_ENGINE)
}

#[expect(clippy::unused_async, reason = "has the signature of `docker::postgres`")]
pub(super) async fn postgres() -> Result<Postgres> {
    bail!(NO_ENGINE)
}
