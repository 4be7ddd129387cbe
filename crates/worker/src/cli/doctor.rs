//! `doctor`: checks all settings and connections, and suggests a fix for each failed check.

use std::time::Duration;

use broker::{Broker, QueueMatch, QueueState, Topology};
use gemini_client::Gemini;
use serde::Serialize;
use stability_client::{AccountStatus, Client, Engine};
use store::{KeyHash, SchemaState, Store};

use super::exit::CliError;
use super::screen::Screen;
use crate::bootstrap;
use crate::cost_policy::CostPolicy;
use crate::error_chain::error_chain;
use crate::gate::{self, GateReason};
use crate::settings::{SettingError, Settings};
use crate::storage::Storage;
use crate::telemetry;

/// A check that takes longer than this has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    #[serde(flatten)]
    result: CheckResult,
}

#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum CheckResult {
    Ok {
        message: String,
    },
    Failed {
        message: String,
        advice: String,
        /// The cause is an invalid setting, not a service.
        #[serde(skip)]
        is_usage_error: bool,
    },
}

impl CheckResult {
    fn ok(message: impl Into<String>) -> Self {
        Self::Ok { message: message.into() }
    }

    fn failed(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), advice: advice.into(), is_usage_error: false }
    }

    fn invalid_setting(error: &SettingError) -> Self {
        Self::Failed {
            message: error.to_string(),
            advice: "correct the setting; docs/configuration.md lists all settings".into(),
            is_usage_error: true,
        }
    }
}

pub(super) async fn run(
    options: &Options,
    settings: Result<Settings, SettingError>,
    screen: &Screen,
) -> Result<(), CliError> {
    let findings = match settings {
        Err(error) => vec![Finding { name: "settings", result: CheckResult::invalid_setting(&error) }],
        Ok(settings) => Box::pin(run_checks(&settings)).await,
    };
    if options.json {
        screen.print(&serde_json::to_string_pretty(&findings).expect("plain data serialises"));
    } else {
        screen.print(&findings.iter().map(format_finding).collect::<Vec<_>>().join("\n"));
    }
    let failed = || {
        findings.iter().filter_map(|finding| match &finding.result {
            CheckResult::Ok { .. } => None,
            CheckResult::Failed { is_usage_error: usage, .. } => Some(*usage),
        })
    };
    match failed().count() {
        0 => Ok(()),
        count if failed().any(|usage| usage) => Err(CliError::Usage(format!("{count} checks failed"))),
        count => Err(CliError::unreachable(format!("{count} checks failed"))),
    }
}

fn format_finding(finding: &Finding) -> String {
    match &finding.result {
        CheckResult::Ok { message } => format!("ok      {:<13}{message}", finding.name),
        CheckResult::Failed { message, advice, .. } => {
            format!("FAILED  {:<13}{message}\n        {:<13}fix: {advice}", finding.name, "")
        }
    }
}

async fn run_checks(settings: &Settings) -> Vec<Finding> {
    let (broker, queues, database, storage, api, translation, telemetry, gate) = tokio::join!(
        with_timeout(check_broker(settings)),
        with_timeout(check_queues(settings)),
        with_timeout(check_database(settings)),
        with_timeout(check_storage(settings)),
        with_timeout(check_api(settings)),
        with_timeout(check_translation(settings)),
        with_timeout(check_telemetry(settings)),
        with_timeout(check_gate(settings)),
    );
    let settings_ok = CheckResult::ok(format!("{} settings are valid", settings.redacted_values.len()));
    let results = [
        ("settings", settings_ok),
        ("broker", broker),
        ("queues", queues),
        ("database", database),
        ("storage", storage),
        ("api", api),
        ("translation", translation),
        ("telemetry", telemetry),
        ("gate", gate),
    ];
    results.into_iter().map(|(name, state)| Finding { name, result: state }).collect()
}

async fn with_timeout(check: impl Future<Output = CheckResult>) -> CheckResult {
    tokio::time::timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(|_| {
        CheckResult::failed(
            format!("no response within {CHECK_TIMEOUT:?}"),
            "check the network connection to the service",
        )
    })
}

