//! Reads single settings, each with an error that says what is allowed.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use tracing_subscriber::EnvFilter;
use url::Url;

use super::{ALL, AWS, LogFormat, StorageRoot};
use crate::phrase_book::PhraseBook;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {value}; {allowed}")]
pub struct SettingError {
    name: String,
    value: String,
    allowed: String,
}

impl SettingError {
    fn refused(name: &str, value: &str, allowed: impl Display) -> Self {
        Self { name: name.to_owned(), value: format!("{value:?} is not allowed"), allowed: allowed.to_string() }
    }

    /// Without the value, which may hold a secret.
    pub(super) fn refused_secret(name: &str, allowed: impl Display) -> Self {
        Self { name: name.to_owned(), value: "its value is not allowed".to_owned(), allowed: allowed.to_string() }
    }

    /// A value that turned out to be of no use; `why` must not repeat a secret.
    pub(crate) fn unusable(name: &str, why: impl Display) -> Self {
        Self { name: name.to_owned(), value: "its value is of no use".to_owned(), allowed: why.to_string() }
    }

    fn both(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: format!("set together with {name}_FILE"),
            allowed: "only one of them".to_owned(),
        }
    }

    pub(super) fn missing(name: &str, allowed: impl Display) -> Self {
        Self { name: name.to_owned(), value: "not set".to_owned(), allowed: allowed.to_string() }
    }
}

/// The one setting whose default depends on where the program runs.
const STORAGE: &str = "ASSET_STORAGE_URL";

fn default_folder() -> Result<PathBuf, SettingError> {
    std::path::absolute(Path::new("data/assets")).map_err(|_| SettingError::missing(STORAGE, "a file:// URL"))
}

