//! The API key, in a type that cannot be printed.

use secrecy::{ExposeSecret, SecretString};

/// An API key that cannot be printed.
///
/// Its `Debug` output is redacted, it has no `Display`, and its memory is zeroed on drop.
#[derive(Debug, Clone)]
pub struct ApiKey(SecretString);

impl ApiKey {
    /// Returns the value of the `Authorization` header.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0.expose_secret())
    }

    /// Replaces each occurrence of the key in `text` by `***`.
    pub(crate) fn redact(&self, text: &str) -> String {
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
