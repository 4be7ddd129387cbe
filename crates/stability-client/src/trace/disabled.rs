//! The same functions without the `tracing` crate: they do nothing.
#![expect(clippy::unused_self, reason = "the methods of the module `enabled`")]

use std::time::Duration;

use reqwest::Url;

use crate::error::Error;
use crate::request::ApiRequest;
use crate::wire::{HttpRequest, HttpResponse};

pub(crate) struct CallSpan;

impl CallSpan {
    pub(crate) fn new(_request: &ApiRequest<'_>, _server: Option<&(String, u16)>) -> Self {
        Self
    }

    pub(crate) async fn run<T>(&self, future: impl Future<Output = T>) -> T {
        future.await
    }

    pub(crate) fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        work()
    }

    pub(crate) fn record_requests(&self, _requests: u32) {}

    pub(crate) fn record_failure(&self, _error: &Error) {}

    pub(crate) fn log_refused_prompt(&self, _prompt: &str, _error: &Error) {}
}

pub(crate) struct RequestSpan;

impl RequestSpan {
    pub(crate) fn new(_request: &HttpRequest, _url: &Url) -> Self {
        Self
    }

    pub(crate) async fn run<T>(&self, future: impl Future<Output = T>) -> T {
        future.await
    }

    pub(crate) fn record_result(&self, _result: &Result<HttpResponse, Error>) {}
}

pub(crate) async fn in_quota_span<T>(future: impl Future<Output = T>) -> T {
    future.await
}

pub(crate) fn log_sending(_attempt: u32) {}

pub(crate) fn log_lockout(_attempt: u32, _pause: Duration) {}

pub(crate) fn log_retry(_attempt: u32, _wait: Duration, _error: &Error) {}
