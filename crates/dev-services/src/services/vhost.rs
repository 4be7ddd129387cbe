//! A virtual host of one's own.

use anyhow::{Result, ensure};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

/// A virtual host that nobody else uses; it is deleted when this is dropped.
pub struct Vhost {
    /// The broker's URL with this virtual host.
    pub amqp_url: String,
    /// Where the management API has it.
    url: String,
    /// Where it has its queues.
    queues_url: String,
}

impl Vhost {
    /// Makes a virtual host that the user of `amqp_url` may do everything in.
    ///
    /// # Errors
    ///
    /// Where the management API refuses it.
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

    /// The names of its queues.
    ///
    /// # Errors
    ///
    /// Where the management API does not tell.
    pub async fn queue_names(&self) -> Result<Vec<String>> {
        let answer =
            crate::http_client()?.get(format!("{}?columns=name", self.queues_url)).send().await?.error_for_status()?;
        let queues: Vec<Value> = answer.json().await?;
        Ok(queues.iter().filter_map(|queue| Some(queue["name"].as_str()?.to_owned())).collect())
    }
}

async fn put(url: &str, body: &'static str) -> Result<()> {
    let answer = crate::http_client()?.put(url).header("content-type", "application/json").body(body).send().await?;
    ensure!(answer.status().is_success(), "the management API of RabbitMQ answers {} to a PUT", answer.status());
    Ok(())
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let resource = self.url.clone();
        crate::run_cleanup_blocking(async move { Ok(crate::http_client()?.delete(resource).send().await.map(drop)?) });
    }
}
