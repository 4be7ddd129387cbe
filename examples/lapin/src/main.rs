//! Submits a job with lapin, and waits for its terminal event.
//!
//! ```sh
//! cargo run -p lapin-example -- "A lighthouse at dusk"
//! ```

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use serde_json::{Value, json};
use uuid::Uuid;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the example prints what it receives")]
async fn main() -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the example has one setting")]
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned());
    let descriptions: Vec<String> = std::env::args().skip(1).collect();
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;

    // Before the command is published, so that no event is missed. A service would use a durable queue with a name.
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?.name().clone();
    let (all, options) = ("assets.generation.*".into(), QueueBindOptions::default());
    channel.queue_bind(queue.clone(), "assets.events".into(), all, options, FieldTable::default()).await?;
    let mut events =
        channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;

    // With a confirm, and as mandatory: an error if the command has not reached the queue of the workers.
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let job_id = Uuid::new_v4();
    let command = json!({"job_id": job_id, "project_id": 42, "image_descriptions": descriptions});
    let properties = BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(2);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, key, body) = ("assets.commands".into(), "generate".into(), command.to_string());
    let confirm = channel.basic_publish(exchange, key, options, body.as_bytes(), properties).await?.await?;
    ensure!(matches!(confirm, Confirmation::Ack(None)), "no worker has declared the queue of commands yet");

    let mut seen = HashSet::new();
    loop {
        let delivery = events.next().await.context("the broker has closed the channel")??;
        let event: Value = serde_json::from_slice(&delivery.data)?;
        delivery.ack(BasicAckOptions::default()).await?;
        // Events are delivered at least once; their ids tell which ones are known.
        let data = &event["data"];
        if data["job_id"] != json!(job_id) || !seen.insert(event["id"].to_string()) {
            continue;
        }
        let kind = event["type"].as_str().unwrap_or_default().trim_start_matches("assets.generation.");
        println!("{kind}");
        if matches!(kind, "completed" | "failed") {
            println!("{} of {} images of job {job_id}", data["succeeded"], data["total"]);
            for asset in data["assets"].as_array().into_iter().flatten() {
                println!("{}", asset["uri"].as_str().unwrap_or_default());
            }
            ensure!(kind == "completed", "the job failed");
            break;
        }
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}
