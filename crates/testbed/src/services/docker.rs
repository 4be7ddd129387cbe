//! Services as containers. An engine that cannot give the image counts as none.

use std::time::Duration;

use anyhow::Result;
use testcontainers_modules::postgres::Postgres as PostgresImage;
use testcontainers_modules::testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::time::timeout;

use super::{Kept, Postgres, RabbitMq};

/// Pulling an image and starting it may take this long.
const START_LIMIT: Duration = Duration::from_mins(5);

/// A container that is removed when it is stopped or dropped.
pub(super) enum Stoppable {
    RabbitMq(ContainerAsync<GenericImage>),
    Postgres(ContainerAsync<PostgresImage>),
}

impl Stoppable {
    pub(super) async fn stop(self) {
        // Where this fails, dropping the container tries again.
        let _ = match self {
            Self::RabbitMq(container) => container.rm().await,
            Self::Postgres(container) => container.rm().await,
        };
    }
}

pub(super) async fn rabbitmq() -> Result<RabbitMq> {
    let container = GenericImage::new("rabbitmq", "3-management")
        .with_exposed_port(5672.tcp())
        .with_exposed_port(15672.tcp())
        .with_wait_for(WaitFor::message_on_stdout("Server startup complete"))
        .with_startup_timeout(START_LIMIT);
    let container = timeout(START_LIMIT, container.start()).await??;
    let host = container.get_host().await?;
    let (amqp, api) = (container.get_host_port_ipv4(5672).await?, container.get_host_port_ipv4(15672).await?);
    Ok(RabbitMq {
        amqp_url: format!("amqp://guest:guest@{host}:{amqp}/%2f"),
        api_url: format!("http://guest:guest@{host}:{api}"),
        origin: format!("a container of rabbitmq:3-management, {host}:{amqp}"),
        kept: Kept::Container(Box::new(Stoppable::RabbitMq(container))),
    })
}

pub(super) async fn postgres() -> Result<Postgres> {
    let container = PostgresImage::default()
        .with_tag("15")
        .with_cmd(["-c", "fsync=off", "-c", "max_connections=300"])
        .with_startup_timeout(START_LIMIT);
    let container = timeout(START_LIMIT, container.start()).await??;
    let host = container.get_host().await?;
    let port = container.get_host_port_ipv4(5432).await?;
    Ok(Postgres {
        url: format!("postgres://postgres:postgres@{host}:{port}/postgres"),
        origin: format!("a container of postgres:15, {host}:{port}"),
        kept: Kept::Container(Box::new(Stoppable::Postgres(container))),
    })
}
