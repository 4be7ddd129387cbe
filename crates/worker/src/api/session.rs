//! The session of a browser: a signed cookie that stands for a token, and the tokens of forms against forged requests.
//!
//! Nothing is stored: every process with the same tokens accepts a session, and another token ends all sessions.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cookie::{Cookie, SameSite};
use domain::digest;
use ring::{hmac, pbkdf2};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use uuid::Uuid;

use super::role::Role;

/// Name of the cookie with the session.
const SESSION_COOKIE: &str = "asset_worker_session";
/// Name of the cookie that the tokens of forms follow from.
const FORM_COOKIE: &str = "asset_worker_form";
/// How long a login lasts.
const LIFETIME: Duration = Duration::from_hours(12);
/// The longest value of a cookie that is looked at.
const MAX_VALUE_BYTES: usize = 256;
/// Rounds of the derivation of the key, as OWASP recommends: who has a session can try tokens against its signature.
const KEY_ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("not 0");
const KEY_SALT: &[u8] = b"asset-worker session 1";

/// Signs and checks sessions.
pub(crate) struct Sessions(hmac::Key);

impl Sessions {
    /// `secret` is the same in all processes with the same tokens. Takes about a second of CPU time.
    pub(crate) fn new(secret: &str) -> Self {
        let mut key = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, KEY_ROUNDS, KEY_SALT, secret.as_bytes(), &mut key);
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// The value of a session of a caller who has presented a token.
    pub(crate) fn issue(&self, role: Role, now: OffsetDateTime) -> String {
        let claims = format!("{}.{}.{}", role.as_str(), (now + LIFETIME).unix_timestamp(), Uuid::new_v4().simple());
        let signature = hmac::sign(&self.0, claims.as_bytes());
        format!("{claims}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The role of a session, if it is valid.
    pub(crate) fn role(&self, value: &str, now: OffsetDateTime) -> Option<Role> {
        let (claims, signature) = value.rsplit_once('.')?;
        hmac::verify(&self.0, claims.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        let mut parts = claims.split('.');
        let (role, expires_at) = (parts.next()?, parts.next()?.parse::<i64>().ok()?);
        let role = [Role::Full, Role::ReadOnly].into_iter().find(|known| known.as_str() == role)?;
        (now.unix_timestamp() < expires_at).then_some(role)
    }
}

/// A new value of the cookie of forms.
pub(crate) fn new_form_cookie() -> String {
    Uuid::new_v4().simple().to_string()
}

/// The token of the forms of a browser with this cookie. Another site can neither read the cookie nor set it.
pub(crate) fn form_token(form_cookie: &str) -> String {
    digest::sha256(format!("form:{form_cookie}"))
}

/// Whether a form comes from a page that this browser has loaded.
pub(crate) fn is_form_token(form_cookie: &str, token: &str) -> bool {
    form_token(form_cookie).as_bytes().ct_eq(token.as_bytes()).into()
}

/// The value of the session cookie of a request.
pub(crate) fn read_session(headers: &HeaderMap) -> Option<String> {
    read_cookie(headers, SESSION_COOKIE)
}

/// The value of the cookie of forms of a request.
pub(crate) fn read_form_cookie(headers: &HeaderMap) -> Option<String> {
    read_cookie(headers, FORM_COOKIE)
}

fn read_cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookies = values.flat_map(Cookie::split_parse).filter_map(Result::ok);
    let value = cookies.into_iter().find(|cookie| cookie.name() == name)?.value().to_owned();
    (value.len() <= MAX_VALUE_BYTES && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)))
        .then_some(value)
}

/// The header that sets the session cookie; it ends with the browser, if not before. `None` removes it.
pub(crate) fn set_session(value: Option<&str>, is_secure: bool) -> String {
    let mut cookie = Cookie::build((SESSION_COOKIE, value.unwrap_or_default()));
    if value.is_none() {
        cookie = cookie.max_age(time::Duration::ZERO);
    }
    cookie.path("/").http_only(true).same_site(SameSite::Strict).secure(is_secure).build().to_string()
}

/// The header that sets the cookie of forms. A link from another site sends it, so that it is not replaced; a form of
/// another site does not.
pub(crate) fn set_form_cookie(value: &str, is_secure: bool) -> String {
    let cookie = Cookie::build((FORM_COOKIE, value)).path("/").http_only(true).same_site(SameSite::Lax);
    cookie.secure(is_secure).build().to_string()
}

/// Whether the browser reaches this server over TLS: by its own word, or by that of a proxy. A stranger who lies about it
/// only loses the own cookie.
pub(crate) fn is_secure(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text("origin").starts_with("https://") || text("x-forwarded-proto").eq_ignore_ascii_case("https")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-11-27 12:00 UTC);

    #[test]
    fn session_is_valid_for_twelve_hours_with_the_same_tokens() {
        let (sessions, same, other) = (Sessions::new("secret"), Sessions::new("secret"), Sessions::new("other"));
        for role in [Role::Full, Role::ReadOnly] {
            let value = sessions.issue(role, NOW);
            assert_eq!(sessions.role(&value, NOW), Some(role));
            assert_eq!(same.role(&value, NOW), Some(role), "another process");
            assert_eq!(sessions.role(&value, NOW + LIFETIME - Duration::from_secs(1)), Some(role));
            assert_eq!(sessions.role(&value, NOW + LIFETIME), None, "expired");
            assert_eq!(other.role(&value, NOW), None, "another token");
        }
    }

    #[test]
    fn changed_session_is_refused() {
        let sessions = Sessions::new("secret");
        let value = sessions.issue(Role::ReadOnly, NOW);
        let claims = value.rsplit_once('.').expect("a signature").0;
        for wrong in [
            value.replacen("read_only", "full", 1).as_str(),
            &value[..value.len() - 2],
            claims,
            "full",
            "",
            "full.9999999999.x.",
            &new_form_cookie(),
            &format!("{claims}.{}", form_token(claims)),
        ] {
            assert_eq!(sessions.role(wrong, NOW), None, "{wrong}");
        }
    }

    #[test]
    fn form_token_belongs_to_one_cookie() {
        let (own, other) = (new_form_cookie(), new_form_cookie());
        assert!(is_form_token(&own, &form_token(&own)));
        assert!(!is_form_token(&own, &form_token(&other)));
        assert!(!is_form_token(&own, ""));
    }

    #[test]
    fn cookies_are_strict_and_secure_behind_tls() {
        let header = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(name.parse().expect("a name"), value.parse().expect("a value"))])
        };
        assert!(!is_secure(&header("origin", "http://127.0.0.1:8088")));
        assert!(is_secure(&header("origin", "https://assets.example.org")));
        assert!(is_secure(&header("x-forwarded-proto", "https")));
        assert_eq!(set_session(Some("abc"), false), "asset_worker_session=abc; HttpOnly; SameSite=Strict; Path=/");
        assert_eq!(
            set_session(Some("abc"), true),
            "asset_worker_session=abc; HttpOnly; SameSite=Strict; Secure; Path=/"
        );
        assert!(set_session(None, false).contains("Max-Age=0"));
        assert_eq!(set_form_cookie("abc", false), "asset_worker_form=abc; HttpOnly; SameSite=Lax; Path=/");
        let both = header("cookie", "asset_worker_form=x; asset_worker_session=a.b_1-");
        assert_eq!((read_session(&both).as_deref(), read_form_cookie(&both).as_deref()), (Some("a.b_1-"), Some("x")));
        assert_eq!(read_session(&header("cookie", "asset_worker_session=<script>")), None);
    }
}
