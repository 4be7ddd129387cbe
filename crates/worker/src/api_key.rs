//! API keys in use. A key that comes from a file is replaced when the file has another one, while the worker runs.

use std::sync::{Arc, PoisonError, RwLock};

use gemini_client::{Gemini, GeminiSettings};
use secrecy::{ExposeSecret, SecretString};
use stability_client::Client;
use store::KeyHash;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::settings::{SecretFile, SettingError};

/// The key that a client of the Stability API uses. Clones share it.
#[derive(Clone)]
pub(crate) struct StabilityKey {
    client: Client,
    hash: Arc<RwLock<KeyHash>>,
    file: Option<Arc<KeyFile>>,
}

impl StabilityKey {
    /// The key that `client` uses, and the file that it was read from.
    pub(crate) fn new(client: Client, key: &SecretString, file: Option<&SecretFile>) -> Self {
        let file = file.map(|file| Arc::new(KeyFile::new(file, key)));
        Self { client, hash: Arc::new(RwLock::new(KeyHash::new(key))), file }
    }

    /// The hash by which the database names the key.
    pub(crate) fn hash(&self) -> KeyHash {
        self.hash.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again, and uses its key from now on. If that fails, the former key stays.
    pub(crate) async fn reload(&self) {
        let Some(file) = &self.file else { return };
        let replace = |key: &SecretString| {
            self.client.replace_api_key(key.clone()).map_err(|error| error.to_string())?;
            *self.hash.write().unwrap_or_else(PoisonError::into_inner) = KeyHash::new(key);
            Ok(())
        };
        file.reload(replace).await;
    }
}

/// A Gemini client with the key that was last read. Clones share it.
#[derive(Clone)]
pub(crate) struct GeminiAccess {
    settings: GeminiSettings,
    client: Arc<RwLock<Gemini>>,
    file: Option<Arc<KeyFile>>,
}

impl GeminiAccess {
    /// Creates a client; no request is sent.
    ///
    /// # Errors
    ///
    /// [`SettingError`] if the API key is not a valid HTTP header value.
    pub(crate) fn new(settings: &GeminiSettings, file: Option<&SecretFile>) -> Result<Self, SettingError> {
        let client = Gemini::new(settings).map_err(|error| SettingError::unusable("GEMINI_API_KEY", &error))?;
        let file = file.map(|file| Arc::new(KeyFile::new(file, &settings.api_key)));
        Ok(Self { settings: settings.clone(), client: Arc::new(RwLock::new(client)), file })
    }

    /// The client with the key that is in the file now.
    pub(crate) async fn client(&self) -> Gemini {
        if let Some(file) = &self.file {
            let replace = |key: &SecretString| {
                let settings = GeminiSettings { api_key: key.clone(), ..self.settings.clone() };
                let client = Gemini::new(&settings).map_err(|error| error.to_string())?;
                *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
                Ok(())
            };
            file.reload(replace).await;
        }
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A file with a key.
struct KeyFile {
    file: SecretFile,
    state: Mutex<KeyState>,
}

struct KeyState {
    /// The key that is in use.
    key: SecretString,
    /// Why the file could not be used when it was last read.
    problem: Option<String>,
}

impl KeyFile {
    fn new(file: &SecretFile, key: &SecretString) -> Self {
        Self { file: file.clone(), state: Mutex::new(KeyState { key: key.clone(), problem: None }) }
    }

    /// Reads the file; if it has another key, calls `replace` with it. Logs each new problem once.
    async fn reload(&self, replace: impl FnOnce(&SecretString) -> Result<(), String>) {
        let mut state = self.state.lock().await;
        let file = self.file.clone();
        let Ok(read) = spawn_blocking(move || file.read()).await else { return };
        let problem = match read {
            Ok(key) if key.expose_secret() == state.key.expose_secret() => None,
            Ok(key) => match replace(&key) {
                Ok(()) => {
                    info!(setting = self.file.name(), "API key replaced by the one in its file");
                    state.key = key;
                    None
                }
                Err(problem) => Some(problem),
            },
            Err(error) => Some(error.to_string()),
        };
        if problem.is_some() && state.problem != problem {
            warn!(problem, "an API key could not be read again; the former key stays in use");
        }
        state.problem = problem;
    }
}