async fn check_broker(settings: &Settings) -> CheckResult {
    let advice = "start RabbitMQ, or correct AMQP_URL (user, password, virtual host)";
    let broker = match Broker::connect_without_topology(&settings.amqp_url).await {
        Ok(broker) => broker,
        Err(error) => return CheckResult::failed(error_chain(&error), advice),
    };
    let queue = broker.read_command_queue_state().await;
    broker.close().await;
    match queue {
        Ok(QueueState::Present { messages, consumers }) => {
            CheckResult::ok(format!("reachable; {messages} commands are waiting, {consumers} consumers"))
        }
        Ok(QueueState::Missing) => {
            CheckResult::ok("reachable; the queue does not exist yet, the first worker declares it")
        }
        Err(error) => CheckResult::failed(error_chain(&error), "grant the user permissions on the virtual host"),
    }
}

/// Checks that each queue that a worker declares at start exists with the expected arguments.
async fn check_queues(settings: &Settings) -> CheckResult {
    let Ok(broker) = Broker::connect_without_topology(&settings.amqp_url).await else {
        return CheckResult::failed("unknown, because the broker cannot be reached", "fix the broker connection first");
    };
    let compared = broker.compare_topology(&Topology::new(settings.jobs.queue_delays())).await;
    broker.close().await;
    let compared = match compared {
        Ok(compared) => compared,
        Err(error) => {
            return CheckResult::failed(error_chain(&error), "grant the user permissions on the virtual host");
        }
    };
    let (all, missing) = (compared.len(), compared.iter().filter(|(_, found)| *found == QueueMatch::Missing).count());
    for (name, found) in compared {
        if let QueueMatch::Differs(why) = found {
            let advice =
                format!("empty {name}, delete it and start a worker, which declares it again (docs/operations.md)");
            return CheckResult::failed(format!("{name} has other arguments than expected ({why})"), advice);
        }
    }
    match missing {
        0 => CheckResult::ok(format!("all {all} queues exist with the expected arguments")),
        missing => CheckResult::ok(format!(
            "{} of {all} queues exist with the expected arguments; the next start declares the others",
            all - missing
        )),
    }
}

/// Checks that the collector accepts exported data.
async fn check_telemetry(settings: &Settings) -> CheckResult {
    let exported = settings.telemetry.exported_signals();
    let signals = exported.iter().map(|(signal, _)| *signal).collect::<Vec<_>>().join(", ");
    match telemetry::check_collector(&settings.telemetry).await {
        None if exported.is_empty() => CheckResult::ok(
            "nothing is exported; set OTEL_EXPORTER_OTLP_ENDPOINT to export to a collector (/metrics is always served)",
        ),
        None => CheckResult::ok(format!("{signals} are exported")),
        Some(Ok(())) => CheckResult::ok(format!("the collector accepts data; {signals} are exported")),
        Some(Err(error)) => CheckResult::failed(
            format!("the collector does not accept spans ({error})"),
            "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL",
        ),
    }
}

async fn check_database(settings: &Settings) -> CheckResult {
    let schema = match Store::connect_existing(&settings.database_url).await {
        Ok(Some(store)) => store.read_schema_state().await,
        Ok(None) => return CheckResult::ok("there is no database file yet; the first start creates it"),
        Err(error) => Err(error),
    };
    match schema {
        Ok(SchemaState { pending: 0, newer }) if newer.is_empty() => {
            CheckResult::ok("reachable; the schema is up to date")
        }
        Ok(SchemaState { pending: 0, newer }) => CheckResult::ok(format!(
            "reachable; a newer version of the worker has migrated it ({}), which this version ignores",
            newer.join(", ")
        )),
        Ok(SchemaState { pending, .. }) => CheckResult::ok(format!(
            "reachable; {pending} migrations are pending, `asset-worker migrate` or the next start applies them"
        )),
        Err(error) => CheckResult::failed(error_chain(&error), "start the database, or correct DATABASE_URL"),
    }
}

