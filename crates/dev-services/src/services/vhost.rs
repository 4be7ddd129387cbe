//! A private virtual host of a RabbitMQ broker.

use anyhow::{Result, ensure};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use super::RABBITMQ_API_URL_VAR;

/// A virtual host that is not shared; dropping this deletes it.
pub struct Vhost {
    /// AMQP URL of this virtual host.
    pub amqp_url: String,
    /// URL of the virtual host in the management API.
    url: String,
    /// URL of its queues in the management API.
    queues_url: String,
}

impl Vhost {
    /// Creates a virtual host in which the user of `amqp_url` has all permissions.
    ///
    /// # Errors
    ///
    /// If the management API rejects a request.
    pub async fn create(amqp_url: &str, api_url: &str) -> Result<Self> {
        let name = format!("dev-services-{}", Uuid::now_v7().simple());
        let mut url = Url::parse(amqp_url)?;
        let user = if url.username().is_empty() { "guest" } else { url.username() }.to_owned();
        url.set_path(&name);
        let api_url = api_url.trim_end_matches('/');
        let resource = format!("{api_url}/api/vhosts/{name}");
        put(&resource, "{}").await?;
        let vhost = Self { amqp_url: url.into(), url: resource, queues_url: format!("{api_url}/api/queues/{name}") };
        let rights = r#"{"configure": ".*", "write": ".*", "read": ".*"}"#;
        put(&format!("{api_url}/api/permissions/{name}/{user}"), rights).await?;
        Ok(vhost)
    }

    /// Returns the names of the queues.
    ///
    /// # Errors
    ///
    /// If the management API does not return them.
    pub async fn queue_names(&self) -> Result<Vec<String>> {
        let answer =
            crate::http_client()?.get(format!("{}?columns=name", self.queues_url)).send().await?.error_for_status()?;
        let queues: Vec<Value> = answer.json().await?;
        Ok(queues.iter().filter_map(|queue| Some(queue["name"].as_str()?.to_owned())).collect())
    }
}

async fn put(url: &str, body: &'static str) -> Result<()> {
    let answer = crate::http_client()?.put(url).header("content-type", "application/json").body(body).send().await?;
    let status = answer.status();
    let mut shown = Url::parse(url)?;
    // Neither user nor password is shown.
    let _ = (shown.set_username(""), shown.set_password(None));
    ensure!(
        !matches!(status.as_u16(), 401 | 403),
        "the management API of RabbitMQ at {shown} refuses the user ({status}): set {RABBITMQ_API_URL_VAR} to \
         http://USER:PASSWORD@HOST:PORT of a user with the tag administrator"
    );
    ensure!(status.is_success(), "the management API of RabbitMQ at {shown} answered {status}");
    Ok(())
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let resource = self.url.clone();
        crate::run_cleanup_blocking(async move { Ok(crate::http_client()?.delete(resource).send().await.map(drop)?) });
    }
}
