//! `doctor`: every setting and every connection, each with what to do where it is not well.

use std::time::Duration;

use broker::{Broker, QueueMatch, QueueState, Topology};
use gemini_client::Gemini;
use serde::Serialize;
use stability_client::{Checked, Client, Engine};
use store::Store;

use super::exit::Failure;
use super::screen::Screen;
use crate::bootstrap;
use crate::error_chain::error_chain;
use crate::settings::{SettingError, Settings};
use crate::storage::Storage;
use crate::telemetry;

/// A part that has not answered by then is not well.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found out about one thing.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    #[serde(flatten)]
    state: State,
}

#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum State {
    Ok {
        message: String,
    },
    Failed {
        message: String,
        advice: String,
        /// A setting is to blame, not a service.
        #[serde(skip)]
        usage: bool,
    },
}

impl State {
    fn ok(message: impl Into<String>) -> Self {
        Self::Ok { message: message.into() }
    }

    fn failed(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), advice: advice.into(), usage: false }
    }

    fn setting(error: &SettingError) -> Self {
        Self::Failed {
            message: error.to_string(),
            advice: "mend the setting; the README lists all".into(),
            usage: true,
        }
    }
}

pub(super) async fn doctor(
    options: &Options,
    settings: Result<Settings, SettingError>,
    screen: &Screen,
) -> Result<(), Failure> {
    let findings = match settings {
        Err(error) => vec![Finding { name: "settings", state: State::setting(&error) }],
        Ok(settings) => Box::pin(findings(&settings)).await,
    };
    if options.json {
        screen.print(&serde_json::to_string_pretty(&findings).expect("plain data serialises"));
    } else {
        screen.print(&findings.iter().map(line).collect::<Vec<_>>().join("\n"));
    }
    let failed = || {
        findings.iter().filter_map(|finding| match &finding.state {
            State::Ok { .. } => None,
            State::Failed { usage, .. } => Some(*usage),
        })
    };
    match failed().count() {
        0 => Ok(()),
        count if failed().any(|usage| usage) => Err(Failure::Usage(format!("{count} not well"))),
        count => Err(Failure::unreachable(format!("{count} not well"))),
    }
}

fn line(finding: &Finding) -> String {
    match &finding.state {
        State::Ok { message } => format!("ok      {:<13}{message}", finding.name),
        State::Failed { message, advice, .. } => {
            format!("FAILED  {:<13}{message}\n        {:<13}what to do: {advice}", finding.name, "")
        }
    }
}

async fn findings(settings: &Settings) -> Vec<Finding> {
    let (broker, queues, database, storage, api, translation, telemetry) = tokio::join!(
        in_time(broker(settings)),
        in_time(queues(settings)),
        in_time(database(settings)),
        in_time(storage(settings)),
        in_time(api(settings)),
        in_time(translation(settings)),
        in_time(telemetry(settings)),
    );
    let all_good = State::ok(format!("{} settings are well formed", settings.in_force.len()));
    let found = [
        ("settings", all_good),
        ("broker", broker),
        ("queues", queues),
        ("database", database),
        ("storage", storage),
        ("api", api),
        ("translation", translation),
        ("telemetry", telemetry),
    ];
    found.into_iter().map(|(name, state)| Finding { name, state }).collect()
}

async fn in_time(check: impl Future<Output = State>) -> State {
    tokio::time::timeout(PATIENCE, check)
        .await
        .unwrap_or_else(|_| State::failed(format!("no answer within {PATIENCE:?}"), "look at the network in between"))
}

async fn broker(settings: &Settings) -> State {
    let advice = "start RabbitMQ, or mend AMQP_URL (user, password, virtual host)";
    let broker = match Broker::reach(&settings.amqp_url).await {
        Ok(broker) => broker,
        Err(error) => return State::failed(error_chain(&error), advice),
    };
    let queue = broker.generate_queue().await;
    broker.close().await;
    match queue {
        Ok(QueueState::There { messages, consumers }) => {
            State::ok(format!("reached; {messages} commands wait, {consumers} workers take them"))
        }
        Ok(QueueState::Missing) => State::ok("reached; no queue yet, the first worker makes it"),
        Err(error) => State::failed(error_chain(&error), "give the user its rights on the virtual host"),
    }
}

