//! Who may call: tokens, the address of the client, and the origin of the page that calls.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, header};
use domain::digest;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use tracing::warn;

use super::attempts::FailedAttempts;
use super::problem::{Problem, ProblemCode};
use super::role::Role;
use super::session::{self, Sessions};
use crate::settings::ApiSettings;

/// The caller of a request; an extension of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) role: Role,
    pub(crate) address: IpAddr,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A call of the API.
    Api,
    /// A page, whose forms have tokens.
    Page,
}

/// Decides who may call.
pub(crate) struct Access {
    /// SHA-256 of the tokens, so that a comparison does not tell their length.
    token: Option<String>,
    read_token: Option<String>,
    trusted_proxies: Vec<IpNet>,
    cors_origins: Vec<String>,
    attempts: FailedAttempts,
    /// Only if a token is set.
    sessions: Option<Sessions>,
}

impl Access {
    pub(super) fn new(settings: &ApiSettings) -> Self {
        let hash = |token: &Option<SecretString>| token.as_ref().map(|token| digest::sha256(token.expose_secret()));
        let (token, read_token) = (hash(&settings.token), hash(&settings.read_token));
        let has_token = token.is_some() || read_token.is_some();
        let hashes = [&token, &read_token].map(|hash| hash.as_deref().unwrap_or_default());
        Self {
            sessions: has_token.then(|| Sessions::new(&hashes.join("."))),
            token,
            read_token,
            trusted_proxies: settings.trusted_proxies.clone(),
            cors_origins: settings.cors_origins.clone(),
            attempts: FailedAttempts::default(),
        }
    }

    /// Finds out who calls, and whether the call is allowed; `is_change` says whether it may change something.
    ///
    /// A session counts as its token, but a call of the API that changes something needs the token itself: its requests
    /// have no token of a form.
    ///
    /// # Errors
    ///
    /// The problem, if it is not.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        peer: IpAddr,
        target: Target,
        is_change: bool,
    ) -> Result<Caller, Problem> {
        let address = self.client_address(headers, peer.to_canonical());
        let has_session = bearer_token(headers).is_none() && (target == Target::Page || !is_change);
        let session = has_session.then(|| self.find_session(headers)).flatten();
        let role = session.map_or_else(|| self.find_role(headers, address), Ok)?;
        if role == Role::Local {
            check_local_host(headers)?;
        }
        if is_change {
            if role == Role::ReadOnly {
                return Err(Problem::new(ProblemCode::Forbidden, "the token is read-only"));
            }
            self.check_origin(headers)?;
        }
        Ok(Caller { role, address })
    }

    /// Whether a token is set, and so required.
    pub(super) fn requires_token(&self) -> bool {
        self.token.is_some() || self.read_token.is_some()
    }

    fn find_role(&self, headers: &HeaderMap, address: IpAddr) -> Result<Role, Problem> {
        if !self.requires_token() {
            return Ok(Role::Local);
        }
        let Some(presented) = bearer_token(headers) else {
            return Err(Problem::new(ProblemCode::Unauthorized, "a bearer token is required"));
        };
        self.check_token(presented, address)
    }

    /// The address of a client, and whether its origin may send forms, before it has presented a token.
    ///
    /// # Errors
    ///
    /// The problem, if it may not.
    pub(crate) fn check_stranger(&self, headers: &HeaderMap, peer: IpAddr) -> Result<IpAddr, Problem> {
        if !self.requires_token() {
            check_local_host(headers)?;
        }
        self.check_origin(headers)?;
        Ok(self.client_address(headers, peer.to_canonical()))
    }

    /// The role of the session of a request, if it has a valid one.
    fn find_session(&self, headers: &HeaderMap) -> Option<Role> {
        self.sessions.as_ref()?.role(&session::read_session(headers)?, OffsetDateTime::now_utc())
    }

    /// Begins a session for a token.
    ///
    /// # Errors
    ///
    /// The problem, if the token is wrong, or too many wrong ones came from this address.
    pub(crate) fn log_in(&self, token: &str, address: IpAddr) -> Result<String, Problem> {
        let role = self.check_token(token, address)?;
        let no_login = || Problem::new(ProblemCode::Forbidden, "no token is set: there is no login");
        Ok(self.sessions.as_ref().ok_or_else(no_login)?.issue(role, OffsetDateTime::now_utc()))
    }

    /// The role of a token.
    ///
    /// # Errors
    ///
    /// The problem, if it is wrong, or too many wrong ones came from this address.
    fn check_token(&self, presented: &str, address: IpAddr) -> Result<Role, Problem> {
        // Before the token is looked at: during the wait, not even the right one tells an attacker anything.
        if let Some(wait) = self.attempts.remaining_wait(address) {
            warn!(%address, "call refused: too many wrong tokens came from this address");
            let problem = Problem::new(ProblemCode::TooManyAttempts, "too many wrong tokens from this address");
            return Err(problem.retry_after(wait.as_secs() + 1));
        }
        let presented = digest::sha256(presented);
        let is = |token: &Option<String>| {
            token.as_ref().is_some_and(|token| bool::from(token.as_bytes().ct_eq(presented.as_bytes())))
        };
        match (is(&self.token), is(&self.read_token)) {
            (true, _) => Ok(Role::Full),
            (false, true) => Ok(Role::ReadOnly),
            (false, false) => {
                self.attempts.record(address);
                Err(Problem::new(ProblemCode::Unauthorized, "the token is not valid"))
            }
        }
    }

    /// The address of the client: the last one in `X-Forwarded-For` that is not of a trusted proxy, if the peer is one.
    fn client_address(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let is_trusted = |address: &IpAddr| self.trusted_proxies.iter().any(|network| network.contains(address));
        if !is_trusted(&peer) {
            return peer;
        }
        let values = headers.get_all("x-forwarded-for");
        let listed: Vec<&str> =
            values.iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(',')).collect();
        let mut client = peer;
        for text in listed.iter().rev() {
            // What a proxy did not write as an address cannot be believed, nor what stands before it.
            let Ok(address) = text.trim().parse::<IpAddr>() else { break };
            client = address.to_canonical();
            if !is_trusted(&client) {
                break;
            }
        }
        client
    }

    /// A browser names the origin of the page that sends a request which may change something.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or_default();
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let is_own = origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
        if is_own || self.cors_origins.iter().any(|allowed| allowed == origin) {
            return Ok(());
        }
        Err(Problem::new(ProblemCode::Forbidden, "pages of this origin may not call; see API_CORS_ORIGINS"))
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Without a token, a name that a stranger points at this machine must not reach the API from a browser.
fn check_local_host(headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let is_loopback = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback()),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
    };
    if is_loopback {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::Forbidden, "without API_TOKEN, the API answers only to names of this machine"))
}

#[cfg(test)]
mod tests;
