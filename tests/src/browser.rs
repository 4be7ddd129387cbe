//! A real browser, which looks at the pages of `asset-worker serve`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use dev_services::process::{Process, command_with_death_signal};
use dev_services::services;
use dev_services::wait::{free_addresses, wait_until};
use fantoccini::elements::Element;
use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{ApiClient, WAIT_TIMEOUT};

/// A headless Chromium with one page; dropping it ends it.
pub struct Browser {
    client: Client,
    /// Address of the session at chromedriver.
    session_url: String,
    origin: String,
    folder: TempDir,
    // Dropped after the client, which ends the browser.
    _chromedriver: Process,
}

/// How a browser differs from that of most people.
#[derive(Debug, Clone, Copy, Default)]
pub struct BrowserOptions {
    /// It runs no scripts of pages.
    pub without_javascript: bool,
    /// It asks for dark pages.
    pub is_dark: bool,
    /// It is as narrow as a phone.
    pub is_narrow: bool,
}

impl Browser {
    /// Starts a browser for the pages of a server.
    pub async fn open(api: &ApiClient) -> Result<Self> {
        Self::open_with(api, BrowserOptions::default()).await
    }

    /// Starts a browser with options.
    pub async fn open_with(api: &ApiClient, options: BrowserOptions) -> Result<Self> {
        let program = tokio::task::spawn_blocking(services::chromedriver).await??;
        let folder = tempfile::tempdir()?;
        let [address] = free_addresses()?;
        let mut command = command_with_death_signal(&program, "TERM");
        command.arg(format!("--port={}", address.port()));
        let mut chromedriver = Process::start_logged("chromedriver", command, &folder.path().join("chromedriver.log"))?;
        let server = format!("http://{address}");
        let http = dev_services::http_client()?;
        let status = format!("{server}/status");
        let is_up = async || http.get(&status).send().await.ok();
        chromedriver.wait_until("chromedriver", WAIT_TIMEOUT, is_up).await?;
        let mut arguments: Vec<String> =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"]
                .map(str::to_owned)
                .to_vec();
        arguments.push(format!("--user-data-dir={}", folder.path().join("profile").display()));
        arguments.push(if options.is_narrow { "--window-size=500,900" } else { "--window-size=1280,1000" }.to_owned());
        if options.is_dark {
            arguments.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        let mut preferences = json!({
            "download.default_directory": folder.path().join("downloads"),
            "download.prompt_for_download": false,
        });
        if options.without_javascript {
            preferences["profile.managed_default_content_settings.javascript"] = json!(2);
        }
        let capabilities = json!({
            "goog:chromeOptions": {"args": arguments, "prefs": preferences},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let capabilities = capabilities.as_object().cloned().unwrap_or_default();
        let mut connecting = ClientBuilder::new(HttpConnector::new());
        let client = connecting.capabilities(capabilities).connect(&server).await;
        let client = client.context("the browser did not start")?;
        let session = client.session_id().await?.context("a session")?;
        let (session_url, origin) = (format!("{server}/session/{session}"), format!("http://{}", api.address()));
        Ok(Self { client, session_url, origin, folder, _chromedriver: chromedriver })
    }

    /// The session of the browser.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Loads a page of the server.
    pub async fn goto(&self, path: &str) -> Result<()> {
        Ok(self.client.goto(&format!("{}{path}", self.origin)).await?)
    }

    /// Follows a link from another site to a page of the server.
    pub async fn follow_from_another_site(&self, path: &str) -> Result<()> {
        // The name is a site of its own, although it leads to the same server.
        self.client.goto(&format!("{}/login", self.origin.replace("127.0.0.1", "localhost"))).await?;
        let link = format!("location.href = '{}{path}'", self.origin);
        self.run(&link).await?;
        wait_until("the linked page", WAIT_TIMEOUT, async || {
            let url = self.client.current_url().await.ok()?;
            (url.host_str() == Some("127.0.0.1")).then_some(())
        })
        .await
    }

    /// Path and query of the page.
    pub async fn path(&self) -> Result<String> {
        let url = self.client.current_url().await?;
        Ok(url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path())))
    }

    /// The first element that a CSS selector matches.
    pub async fn find(&self, css: &str) -> Result<Element> {
        let text = || format!("no {css}");
        self.client.find(Locator::Css(css)).await.with_context(text)
    }

    /// The number of elements that a CSS selector matches.
    pub async fn count(&self, css: &str) -> Result<usize> {
        Ok(self.client.find_all(Locator::Css(css)).await?.len())
    }

    /// The visible text of the first element that a CSS selector matches.
    pub async fn text(&self, css: &str) -> Result<String> {
        loop {
            match self.find(css).await?.text().await {
                // A script has replaced the element meanwhile.
                Err(error) if error.is_stale_element_reference() => {}
                text => return Ok(text?),
            }
        }
    }

    /// Waits until the visible text of an element contains a text, and returns it.
    pub async fn wait_for_text(&self, css: &str, expected: &str) -> Result<String> {
        let mut last = String::new();
        let what = format!("{expected:?} in {css}");
        let found = wait_until(&what, WAIT_TIMEOUT, async || {
            // While a page loads, elements may be missing or replaced.
            last = self.text(css).await.unwrap_or_default();
            last.contains(expected).then(|| last.clone())
        });
        let found = found.await;
        found.with_context(|| format!("the last text was {last:?}"))
    }

    /// Clicks the first element that a CSS selector matches.
    pub async fn click(&self, css: &str) -> Result<()> {
        self.find(css).await?.click().await.with_context(|| format!("cannot click {css}"))
    }

    /// Clicks the button with this text, which loads another page, and waits for it.
    pub async fn press(&self, text: &str) -> Result<()> {
        let old = self.find("html").await?;
        let path = format!("//button[normalize-space()='{text}']");
        let button = self.client.find(Locator::XPath(&path)).await.with_context(|| format!("no button {text:?}"))?;
        button.click().await?;
        wait_until("the next page", WAIT_TIMEOUT, async || old.tag_name().await.is_err().then_some(())).await
    }

    /// Presses a key.
    pub async fn press_key(&self, key: Key) -> Result<()> {
        Ok(self.client.active_element().await?.send_keys(&char::from(key).to_string()).await?)
    }

    /// Replaces the text of a field.
    pub async fn fill(&self, css: &str, text: &str) -> Result<()> {
        let field = self.find(css).await?;
        field.clear().await?;
        Ok(field.send_keys(text).await?)
    }

    /// Selects an option of a field by its value or text.
    pub async fn select(&self, css: &str, option: &str) -> Result<()> {
        let path = format!(".//option[@value='{option}' or normalize-space()='{option}']");
        Ok(self.find(css).await?.find(Locator::XPath(&path)).await?.click().await?)
    }

    /// Runs a script in the page and returns what it returns.
    pub async fn run(&self, script: &str) -> Result<Value> {
        Ok(self.client.execute(script, Vec::new()).await?)
    }

    /// Waits until a file is downloaded, and returns its path.
    pub async fn wait_for_download(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.path().join("downloads").join(name);
        wait_until(&format!("the download of {name}"), WAIT_TIMEOUT, async || path.is_file().then(|| path.clone()))
            .await
    }

    /// The errors that the browser has reported since the last call: of scripts, of the page's policy, of requests.
    pub async fn errors(&self) -> Result<Vec<String>> {
        let request = dev_services::http_client()?.post(format!("{}/se/log", self.session_url));
        let log: Value = request.json(&json!({"type": "browser"})).send().await?.json().await?;
        let entries = log["value"].as_array().context("the log of the browser")?.iter();
        let errors = entries.filter(|entry| entry["level"] == "SEVERE").filter_map(|entry| entry["message"].as_str());
        Ok(errors.map(str::to_owned).collect())
    }

    /// Ends the browser, which must have reported no error.
    pub async fn close(self) -> Result<()> {
        self.close_allowing(&[]).await
    }

    /// Ends the browser, which must have reported no other errors than those that contain one of these texts.
    pub async fn close_allowing(self, allowed: &[&str]) -> Result<()> {
        let mut errors = self.errors().await?;
        self.client.close().await?;
        errors.retain(|error| !allowed.iter().any(|part| error.contains(part)));
        ensure!(errors.is_empty(), "the browser reports errors: {errors:#?}");
        Ok(())
    }
}