/// Each queue that a start declares: whether it is there with the arguments that it shall have.
async fn queues(settings: &Settings) -> State {
    let Ok(broker) = Broker::reach(&settings.amqp_url).await else {
        return State::failed("not known while the broker cannot be reached", "mend the broker first");
    };
    let compared = broker.compared(&Topology::new(settings.jobs.queue_delays())).await;
    broker.close().await;
    let compared = match compared {
        Ok(compared) => compared,
        Err(error) => return State::failed(error_chain(&error), "give the user its rights on the virtual host"),
    };
    let (all, missing) = (compared.len(), compared.iter().filter(|(_, found)| *found == QueueMatch::Missing).count());
    for (name, found) in compared {
        if let QueueMatch::Differs(why) = found {
            let advice = format!("empty {name}, delete it, and start a worker, which makes it anew (docs/RUNBOOK.md)");
            return State::failed(format!("{name} has other arguments than it shall have ({why})"), advice);
        }
    }
    match missing {
        0 => State::ok(format!("all {all} are there as they shall be")),
        missing => {
            State::ok(format!("{} of {all} are there as they shall be; the next start makes the rest", all - missing))
        }
    }
}

/// Whether the collector takes what is exported.
async fn telemetry(settings: &Settings) -> State {
    let exported = settings.telemetry.shown();
    let named = exported.iter().map(|(signal, _)| *signal).collect::<Vec<_>>().join(", ");
    match telemetry::check(&settings.telemetry).await {
        None if exported.is_empty() => State::ok(
            "nothing is exported; OTEL_EXPORTER_OTLP_ENDPOINT names a collector, /metrics is served in any case",
        ),
        None => State::ok(format!("{named} are exported")),
        Some(Ok(())) => State::ok(format!("the collector takes what it is sent; {named} are exported")),
        Some(Err(error)) => State::failed(
            format!("the collector does not take spans ({error})"),
            "start the collector, or mend OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL",
        ),
    }
}

async fn database(settings: &Settings) -> State {
    let pending = match Store::connect(&settings.database_url).await {
        Ok(store) => store.pending_migrations().await,
        Err(error) => Err(error),
    };
    match pending {
        Ok(0) => State::ok("reached; its schema is up to date"),
        Ok(pending) => State::ok(format!(
            "reached; {pending} migrations are missing, `asset-worker migrate` or the next start applies them"
        )),
        Err(error) => State::failed(error_chain(&error), "start the database, or mend DATABASE_URL"),
    }
}

async fn storage(settings: &Settings) -> State {
    let checked = match Storage::open(&settings.storage_root) {
        Ok(storage) => storage.check().await.map(|()| storage.root().to_owned()),
        Err(error) => Err(error),
    };
    match checked {
        Ok(root) => State::ok(format!("{root} can be written")),
        Err(error) => State::failed(
            error_chain(&error),
            "mend ASSET_STORAGE_URL, rights and space there, or a bucket's AWS_ variables",
        ),
    }
}

async fn api(settings: &Settings) -> State {
    let client = match bootstrap::client(settings) {
        Ok(client) => client,
        Err(error) => return State::setting(&error),
    };
    match asked(&client).await {
        Ok(state) => state,
        Err(error) => State::failed(
            error_chain(&error),
            "look at STABILITY_API_KEY and STABILITY_BASE_URL, and at the API's status page",
        ),
    }
}

async fn translation(settings: &Settings) -> State {
    let phrases = settings.translation.phrase_book.len();
    let Some(gemini) = &settings.translation.gemini else {
        return State::ok(format!(
            "{phrases} texts in the phrase book; without GEMINI_API_KEY other Chinese texts fail their images"
        ));
    };
    let gemini = match Gemini::new(gemini) {
        Ok(gemini) => gemini,
        Err(error) => return State::setting(&SettingError::unusable("GEMINI_API_KEY", &error)),
    };
    match gemini.check().await {
        Ok(()) => {
            State::ok(format!("{phrases} texts in the phrase book; the key is good; {} is there", gemini.model()))
        }
        Err(error) => State::failed(error.to_string(), "look at GEMINI_API_KEY, GEMINI_MODEL and GEMINI_BASE_URL"),
    }
}

async fn asked(client: &Client) -> Result<State, stability_client::Error> {
    let engine = Engine::default();
    let checked = client.check(engine).await?;
    Ok(match checked {
        Checked { engine_listed: Some(false), .. } => {
            State::failed(format!("the account does not list {engine}"), "ask Stability whether it was retired")
        }
        Checked { credits, .. } if credits <= 0.0 => {
            State::failed("the key is good, but no credits are left", "buy credits at platform.stability.ai")
        }
        Checked { credits, .. } => {
            State::ok(format!("the key is good; {engine} is there; {credits:.1} credits are left"))
        }
    })
}
