//! Settings of the HTTP API.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::reader::{Reader, SettingError};

/// The fewest characters of a token: one of 16 hexadecimal digits has 64 bits.
const MIN_TOKEN_CHARS: usize = 16;

/// How `asset-worker serve` listens, and to whom it answers.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Listen address of the HTTP API.
    pub addr: SocketAddr,
    /// Token that allows every call; `None`: none is required, unless there is a read-only one.
    pub token: Option<SecretString>,
    /// Token that allows calls that change nothing.
    pub read_token: Option<SecretString>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Origins whose pages may call the API, such as `https://studio.example.org`.
    pub cors_origins: Vec<String>,
    /// Folder of the cached smaller copies of images.
    pub cache_dir: PathBuf,
    /// Maximum size of all cached copies, in bytes; 0: none is cached.
    pub cache_bytes: u64,
}

impl ApiSettings {
    pub(super) fn read(reader: &Reader) -> Result<Self, SettingError> {
        let settings = Self {
            addr: reader.address("API_ADDR")?,
            token: read_token(reader, "API_TOKEN")?,
            read_token: read_token(reader, "API_READ_TOKEN")?,
            trusted_proxies: reader.list(
                "API_TRUSTED_PROXIES",
                "addresses or networks, separated by commas, such as 10.0.0.0/8",
                |text| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok(),
            )?,
            cors_origins: reader.list(
                "API_CORS_ORIGINS",
                "origins, separated by commas, such as https://studio.example.org",
                |text| {
                    let url = Url::parse(text).ok()?;
                    let is_origin =
                        matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text;
                    is_origin.then(|| text.to_owned())
                },
            )?,
            cache_dir: reader.path("API_CACHE_DIR")?,
            cache_bytes: reader.number("API_CACHE_BYTES", 0..=1_099_511_627_776)?,
        };
        let tokens = (settings.token.as_ref(), settings.read_token.as_ref());
        if let (Some(token), Some(read_token)) = tokens
            && token.expose_secret() == read_token.expose_secret()
        {
            return Err(SettingError::invalid_secret("API_READ_TOKEN", "another token than API_TOKEN"));
        }
        Ok(settings)
    }

    /// Checks that the API is not open to other machines without a token.
    ///
    /// # Errors
    ///
    /// [`SettingError`] if a token is required and not set.
    pub fn require_token(&self) -> Result<(), SettingError> {
        if self.token.is_none() && !self.addr.ip().is_loopback() {
            let allowed = format!("a token of at least {MIN_TOKEN_CHARS} characters, because API_ADDR is not loopback");
            return Err(SettingError::missing("API_TOKEN", allowed));
        }
        Ok(())
    }
}

fn read_token(reader: &Reader, name: &str) -> Result<Option<SecretString>, SettingError> {
    let token = reader.secret(name)?;
    match &token {
        Some(token) if token.expose_secret().len() < MIN_TOKEN_CHARS => {
            Err(SettingError::invalid_secret(name, format!("a token of at least {MIN_TOKEN_CHARS} characters")))
        }
        _ => Ok(()),
    }?;
    Ok(token)
}