/// Reports why the account gate is closed. A pause and a daily budget that is used up are no failures.
async fn check_gate(settings: &Settings) -> CheckResult {
    let reasons = match Store::connect_existing(&settings.database_url).await {
        Ok(Some(store)) => {
            let key = settings.stability.api_key.as_ref().map(KeyHash::new);
            let read = gate::read_reasons(&store, CostPolicy::new(settings), key.as_ref()).await;
            if read.is_err() && matches!(store.read_schema_state().await, Ok(SchemaState { pending: 1.., .. })) {
                return CheckResult::ok("unknown until the pending migrations are applied");
            }
            read
        }
        Ok(None) => return CheckResult::ok("open; there is no database yet"),
        Err(error) => Err(error),
    };
    match reasons.as_deref() {
        Ok([]) => CheckResult::ok("open"),
        Ok(reasons) => {
            let is_refused = reasons.iter().any(|reason| matches!(reason, GateReason::Refused(_)));
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            let text = format!("closed: {}", reasons.join("; "));
            if is_refused {
                CheckResult::failed(
                    text,
                    "replace STABILITY_API_KEY or buy credits; the workers notice it by themselves",
                )
            } else {
                CheckResult::ok(text)
            }
        }
        Err(error) => CheckResult::failed(error_chain(error), "start the database, or correct DATABASE_URL"),
    }
}

async fn check_storage(settings: &Settings) -> CheckResult {
    let checked = match Storage::open(&settings.storage_root) {
        Ok(storage) => storage.check_writable().await.map(|()| storage.root().to_owned()),
        Err(error) => Err(error),
    };
    match checked {
        Ok(root) => CheckResult::ok(format!("{root} is writable")),
        Err(error) => CheckResult::failed(
            error_chain(&error),
            "correct ASSET_STORAGE_URL, the permissions or free space there, or the AWS_ variables of a bucket",
        ),
    }
}

async fn check_api(settings: &Settings) -> CheckResult {
    let client = match bootstrap::standalone_client(settings) {
        Ok(client) => client,
        Err(error) => return CheckResult::invalid_setting(&error),
    };
    match check_account(&client, settings.stability.engine).await {
        Ok(state) => state,
        Err(error) => CheckResult::failed(
            error_chain(&error),
            "check STABILITY_API_KEY, STABILITY_BASE_URL and the API's status page",
        ),
    }
}

async fn check_translation(settings: &Settings) -> CheckResult {
    let phrases = settings.translation.phrase_book.len();
    let Some(gemini) = &settings.translation.gemini else {
        return CheckResult::ok(format!(
            "{phrases} texts in the phrase book; GEMINI_API_KEY is not set: images with other texts that are not in Latin letters fail"
        ));
    };
    let gemini = match Gemini::new(gemini) {
        Ok(gemini) => gemini,
        Err(error) => return CheckResult::invalid_setting(&SettingError::unusable("GEMINI_API_KEY", &error)),
    };
    match gemini.check().await {
        Ok(()) => CheckResult::ok(format!(
            "{phrases} texts in the phrase book; the key is valid; {} is available",
            gemini.model()
        )),
        Err(error) => CheckResult::failed(error.to_string(), "check GEMINI_API_KEY, GEMINI_MODEL and GEMINI_BASE_URL"),
    }
}

async fn check_account(client: &Client, engine: Engine) -> Result<CheckResult, stability_client::Error> {
    let checked = client.check(engine).await?;
    Ok(match checked {
        AccountStatus { engine_listed: Some(false), .. } => CheckResult::failed(
            format!("{engine} is not among the engines of the account"),
            "ask Stability whether the engine was retired",
        ),
        AccountStatus { credits, .. } if credits <= 0.0 => {
            CheckResult::failed("the key is valid, but no credits are left", "buy credits at platform.stability.ai")
        }
        AccountStatus { credits, .. } => {
            CheckResult::ok(format!("the key is valid; {engine} is available; {credits:.1} credits are left"))
        }
    })
}