pub(super) struct Reader<'a> {
    source: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { source }
    }

    /// The value, where one is set.
    pub(super) fn given(&self, name: &str) -> Option<String> {
        (self.source)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The value where one is set, if it can be used.
    pub(super) fn optional<T>(
        &self,
        name: &str,
        allowed: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, SettingError> {
        let Some(text) = self.given(name) else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| SettingError::refused(name, &text, allowed))
    }

    /// A secret that somebody else reads from `NAME`: what the file of `NAME_FILE` holds, where that is set instead.
    pub(super) fn given_or_file(&self, name: &str) -> Result<Option<SecretString>, SettingError> {
        let in_file = format!("{name}_FILE");
        match (self.given(name), self.given(&in_file)) {
            (Some(_), Some(_)) => Err(SettingError::both(name)),
            (None, Some(file)) => from_file(&in_file, &file).map(|text| Some(SecretString::from(text))),
            (_, None) => Ok(None),
        }
    }

    /// The value, or its default where that is not empty.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, SettingError> {
        let setting = ALL.iter().find(|setting| setting.name == name).expect("every setting stands in the table");
        let value = self.given(name);
        let file = if setting.secret { self.given(&format!("{name}_FILE")) } else { None };
        match (value, file) {
            (Some(_), Some(_)) => Err(SettingError::both(name)),
            (Some(value), None) => Ok(Some(value)),
            (None, Some(file)) => from_file(&format!("{name}_FILE"), &file).map(Some),
            (None, None) => Ok(Some(setting.default.to_owned()).filter(|default| !default.is_empty())),
        }
    }

    /// Every setting with its value, without secrets.
    pub(super) fn in_force(&self) -> Result<Vec<(&'static str, String)>, SettingError> {
        ALL.iter()
            .map(|setting| {
                let value = self.text(setting.name)?;
                let shown = match value {
                    None if setting.name == STORAGE => default_folder()?.display().to_string(),
                    None => "(not set)".to_owned(),
                    Some(value) if !setting.secret => value,
                    Some(value) if setting.name.ends_with("_URL") => redacted(&value),
                    Some(_) => "(set)".to_owned(),
                };
                Ok((setting.name, shown))
            })
            .collect()
    }

    fn needed(&self, name: &str) -> Result<String, SettingError> {
        Ok(self.text(name)?.expect("the setting has a default"))
    }

    fn parsed<T>(
        &self,
        name: &str,
        allowed: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SettingError> {
        let text = self.needed(name)?;
        parse(&text).ok_or_else(|| SettingError::refused(name, &text, allowed))
    }

    pub(super) fn secret(&self, name: &str) -> Result<Option<SecretString>, SettingError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        if text.chars().any(|c| !c.is_ascii_graphic()) {
            return Err(SettingError::refused_secret(name, "printable ASCII characters without blanks"));
        }
        Ok(Some(SecretString::from(text)))
    }

    pub(super) fn url_secret(&self, name: &str, schemes: &[&str]) -> Result<SecretString, SettingError> {
        let text = self.needed(name)?;
        let allowed = schemes.iter().map(|scheme| format!("{scheme}://…")).collect::<Vec<_>>().join(" or ");
        match text.split_once("://") {
            Some(("sqlite", rest)) if schemes.contains(&"sqlite") && !rest.is_empty() => Ok(SecretString::from(text)),
            // Parsed here, since those who parse it later repeat it in their errors, password and all.
            Some((scheme, _)) if schemes.contains(&scheme) && Url::parse(&text).is_ok_and(|url| url.has_host()) => {
                Ok(SecretString::from(text))
            }
            _ => Err(SettingError::refused_secret(name, format!("a URL: {allowed}"))),
        }
    }

    pub(super) fn http_url(&self, name: &str) -> Result<Url, SettingError> {
        self.parsed(name, "an http:// or https:// URL without a user", |text| {
            let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())?;
            // It is shown at the start, and in errors.
            (url.username().is_empty() && url.password().is_none()).then_some(url)
        })
    }

    /// The folder of a `file://` URL, made absolute; or a bucket.
    pub(super) fn storage_root(&self, name: &str) -> Result<StorageRoot, SettingError> {
        let Some(text) = self.text(name)? else { return default_folder().map(StorageRoot::Folder) };
        let url = Url::parse(&text).ok().filter(|url| url.username().is_empty() && url.query().is_none());
        let root = url.and_then(|url| match url.scheme() {
            "file" => url.to_file_path().ok().map(StorageRoot::Folder),
            "s3" => {
                let prefix = url.path().trim_matches('/').to_owned();
                Some(StorageRoot::Bucket { bucket: url.host_str()?.to_owned(), prefix, aws: self.aws() })
            }
            _ => None,
        });
        root.ok_or_else(|| {
            SettingError::refused(name, &text, "a file:// URL with an absolute path, or s3://bucket/prefix")
        })
    }

    fn aws(&self) -> Vec<(&'static str, SecretString)> {
        AWS.iter().filter_map(|name| Some((*name, SecretString::from(self.given(name)?)))).collect()
    }

    pub(super) fn number<T>(&self, name: &str, range: RangeInclusive<u64>) -> Result<T, SettingError>
    where
        T: FromStr,
    {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.parsed(name, allowed, |text| {
            let number = text.parse().ok()?;
            if range.contains(&number) { text.parse().ok() } else { None }
        })
    }

    pub(super) fn real(&self, name: &str, range: RangeInclusive<f64>) -> Result<f64, SettingError> {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        self.parsed(name, allowed, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    /// A number, where one is given.
    pub(super) fn optional_real(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, SettingError> {
        if self.text(name)?.is_none() {
            return Ok(None);
        }
        self.real(name, range).map(Some)
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, SettingError> {
        self.parsed(name, "true or false", |text| match text {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        })
    }

    /// The name of a model, which becomes part of a path.
    pub(super) fn model(&self, name: &str) -> Result<String, SettingError> {
        let allowed = "a name of letters, digits, '-', '.' and '_', such as gemini-flash-latest";
        self.parsed(name, allowed, |text| {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            text.chars().all(good).then(|| text.to_owned())
        })
    }

    /// The phrase book in a file; an empty one where none is named.
    pub(super) fn phrase_book(&self, name: &str) -> Result<PhraseBook, SettingError> {
        let Some(file) = self.text(name)? else { return Ok(PhraseBook::default()) };
        let refused = |why: String| SettingError::refused(name, &file, why);
        let text = std::fs::read_to_string(&file)
            .map_err(|error| refused(format!("the path of a file that can be read ({error})")))?;
        PhraseBook::parse(&text).map_err(|error| refused(format!("a phrase book: {error}")))
    }

    pub(super) fn duration(&self, name: &str, seconds: RangeInclusive<u64>) -> Result<Duration, SettingError> {
        let allowed = format!("a duration from {}s to {}s, such as 500ms, 30s or 2m", seconds.start(), seconds.end());
        self.parsed(name, allowed, |text| {
            let duration = duration(text)?;
            let range = Duration::from_secs(*seconds.start())..=Duration::from_secs(*seconds.end());
            range.contains(&duration).then_some(duration)
        })
    }

    /// Durations with commas between them, at most an hour each. `none` is an empty list.
    pub(super) fn durations(&self, name: &str, count: RangeInclusive<usize>) -> Result<Vec<Duration>, SettingError> {
        let none = if *count.start() == 0 { ", or none" } else { "" };
        let allowed = format!(
            "{} to {} durations of at most an hour with commas between them, such as 2s,5s,10s{none}",
            count.start().max(&1),
            count.end()
        );
        self.parsed(name, allowed, |text| {
            let durations: Option<Vec<_>> = if text == "none" {
                Some(Vec::new())
            } else {
                text.split(',').map(|part| duration(part.trim())).collect()
            };
            durations.filter(|durations| {
                count.contains(&durations.len())
                    && durations.iter().all(|duration| *duration <= Duration::from_hours(1))
            })
        })
    }

    pub(super) fn address(&self, name: &str) -> Result<SocketAddr, SettingError> {
        self.parsed(name, "an address and a port, such as 0.0.0.0:8080", |text| text.parse().ok())
    }

    /// Filter directives, where given.
    pub(super) fn log_filter(&self, name: &str) -> Result<Option<String>, SettingError> {
        let Some(text) = self.given(name) else { return Ok(None) };
        match EnvFilter::try_new(&text) {
            Ok(_) => Ok(Some(text)),
            Err(error) => Err(SettingError::refused(name, &text, format_args!("filter directives ({error})"))),
        }
    }

    pub(super) fn log_format(&self, name: &str) -> Result<Option<LogFormat>, SettingError> {
        match self.text(name)?.as_deref() {
            None => Ok(None),
            Some("text") => Ok(Some(LogFormat::Text)),
            Some("json") => Ok(Some(LogFormat::Json)),
            Some(other) => Err(SettingError::refused(name, other, "text or json")),
        }
    }
}

/// A URL without its password and without its query, which may hold one.
fn redacted(secret: &str) -> String {
    if secret.starts_with("sqlite:") {
        return secret.to_owned();
    }
    let Ok(mut url) = Url::parse(secret) else { return "(set)".to_owned() };
    if url.password().is_some() {
        // Refused only by URLs without a host, which have no password.
        let _ = url.set_password(Some("***"));
    }
    url.set_query(None);
    url.into()
}

fn from_file(name: &str, file: &str) -> Result<String, SettingError> {
    let refused = |allowed: String| {
        // Somebody may have put the secret itself where its file is to be named.
        if file.starts_with('/') {
            SettingError::refused(name, file, allowed)
        } else {
            SettingError::refused_secret(name, allowed)
        }
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| refused(format!("the path of a file that can be read ({error})")))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(refused("the path of a file that is not empty".to_owned()));
    }
    Ok(text.to_owned())
}

/// A plain `0` is refused by the library for want of a unit; everybody understands it.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" { Some(Duration::ZERO) } else { humantime::parse_duration(text).ok() }
}
