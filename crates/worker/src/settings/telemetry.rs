//! Reads and validates the `OTEL_*` variables that the worker supports.
//!
//! This module decides which signals are exported and by which protocol. All other variables are read by the exporters
//! themselves, which silently ignore invalid values; therefore the values are validated here, by OpenTelemetry's
//! specification.

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::reader::{Reader, SettingError};

/// Transport protocol of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// Which signals are exported by OTLP, and how.
#[derive(Debug, Clone, Default)]
pub struct TelemetrySettings {
    /// Protocol of the span export; `None`: spans are not exported.
    pub traces: Option<OtlpProtocol>,
    /// Protocol of the metric export; `None`: metrics are only served at `/metrics`.
    pub metrics: Option<OtlpProtocol>,
    /// Protocol of the log export; `None`: log lines are only written to standard error.
    pub logs: Option<OtlpProtocol>,
    /// Headers of every export request from `OTEL_EXPORTER_OTLP_HEADERS_FILE`; names are in lower case.
    pub headers: Vec<(String, SecretString)>,
    /// `OTEL_SERVICE_NAME`; `None` if unset.
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

/// Variables in milliseconds, at most one hour.
const MILLISECOND_VARIABLES: [&str; 3] =
    ["OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY", "OTEL_METRIC_EXPORT_INTERVAL"];
/// Sizes of queues and batches. They are limited because the memory of a queue is allocated at once.
const SIZE_VARIABLES: [&str; 4] = [
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
];

impl TelemetrySettings {
    pub(super) fn read(reader: &Reader) -> Result<Self, SettingError> {
        let number = |name: &str, most: u32| {
            let allowed = format!("a whole number from 1 to {most}");
            reader.parse_optional(name, allowed, |text| {
                text.parse::<u32>().ok().filter(|number| (1..=most).contains(number))
            })
        };
        for name in MILLISECOND_VARIABLES {
            number(name, 3_600_000)?;
        }
        for name in SIZE_VARIABLES {
            number(name, 65_536)?;
        }
        // Each of these variables exists for all signals and for each single signal.
        for signal_prefix in std::iter::once(String::new()).chain(SIGNALS.iter().map(|signal| format!("{signal}_"))) {
            number(&format!("OTEL_EXPORTER_OTLP_{signal_prefix}TIMEOUT"), 3_600_000)?;
            reader.parse_optional(
                &format!("OTEL_EXPORTER_OTLP_{signal_prefix}COMPRESSION"),
                "gzip or none",
                |text| matches!(text, "gzip" | "none").then_some(()),
            )?;
            let name = format!("OTEL_EXPORTER_OTLP_{signal_prefix}HEADERS");
            if let Some(text) = reader.get(&name) {
                parse_headers(&name, &text)?;
            }
        }
        reader.parse_optional("OTEL_TRACES_SAMPLER", SAMPLERS.join(", "), |text| {
            SAMPLERS.contains(&text).then_some(())
        })?;
        reader.parse_optional("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", |text| {
            text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio))
        })?;
        let disabled = reader.parse_optional("OTEL_SDK_DISABLED", "true or false", |text| {
            match text.to_ascii_lowercase().as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            }
        })?;
        let read_signal = |signal: &str, by_default: bool| read_signal(reader, signal, by_default);
        let (traces, metrics, logs) =
            (read_signal("TRACES", true)?, read_signal("METRICS", true)?, read_signal("LOGS", false)?);
        let file_headers = reader.secret_from_file(HEADERS)?;
        let headers =
            file_headers.map_or_else(|| Ok(Vec::new()), |text| parse_headers(HEADERS_FILE, text.expose_secret()))?;
        let service_name = reader.get("OTEL_SERVICE_NAME");
        if disabled == Some(true) {
            return Ok(Self::default());
        }
        Ok(Self { traces, metrics, logs, headers, service_name })
    }

    /// The exported signals with their protocols, for display.
    pub fn exported_signals(&self) -> Vec<(&'static str, OtlpProtocol)> {
        let signals = [("traces", self.traces), ("metrics", self.metrics), ("logs", self.logs)];
        signals.into_iter().filter_map(|(name, otlp)| Some((name, otlp?))).collect()
    }
}

/// Parses `name=value,name=value` with percent-encoded values, as OpenTelemetry's specification defines it.
fn parse_headers(name: &str, text: &str) -> Result<Vec<(String, SecretString)>, SettingError> {
    let invalid =
        || SettingError::invalid_secret(name, "name=value, separated by commas; values may be percent-encoded");
    let is_token_char = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let header = |entry: &str| {
        let (key, value) = entry.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let key = key.trim().to_lowercase();
        let good = !key.is_empty() && key.chars().all(is_token_char) && value.chars().all(|c| matches!(c, ' '..='~'));
        good.then(|| (key, SecretString::from(value.into_owned())))
    };
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(|entry| header(entry).ok_or_else(invalid)).collect()
}

/// The protocol by which a signal is exported; `None` if it is not exported.
///
/// A signal is exported if an endpoint is set and its exporter is `otlp`; if that is unset, `by_default` decides.
fn read_signal(read: &Reader, signal: &str, by_default: bool) -> Result<Option<OtlpProtocol>, SettingError> {
    let exporter = read.parse_optional(&format!("OTEL_{signal}_EXPORTER"), "otlp or none", |text| match text {
        "otlp" => Some(true),
        "none" => Some(false),
        _ => None,
    })?;
    let endpoint = |name: &str| {
        read.parse_optional(name, "an http:// or https:// URL without credentials", |text| {
            let url = Url::parse(text).ok()?;
            let plain = url.username().is_empty() && url.password().is_none();
            (matches!(url.scheme(), "http" | "https") && url.has_host() && plain).then_some(())
        })
    };
    let protocol = |name: &str| {
        read.parse_optional(name, "grpc or http/protobuf", |text| match text {
            "grpc" => Some(OtlpProtocol::Grpc),
            "http/protobuf" => Some(OtlpProtocol::Http),
            _ => None,
        })
    };
    let own = endpoint(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))?;
    let common = endpoint("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    let own_protocol = protocol(&format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"))?;
    let protocol = own_protocol.or(protocol("OTEL_EXPORTER_OTLP_PROTOCOL")?).unwrap_or(OtlpProtocol::Http);
    let enabled = exporter.unwrap_or(by_default);
    Ok((enabled && own.or(common).is_some()).then_some(protocol))
}
