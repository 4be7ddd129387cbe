//! The account's key, in a type that cannot be printed.

use secrecy::{ExposeSecret, SecretString};

/// An API key. Its `Debug` is redacted, it has no `Display`, and its memory is wiped when it is dropped.
#[derive(Debug, Clone)]
pub struct ApiKey(SecretString);

impl ApiKey {
    /// The value of the `Authorization` header.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0.expose_secret())
    }

    /// A text of somebody else's, in which this key must not stand.
    pub(crate) fn removed_from(&self, text: &str) -> String {
        match self.0.expose_secret() {
            "" => text.to_owned(),
            key => text.replace(key, "***"),
        }
    }
}

impl From<SecretString> for ApiKey {
    fn from(secret: SecretString) -> Self {
        Self(secret)
    }
}

impl From<&str> for ApiKey {
    fn from(text: &str) -> Self {
        Self(SecretString::from(text))
    }
}

impl From<String> for ApiKey {
    fn from(text: String) -> Self {
        Self(SecretString::from(text))
    }
}
