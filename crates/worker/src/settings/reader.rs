//! Reads and validates single settings; each error says what is allowed.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use stability_client::Engine;
use tracing_subscriber::EnvFilter;
use url::Url;

use super::{ALL, AWS_VARIABLES, LogFormat, StorageRoot};
use crate::phrase_book::PhraseBook;

/// A setting is missing or has a value that is not allowed.
///
/// Names the variable, the problem and the allowed values. Values that may hold a secret are not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}; {expected}")]
pub struct SettingError {
    name: String,
    problem: String,
    expected: String,
}

impl SettingError {
    pub(super) fn invalid(name: &str, value: &str, allowed: impl Display) -> Self {
        Self { name: name.to_owned(), problem: format!("{value:?} is not allowed"), expected: allowed.to_string() }
    }

    /// Does not show the value, which may hold a secret.
    pub(super) fn invalid_secret(name: &str, allowed: impl Display) -> Self {
        Self { name: name.to_owned(), problem: "its value is not allowed".to_owned(), expected: allowed.to_string() }
    }

    /// A value that passed validation but cannot be used; `why` must not contain a secret.
    pub(crate) fn unusable(name: &str, why: impl Display) -> Self {
        Self { name: name.to_owned(), problem: "its value cannot be used".to_owned(), expected: why.to_string() }
    }

    fn set_twice(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            problem: format!("set together with {name}_FILE"),
            expected: "only one of them".to_owned(),
        }
    }

    pub(super) fn missing(name: &str, allowed: impl Display) -> Self {
        Self { name: name.to_owned(), problem: "not set".to_owned(), expected: allowed.to_string() }
    }
}

/// The only setting whose default depends on the working directory.
const ASSET_STORAGE_URL: &str = "ASSET_STORAGE_URL";

fn default_storage_folder() -> Result<PathBuf, SettingError> {
    std::path::absolute(Path::new("data/assets")).map_err(|_| SettingError::missing(ASSET_STORAGE_URL, "a file:// URL"))
}

