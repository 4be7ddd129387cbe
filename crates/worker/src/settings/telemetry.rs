//! The `OTEL_*` variables: which of them are heeded, and that their values are what OpenTelemetry's specification allows.
//!
//! What is decided here is what is exported at all, and how; the rest of their meaning is the exporters' own, which read them themselves. They take a
//! wrong value for none, so that it is looked for here.

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::read::{Reader, SettingError};

/// By which protocol OTLP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otlp {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// What is exported.
#[derive(Debug, Clone, Default)]
pub struct TelemetrySettings {
    /// Spans.
    pub traces: Option<Otlp>,
    /// Metrics. They are served at `/metrics` in any case.
    pub metrics: Option<Otlp>,
    /// Log lines. They are written to standard error in any case.
    pub logs: Option<Otlp>,
    /// Headers of every export, by name in lower case, from `OTEL_EXPORTER_OTLP_HEADERS_FILE`.
    pub headers: Vec<(String, SecretString)>,
    /// What this service is called.
    pub service_name: Option<String>,
}

const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const HEADERS_FILE: &str = "OTEL_EXPORTER_OTLP_HEADERS_FILE";

const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

const SIGNALS: [&str; 3] = ["TRACES", "METRICS", "LOGS"];

/// In milliseconds: at most an hour.
const DURATIONS: [&str; 3] = ["OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY", "OTEL_METRIC_EXPORT_INTERVAL"];
/// Of queues whose room is taken at once.
const SIZES: [&str; 4] = [
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
];

impl TelemetrySettings {
    pub(super) fn read(read: &Reader) -> Result<Self, SettingError> {
        let number = |name: &str, most: u32| {
            let allowed = format!("a whole number from 1 to {most}");
            read.optional(name, allowed, |text| text.parse::<u32>().ok().filter(|number| (1..=most).contains(number)))
        };
        for name in DURATIONS {
            number(name, 3_600_000)?;
        }
        for name in SIZES {
            number(name, 65_536)?;
        }
        // Each of these may be set for one signal alone.
        for of in std::iter::once(String::new()).chain(SIGNALS.iter().map(|signal| format!("{signal}_"))) {
            number(&format!("OTEL_EXPORTER_OTLP_{of}TIMEOUT"), 3_600_000)?;
            read.optional(&format!("OTEL_EXPORTER_OTLP_{of}COMPRESSION"), "gzip or none", |text| {
                matches!(text, "gzip" | "none").then_some(())
            })?;
            let name = format!("OTEL_EXPORTER_OTLP_{of}HEADERS");
            if let Some(text) = read.given(&name) {
                headers_of(&name, &text)?;
            }
        }
        read.optional("OTEL_TRACES_SAMPLER", SAMPLERS.join(", "), |text| SAMPLERS.contains(&text).then_some(()))?;
        read.optional("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", |text| {
            text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio))
        })?;
        let disabled =
            read.optional("OTEL_SDK_DISABLED", "true or false", |text| match text.to_ascii_lowercase().as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            })?;
        let exported = |signal: &str, by_default: bool| signal_of(read, signal, by_default);
        let (traces, metrics, logs) = (exported("TRACES", true)?, exported("METRICS", true)?, exported("LOGS", false)?);
        let in_file = read.given_or_file(HEADERS)?;
        let headers = in_file.map_or_else(|| Ok(Vec::new()), |text| headers_of(HEADERS_FILE, text.expose_secret()))?;
        let service_name = read.given("OTEL_SERVICE_NAME");
        if disabled == Some(true) {
            return Ok(Self::default());
        }
        Ok(Self { traces, metrics, logs, headers, service_name })
    }

    /// For people: what is exported by which protocol.
    pub fn shown(&self) -> Vec<(&'static str, Otlp)> {
        let signals = [("traces", self.traces), ("metrics", self.metrics), ("logs", self.logs)];
        signals.into_iter().filter_map(|(name, otlp)| Some((name, otlp?))).collect()
    }
}

/// Reads `name=value,name=value`, values percent-encoded, as the specification has it.
fn headers_of(name: &str, text: &str) -> Result<Vec<(String, SecretString)>, SettingError> {
    let refused =
        || SettingError::refused_secret(name, "name=value, separated by commas; values may be percent-encoded");
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let header = |entry: &str| {
        let (key, value) = entry.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let key = key.trim().to_lowercase();
        let good = !key.is_empty() && key.chars().all(token) && value.chars().all(|c| matches!(c, ' '..='~'));
        good.then(|| (key, SecretString::from(value.into_owned())))
    };
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(|entry| header(entry).ok_or_else(refused)).collect()
}

/// Whether and how a signal is exported: where an endpoint is set, unless its exporter is `none`. Log lines are exported on request only.
fn signal_of(read: &Reader, signal: &str, by_default: bool) -> Result<Option<Otlp>, SettingError> {
    let exporter = read.optional(&format!("OTEL_{signal}_EXPORTER"), "otlp or none", |text| match text {
        "otlp" => Some(true),
        "none" => Some(false),
        _ => None,
    })?;
    let endpoint = |name: &str| {
        read.optional(name, "an http:// or https:// URL without a user", |text| {
            let url = Url::parse(text).ok()?;
            let plain = url.username().is_empty() && url.password().is_none();
            (matches!(url.scheme(), "http" | "https") && url.has_host() && plain).then_some(())
        })
    };
    let protocol = |name: &str| {
        read.optional(name, "grpc or http/protobuf", |text| match text {
            "grpc" => Some(Otlp::Grpc),
            "http/protobuf" => Some(Otlp::Http),
            _ => None,
        })
    };
    let own = endpoint(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))?;
    let common = endpoint("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    let own_protocol = protocol(&format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"))?;
    let protocol = own_protocol.or(protocol("OTEL_EXPORTER_OTLP_PROTOCOL")?).unwrap_or(Otlp::Http);
    let wanted = exporter.unwrap_or(by_default);
    Ok((wanted && own.or(common).is_some()).then_some(protocol))
}
