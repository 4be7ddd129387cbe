//! The documents and examples for the programs around the worker.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use dev_services::services::ServiceUrls;
use dev_services::{node, programs, python};
use integration_tests::{ApiServer, Database, TestEnv, WAIT_TIMEOUT};
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokio::process::Command;
use url::Url;

use crate::api::{new_env, submit, wait_for_end};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a program to its end and returns what it prints.
async fn output_of(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(WAIT_TIMEOUT, output).await.context("the program did not end")??;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Parses the AsyncAPI document with the parser of AsyncAPI.
async fn read_asyncapi() -> Result<Value> {
    let install = || node::environment("asyncapi", &["@asyncapi/parser@3.6.6"]);
    let packages = tokio::task::spawn_blocking(install).await??;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/asyncapi.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(packages).arg(repository().join("docs/asyncapi.yaml"));
    Ok(serde_json::from_str(&output_of(&mut command).await?)?)
}

#[tokio::test]
async fn asyncapi_document_is_valid_and_describes_the_broker() -> Result<()> {
    let (env, document) = tokio::join!(TestEnv::new(), read_asyncapi());
    let (env, document) = (env?, document?);
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let channels = document["channels"].as_object().context("the document has channels")?;
    let mut described = Vec::new();
    for channel in channels.values() {
        let binding = &channel["bindings"]["amqp"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if binding["is"] == "queue" {
            let name = text(&binding["queue"]["name"]);
            // Passive: an error if there is no such queue.
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            producer.channel().queue_declare(name.clone().into(), options, FieldTable::default()).await?;
            described.push(name);
        } else {
            let name = text(&binding["exchange"]["name"]);
            let kind = ExchangeKind::Custom(text(&binding["exchange"]["type"]));
            // Not passive: an error if the exchange exists with another type.
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            producer.channel().exchange_declare(name.clone().into(), kind, options, FieldTable::default()).await?;
            described.push(format!("{name} {}", text(&channel["address"])));
        }
    }
    described.sort();
    let expected = [
        "assets.commands cancel",
        "assets.commands generate",
        "assets.events assets.generation.{kind}",
        "assets.generate.dead",
    ];
    assert_eq!(described, expected);
    Ok(())
}

/// Calls every operation of the OpenAPI document with valid, invalid and hostile data: no server error, and no answer that
/// the document does not describe.
async fn run_schemathesis(env: &TestEnv, api: &ApiServer, config: &str, arguments: &[&str]) -> Result<String> {
    let install = || python::environment("schemathesis", &["schemathesis==4.32.5"]);
    let python = tokio::task::spawn_blocking(install).await??;
    let file = env.folder().join("schemathesis.toml");
    std::fs::write(&file, config)?;
    let mut command = Command::new(python.with_file_name("st"));
    command.current_dir(env.folder()).arg("--config-file").arg(file).arg("run");
    command.arg(format!("http://{}/openapi.json", api.address())).args(["--no-color", "--seed", "1"]).args(arguments);
    let output =
        tokio::time::timeout(WAIT_TIMEOUT, command.kill_on_drop(true).output()).await.context("it did not end")??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}");
    Ok(text)
}

#[tokio::test]
async fn api_answers_as_its_document_describes() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let _worker = env.start_ready_worker().await?;
    let descriptions = ["A fox", "A bear [fault:status=500 x2]", "A gory battle"];
    let id = submit(&api, &descriptions, json!({"min_success_rate": 0.3})).await?;
    wait_for_end(&api, &id).await?;
    // Calls other than submissions are for a job that has images and failures.
    let parameters = format!("parameters = {{ \"path.job_id\" = \"{id}\", \"path.index\" = 1 }}");
    let config = format!("[[operations]]\nexclude-method = \"PUT\"\n{parameters}\n");
    // Valid values of some fields cannot be made up: a cursor, the index of an image, the id in path and body.
    let arguments = ["--max-examples", "30", "--exclude-checks", "positive_data_acceptance"];
    let output = run_schemathesis(&env, &api, &config, &arguments).await?;
    assert!(output.contains("Tested: 15"), "{output}");
    Ok(())
}

#[tokio::test]
async fn api_answers_without_a_token_as_its_document_describes() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    let token = "0123456789abcdef0123";
    env.set("API_TOKEN", token);
    let api = env.start_api().await?;
    let header = format!("Authorization: Bearer {token}");
    let arguments = ["-H", &header, "--phases", "coverage", "--exclude-checks", "positive_data_acceptance"];
    let output = run_schemathesis(&env, &api, "", &arguments).await?;
    assert!(output.contains("Tested: 15"), "{output}");
    Ok(())
}