pub(super) struct Reader<'a> {
    source: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { source }
    }

    /// The trimmed value; `None` if it is unset or empty.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.source)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// Parses the value; `None` if it is unset or empty.
    pub(super) fn parse_optional<T>(
        &self,
        name: &str,
        expected: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, SettingError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| SettingError::invalid(name, &text, expected))
    }

    /// The content of the file that `NAME_FILE` names. The value of `NAME` itself is not returned: a library reads it.
    pub(super) fn secret_from_file(&self, name: &str) -> Result<Option<SecretString>, SettingError> {
        let in_file = format!("{name}_FILE");
        match (self.get(name), self.get(&in_file)) {
            (Some(_), Some(_)) => Err(SettingError::set_twice(name)),
            (None, Some(file)) => read_secret_file(&in_file, &file).map(|text| Some(SecretString::from(text))),
            (_, None) => Ok(None),
        }
    }

    /// The value, or else the default; `None` if the default is empty.
    pub(super) fn get_or_default(&self, name: &str) -> Result<Option<String>, SettingError> {
        let setting = ALL.iter().find(|setting| setting.name == name).expect("the setting is listed in ALL");
        let value = self.get(name);
        let file = if setting.secret { self.get(&format!("{name}_FILE")) } else { None };
        match (value, file) {
            (Some(_), Some(_)) => Err(SettingError::set_twice(name)),
            (Some(value), None) => Ok(Some(value)),
            (None, Some(file)) => read_secret_file(&format!("{name}_FILE"), &file).map(Some),
            (None, None) => Ok(Some(setting.default.to_owned()).filter(|default| !default.is_empty())),
        }
    }

    /// Every setting with its value; secrets are redacted.
    pub(super) fn redacted_values(&self) -> Result<Vec<(&'static str, String)>, SettingError> {
        ALL.iter()
            .map(|setting| {
                let value = self.get_or_default(setting.name)?;
                let displayed = match value {
                    None if setting.name == ASSET_STORAGE_URL => default_storage_folder()?.display().to_string(),
                    None => "(not set)".to_owned(),
                    Some(value) if !setting.secret => value,
                    Some(value) if setting.name.ends_with("_URL") => redact_url(&value),
                    Some(_) => "(set)".to_owned(),
                };
                Ok((setting.name, displayed))
            })
            .collect()
    }

    fn require(&self, name: &str) -> Result<String, SettingError> {
        Ok(self.get_or_default(name)?.expect("the setting has a default"))
    }

    fn parse<T>(
        &self,
        name: &str,
        expected: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SettingError> {
        let text = self.require(name)?;
        parse(&text).ok_or_else(|| SettingError::invalid(name, &text, expected))
    }

    pub(super) fn secret(&self, name: &str) -> Result<Option<SecretString>, SettingError> {
        self.get_or_default(name)?.map(|text| parse_secret(name, text)).transpose()
    }

    /// The file that `NAME_FILE` names, to read the secret again later.
    pub(super) fn secret_file(&self, name: &str) -> Option<SecretFile> {
        let path = self.get(&format!("{name}_FILE"))?;
        Some(SecretFile { name: name.to_owned(), path })
    }

    pub(super) fn secret_url(&self, name: &str, schemes: &[&str]) -> Result<SecretString, SettingError> {
        let text = self.require(name)?;
        let allowed = schemes.iter().map(|scheme| format!("{scheme}://…")).collect::<Vec<_>>().join(" or ");
        match text.split_once("://") {
            Some(("sqlite", rest)) if schemes.contains(&"sqlite") && !rest.is_empty() => Ok(SecretString::from(text)),
            // Validated here because the libraries that parse it later include it, with its password, in their errors.
            Some((scheme, _)) if schemes.contains(&scheme) && Url::parse(&text).is_ok_and(|url| url.has_host()) => {
                Ok(SecretString::from(text))
            }
            _ => Err(SettingError::invalid_secret(name, format!("a URL: {allowed}"))),
        }
    }

    pub(super) fn http_url(&self, name: &str) -> Result<Url, SettingError> {
        self.parse(name, "an http:// or https:// URL without credentials", |text| {
            let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())?;
            // The URL is logged at start and appears in errors, so it must not contain credentials.
            (url.username().is_empty() && url.password().is_none()).then_some(url)
        })
    }

    /// The folder of a `file://` URL, or the bucket and prefix of an `s3://` URL.
    pub(super) fn storage_root(&self, name: &str) -> Result<StorageRoot, SettingError> {
        let Some(text) = self.get_or_default(name)? else { return default_storage_folder().map(StorageRoot::Folder) };
        let url = Url::parse(&text).ok().filter(|url| url.username().is_empty() && url.query().is_none());
        let root = url.and_then(|url| match url.scheme() {
            "file" => url.to_file_path().ok().map(StorageRoot::Folder),
            "s3" => {
                let prefix = url.path().trim_matches('/').to_owned();
                Some(StorageRoot::Bucket {
                    bucket: url.host_str()?.to_owned(),
                    prefix,
                    aws_variables: self.aws_variables(),
                })
            }
            _ => None,
        });
        root.ok_or_else(|| {
            SettingError::invalid(name, &text, "a file:// URL with an absolute path, or s3://bucket/prefix")
        })
    }

    fn aws_variables(&self) -> Vec<(&'static str, SecretString)> {
        AWS_VARIABLES.iter().filter_map(|name| Some((*name, SecretString::from(self.get(name)?)))).collect()
    }

    pub(super) fn number<T>(&self, name: &str, range: RangeInclusive<u64>) -> Result<T, SettingError>
    where
        T: FromStr,
    {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.parse(name, allowed, |text| {
            let number = text.parse().ok()?;
            if range.contains(&number) { text.parse().ok() } else { None }
        })
    }

    pub(super) fn float(&self, name: &str, range: RangeInclusive<f64>) -> Result<f64, SettingError> {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        self.parse(name, allowed, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    /// A number; `None` if it is unset and has no default.
    pub(super) fn optional_float(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, SettingError> {
        if self.get_or_default(name)?.is_none() {
            return Ok(None);
        }
        self.float(name, range).map(Some)
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, SettingError> {
        self.parse(name, "true or false", |text| match text {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        })
    }

    /// The name of a model. It becomes part of a URL path, so its characters are restricted.
    pub(super) fn model_name(&self, name: &str) -> Result<String, SettingError> {
        let allowed = "a name of letters, digits, '-', '.' and '_', such as gemini-flash-latest";
        self.parse(name, allowed, |text| {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            text.chars().all(good).then(|| text.to_owned())
        })
    }

    /// A comma-separated list; empty if unset.
    pub(super) fn list<T>(
        &self,
        name: &str,
        allowed: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, SettingError> {
        let Some(text) = self.get_or_default(name)? else { return Ok(Vec::new()) };
        let items: Option<Vec<T>> = text.split(',').map(|item| parse(item.trim())).collect();
        items.ok_or_else(|| SettingError::invalid(name, &text, allowed))
    }

    /// A comma-separated list of names of Celery tasks; empty if unset.
    pub(super) fn task_names(&self, name: &str) -> Result<Vec<String>, SettingError> {
        let allowed = "names of letters, digits, '.', '_', '-' and ':', separated by commas, such as assets.generate";
        self.list(name, allowed, |name| {
            let is_name = (1..=255).contains(&name.len())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-:".contains(c));
            is_name.then(|| name.to_owned())
        })
    }

    /// The path of a file or folder.
    pub(super) fn path(&self, name: &str) -> Result<PathBuf, SettingError> {
        self.require(name).map(PathBuf::from)
    }

    /// The name of an engine.
    pub(super) fn engine(&self, name: &str) -> Result<Engine, SettingError> {
        let names: Vec<&str> = Engine::ALL.iter().map(Engine::id).collect();
        self.parse(name, format!("one of {}", names.join(", ")), |text| text.parse().ok())
    }

    /// Reads the phrase book from a file; without a file it is empty.
    pub(super) fn phrase_book(&self, name: &str) -> Result<PhraseBook, SettingError> {
        let Some(file) = self.get_or_default(name)? else { return Ok(PhraseBook::default()) };
        let invalid = |why: String| SettingError::invalid(name, &file, why);
        let text = std::fs::read_to_string(&file)
            .map_err(|error| invalid(format!("the path of a readable file ({error})")))?;
        PhraseBook::parse(&text).map_err(|error| invalid(format!("a phrase book: {error}")))
    }

    pub(super) fn duration(&self, name: &str, seconds: RangeInclusive<u64>) -> Result<Duration, SettingError> {
        let allowed = format!("a duration from {}s to {}s, such as 500ms, 30s or 2m", seconds.start(), seconds.end());
        self.parse(name, allowed, |text| {
            let duration = parse_duration(text)?;
            let range = Duration::from_secs(*seconds.start())..=Duration::from_secs(*seconds.end());
            range.contains(&duration).then_some(duration)
        })
    }

    pub(super) fn optional_duration(
        &self,
        name: &str,
        seconds: RangeInclusive<u64>,
    ) -> Result<Option<Duration>, SettingError> {
        if self.get_or_default(name)?.is_none() {
            return Ok(None);
        }
        self.duration(name, seconds).map(Some)
    }

    /// A comma-separated list of durations of at most one hour each. `none` is an empty list.
    pub(super) fn durations(&self, name: &str, count: RangeInclusive<usize>) -> Result<Vec<Duration>, SettingError> {
        let none = if *count.start() == 0 { ", or none" } else { "" };
        let allowed = format!(
            "{} to {} durations of at most one hour, separated by commas, such as 2s,5s,10s{none}",
            count.start().max(&1),
            count.end()
        );
        self.parse(name, allowed, |text| {
            let durations: Option<Vec<_>> = if text == "none" {
                Some(Vec::new())
            } else {
                text.split(',').map(|part| parse_duration(part.trim())).collect()
            };
            durations.filter(|durations| {
                count.contains(&durations.len())
                    && durations.iter().all(|duration| *duration <= Duration::from_hours(1))
            })
        })
    }

    pub(super) fn address(&self, name: &str) -> Result<SocketAddr, SettingError> {
        self.parse(name, "an address and a port, such as 0.0.0.0:8080", |text| text.parse().ok())
    }

    /// Log filter directives; `None` if unset.
    pub(super) fn log_filter(&self, name: &str) -> Result<Option<String>, SettingError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match EnvFilter::try_new(&text) {
            Ok(_) => Ok(Some(text)),
            Err(error) => Err(SettingError::invalid(name, &text, format_args!("filter directives ({error})"))),
        }
    }

    pub(super) fn log_format(&self, name: &str) -> Result<Option<LogFormat>, SettingError> {
        match self.get_or_default(name)?.as_deref() {
            None => Ok(None),
            Some("text") => Ok(Some(LogFormat::Text)),
            Some("json") => Ok(Some(LogFormat::Json)),
            Some(other) => Err(SettingError::invalid(name, other, "text or json")),
        }
    }
}

/// Masks the password of a URL and removes its query, which may also contain a password.
fn redact_url(secret: &str) -> String {
    if secret.starts_with("sqlite:") {
        return secret.to_owned();
    }
    let Ok(mut url) = Url::parse(secret) else { return "(set)".to_owned() };
    if url.password().is_some() {
        // Fails only for URLs without a host, which have no password.
        let _ = url.set_password(Some("***"));
    }
    url.set_query(None);
    url.into()
}

fn parse_secret(name: &str, text: String) -> Result<SecretString, SettingError> {
    if text.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(SettingError::invalid_secret(name, "printable ASCII characters without spaces"));
    }
    Ok(SecretString::from(text))
}

/// A file with a secret, which may be replaced while the program runs.
#[derive(Debug, Clone)]
pub struct SecretFile {
    name: String,
    path: String,
}

impl SecretFile {
    /// The variable of the secret, such as `STABILITY_API_KEY`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the secret again. Blocks.
    ///
    /// # Errors
    ///
    /// [`SettingError`] names the variable and says what is wrong with the file.
    pub fn read(&self) -> Result<SecretString, SettingError> {
        let name = format!("{}_FILE", self.name);
        read_secret_file(&name, &self.path).and_then(|text| parse_secret(&name, text))
    }
}

fn read_secret_file(name: &str, file: &str) -> Result<String, SettingError> {
    let invalid = |allowed: String| {
        // Shown only if it looks like a path: the user may have set the secret itself by mistake.
        if file.starts_with('/') {
            SettingError::invalid(name, file, allowed)
        } else {
            SettingError::invalid_secret(name, allowed)
        }
    };
    let text =
        std::fs::read_to_string(file).map_err(|error| invalid(format!("the path of a readable file ({error})")))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(invalid("the path of a file that is not empty".to_owned()));
    }
    Ok(text.to_owned())
}

/// Parses a duration. `0` without a unit, which humantime rejects, is accepted too.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" { Some(Duration::ZERO) } else { humantime::parse_duration(text).ok() }
}
