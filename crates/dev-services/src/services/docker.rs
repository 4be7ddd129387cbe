//! Services in Docker containers. An engine that cannot provide the image counts as unavailable.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use testcontainers_modules::postgres::Postgres as PostgresImage;
use testcontainers_modules::testcontainers::core::{ExecCommand, IntoContainerPort, WaitFor};
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, ContainerRequest, GenericImage, Image, ImageExt};
use tokio::time::timeout;

use super::{Postgres, RabbitMq, ServiceHandle};
use crate::wait::free_addresses;

/// Limit for pulling an image and starting its container.
const START_TIMEOUT: Duration = Duration::from_mins(5);

/// Name and tag of RabbitMQ's image: the reference version, which is 4.3 or newer.
const RABBITMQ_IMAGE: (&str, &str) = ("rabbitmq", "4-management");
/// Tag of PostgreSQL's image.
const POSTGRES_TAG: &str = "17";

/// A container that is removed when it is dropped.
pub(super) enum Container {
    RabbitMq(ContainerAsync<GenericImage>),
    Postgres(ContainerAsync<PostgresImage>),
}

impl Container {
    pub(super) async fn remove(self) {
        // If this fails, dropping the container tries again.
        let _ = match self {
            Self::RabbitMq(container) => container.rm().await,
            Self::Postgres(container) => container.rm().await,
        };
    }

    /// Runs a command in the container and returns its standard output.
    pub(super) async fn execute(&self, command: &[&str]) -> Result<String> {
        let execution = ExecCommand::new(command.iter().copied());
        let mut output = match self {
            Self::RabbitMq(container) => container.exec(execution).await,
            Self::Postgres(container) => container.exec(execution).await,
        }?;
        let printed = String::from_utf8_lossy(&output.stdout_to_vec().await?).into_owned();
        let code = output.exit_code().await?;
        ensure!(code == Some(0), "{command:?} in a container ended with {code:?}: {printed}");
        Ok(printed)
    }

    /// Stops the container without removing it.
    pub(super) async fn stop(&self) -> Result<()> {
        Ok(match self {
            // Gracefully, within 60 seconds.
            Self::RabbitMq(container) => container.stop_with_timeout(Some(60)).await,
            // Killed at once, like a crash.
            Self::Postgres(container) => container.stop_with_timeout(Some(0)).await,
        }?)
    }

    /// Starts the stopped container at the same ports. The service answers some seconds after this returns.
    pub(super) async fn restart(&self) -> Result<()> {
        Ok(timeout(START_TIMEOUT, async {
            match self {
                Self::RabbitMq(container) => container.start().await,
                Self::Postgres(container) => container.start().await,
            }
        })
        .await??)
    }
}

/// Maps a port of the container to a fixed port of this machine: the engine would choose another one at each start.
fn with_fixed_port<I: Image>(port: SocketAddr, image: impl ImageExt<I>, inner: u16) -> ContainerRequest<I> {
    image.with_mapped_port(port.port(), inner.tcp())
}

pub(super) async fn rabbitmq() -> Result<RabbitMq> {
    let [amqp, api] = free_addresses()?;
    let image = GenericImage::new(RABBITMQ_IMAGE.0, RABBITMQ_IMAGE.1)
        .with_exposed_port(5672.tcp())
        .with_exposed_port(15672.tcp())
        .with_wait_for(WaitFor::message_on_stdout("Server startup complete"));
    let container = with_fixed_port(api, with_fixed_port(amqp, image, 5672), 15672).with_startup_timeout(START_TIMEOUT);
    let container = timeout(START_TIMEOUT, container.start()).await??;
    let host = container.get_host().await?;
    let (amqp, api) = (container.get_host_port_ipv4(5672).await?, container.get_host_port_ipv4(15672).await?);
    Ok(RabbitMq {
        amqp_url: format!("amqp://guest:guest@{host}:{amqp}/%2f"),
        api_url: format!("http://guest:guest@{host}:{api}"),
        origin: format!("a container of {}:{}, {host}:{amqp}", RABBITMQ_IMAGE.0, RABBITMQ_IMAGE.1),
        handle: ServiceHandle::Container(Box::new(Container::RabbitMq(container))),
    })
}

pub(super) async fn postgres() -> Result<Postgres> {
    let [address] = free_addresses()?;
    let image =
        PostgresImage::default().with_tag(POSTGRES_TAG).with_cmd(["-c", "fsync=off", "-c", "max_connections=300"]);
    let container = with_fixed_port(address, image, 5432).with_startup_timeout(START_TIMEOUT);
    let container = timeout(START_TIMEOUT, container.start()).await??;
    let host = container.get_host().await?;
    let port = container.get_host_port_ipv4(5432).await?;
    Ok(Postgres {
        url: format!("postgres://postgres:postgres@{host}:{port}/postgres"),
        origin: format!("a container of postgres:{POSTGRES_TAG}, {host}:{port}"),
        handle: ServiceHandle::Container(Box::new(Container::Postgres(container))),
    })
}