/// The folder of an example.
fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

/// A worker with one job at a time, and the programs' broker in their environment.
async fn run_example(env: &TestEnv, mut command: Command) -> Result<String> {
    command.env("AMQP_URL", &env.amqp_url).current_dir(env.folder());
    output_of(&mut command).await
}

/// Checks what an example prints, and that its job has run.
async fn check_example(env: &TestEnv, output: &str) -> Result<()> {
    assert!(output.contains("completed\n") && output.contains("2 of 2 images"), "{output}");
    assert_eq!(output.lines().filter(|line| line.starts_with("file:///")).count(), 2, "{output}");
    let jobs = env.query_rows("SELECT status, total FROM jobs").await?;
    assert_eq!(jobs, [json!({"status": "completed", "total": 2})]);
    Ok(())
}

const DESCRIPTIONS: [&str; 2] = ["A lighthouse at dusk", "A fox"];

#[tokio::test]
async fn example_with_pika_receives_cloudevents() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let requirements = std::fs::read_to_string(example("pika").join("requirements.txt"))?;
    let install = move || python::environment("pika", &requirements.lines().collect::<Vec<_>>());
    let python = tokio::task::spawn_blocking(install).await??;
    let _worker = env.start_ready_worker().await?;
    let mut command = Command::new(python);
    command.arg(example("pika").join("submit_and_wait.py")).args(DESCRIPTIONS);
    check_example(&env, &run_example(&env, command).await?).await
}

#[tokio::test]
async fn example_with_node_receives_cloudevents() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(example("node").join("package.json"))?)?;
    let dependencies = manifest["dependencies"].as_object().context("dependencies")?.iter();
    let packages: Vec<String> =
        dependencies.map(|(name, version)| format!("{name}@{}", version.as_str().unwrap_or_default())).collect();
    let install = move || node::environment("example", &packages.iter().map(String::as_str).collect::<Vec<_>>());
    let packages = tokio::task::spawn_blocking(install).await??;
    // Packages are found beside the program.
    for file in ["package.json", "submit-and-wait.js"] {
        std::fs::copy(example("node").join(file), env.folder().join(file))?;
    }
    std::os::unix::fs::symlink(packages.join("node_modules"), env.folder().join("node_modules"))?;
    let _worker = env.start_ready_worker().await?;
    let mut command = Command::new("node");
    command.arg("submit-and-wait.js").args(DESCRIPTIONS);
    check_example(&env, &run_example(&env, command).await?).await
}

#[tokio::test]
async fn example_with_lapin_waits_for_its_job() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let _worker = env.start_ready_worker().await?;
    let mut command = Command::new(programs::find("lapin-example")?);
    command.args(DESCRIPTIONS);
    check_example(&env, &run_example(&env, command).await?).await
}

#[tokio::test]
async fn example_with_curl_downloads_an_image() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    let token = "0123456789abcdef0123";
    env.set("API_TOKEN", token);
    let api = env.start_api().await?;
    let _worker = env.start_ready_worker().await?;
    let mut command = Command::new("sh");
    command.arg(example("http").join("submit.sh")).args(DESCRIPTIONS);
    command.env("API_URL", format!("http://{}", api.address())).env("API_TOKEN", token);
    let output = run_example(&env, command).await?;
    assert!(output.contains("started\n") && output.contains("completed\n"), "{output}");
    let copy = image::load_from_memory(&std::fs::read(env.folder().join("image.jpg"))?)?;
    assert_eq!((copy.width(), copy.height()), (320, 180));
    Ok(())
}

#[tokio::test]
async fn example_with_rabbitmqadmin_prints_the_event() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let _worker = env.start_ready_worker().await?;
    let mut command = Command::new("sh");
    command.arg(example("rabbitmq").join("submit.sh")).args(DESCRIPTIONS);
    let management = Url::parse(&ServiceUrls::from_env()?.rabbitmq_api_url)?;
    let vhost = Url::parse(&env.amqp_url)?.path().trim_start_matches('/').to_owned();
    let (user, password) = (management.username(), management.password().unwrap_or_default());
    let host = management.host_str().context("the URL has no host")?;
    command.env("RABBITMQ_API_URL", format!("http://{host}:{}", management.port().unwrap_or(15672)));
    command.env("RABBITMQ_USER", user).env("RABBITMQ_PASSWORD", password).env("RABBITMQ_VHOST", vhost);
    let output = run_example(&env, command).await?;
    assert!(output.contains("assets.generation.completed") && output.contains("image_002.png"), "{output}");
    Ok(())
}
