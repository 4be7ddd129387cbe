//! Spans and log lines. Prompts appear in none of them but [`CallSpan::log_refused_prompt`].

use std::time::Duration;

use reqwest::Url;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, info_span, warn};

use crate::error::Error;
use crate::operation::GEN_AI_PROVIDER_NAME;
use crate::request::ApiRequest;
use crate::wire::{HttpRequest, HttpResponse};

/// The name by which log filters select the crate.
const TARGET: &str = "stability_client";

/// The span of one call, with all its requests and waits.
pub(crate) struct CallSpan(Span);

impl CallSpan {
    /// A client span by OpenTelemetry's semantic conventions for generative AI.
    pub(crate) fn new(request: &ApiRequest<'_>, server: Option<&(String, u16)>) -> Self {
        let (operation, model) = (request.operation.as_str(), request.model);
        Self(info_span!(
            target: TARGET,
            "api call",
            otel.name = format!("{operation} {model}"),
            otel.kind = "client",
            gen_ai.operation.name = operation,
            gen_ai.provider.name = GEN_AI_PROVIDER_NAME,
            gen_ai.request.model = model,
            "gen_ai.output.type" = "image",
            gen_ai.request.seed = request.seed,
            server.address = server.map(|(host, _)| host),
            server.port = server.map(|(_, port)| port),
            stability.requests = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty,
        ))
    }

    pub(crate) async fn run<T>(&self, future: impl Future<Output = T>) -> T {
        future.instrument(self.0.clone()).await
    }

    pub(crate) fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.in_scope(work)
    }

    pub(crate) fn record_requests(&self, requests: u32) {
        self.0.record("stability.requests", requests);
    }

    pub(crate) fn record_failure(&self, error: &Error) {
        self.0.record("error.type", error.kind());
        if !matches!(error, Error::Stopped) {
            self.0.record("otel.status_code", "ERROR");
            self.0.record("otel.status_description", error.to_string());
        }
    }

    /// Logs the full prompt, so that an operator can see what was refused.
    pub(crate) fn log_refused_prompt(&self, prompt: &str, error: &Error) {
        self.0.in_scope(|| warn!(target: TARGET, prompt, %error, "prompt refused by content policy"));
    }
}

/// The span of one HTTP request.
pub(crate) struct RequestSpan(Span);

impl RequestSpan {
    /// A client span by OpenTelemetry's semantic conventions for HTTP.
    pub(crate) fn new(request: &HttpRequest, url: &Url) -> Self {
        let method = request.body.method();
        Self(info_span!(
            target: TARGET,
            "http request",
            otel.name = method,
            otel.kind = "client",
            http.request.method = method,
            http.request.resend_count = (request.resend_count > 0).then_some(request.resend_count),
            http.response.status_code = Empty,
            server.address = url.host_str(),
            server.port = url.port_or_known_default(),
            url.full = url.as_str(),
            "error.type" = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty,
        ))
    }

    pub(crate) async fn run<T>(&self, future: impl Future<Output = T>) -> T {
        future.instrument(self.0.clone()).await
    }

    pub(crate) fn record_result(&self, result: &Result<HttpResponse, Error>) {
        match result {
            Ok(response) => {
                self.0.record("http.response.status_code", response.status);
                if response.status != 200 {
                    self.0.record("error.type", response.status.to_string());
                    self.0.record("otel.status_code", "ERROR");
                }
            }
            Err(error) => {
                self.0.record("error.type", error.kind());
                self.0.record("otel.status_code", "ERROR");
                self.0.record("otel.status_description", error.to_string());
            }
        }
    }
}

/// Runs the wait for a turn and the quota in its own span.
pub(crate) async fn in_quota_span<T>(future: impl Future<Output = T>) -> T {
    future.instrument(info_span!(target: TARGET, "quota wait")).await
}

pub(crate) fn log_sending(attempt: u32) {
    debug!(target: TARGET, attempt, "sending paid request");
}

pub(crate) fn log_lockout(attempt: u32, pause: Duration) {
    warn!(target: TARGET, attempt, ?pause, "rate limit exceeded, retrying after the rate-limit pause");
}

pub(crate) fn log_retry(attempt: u32, wait: Duration, error: &Error) {
    let cause = error.kind();
    match error {
        Error::RateLimited { .. } => warn!(target: TARGET, attempt, cause, ?wait, "rate limit exceeded, retrying"),
        Error::Damaged { .. } | Error::Unusable(_) => {
            warn!(target: TARGET, attempt, cause, %error, "image unusable, requesting it once more");
        }
        error => warn!(target: TARGET, attempt, cause, ?wait, %error, "request failed, retrying"),
    }
}
