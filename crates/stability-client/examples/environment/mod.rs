//! Settings that the examples read from the environment.

use std::error::Error;

use stability_client::{Client, ClientBuilder};

/// A client builder with `STABILITY_API_KEY`, and with `STABILITY_BASE_URL` if it is set.
#[expect(clippy::disallowed_methods, reason = "an example is its own program")]
pub(super) fn client_builder() -> Result<ClientBuilder, Box<dyn Error>> {
    let key = std::env::var("STABILITY_API_KEY").map_err(|_| "STABILITY_API_KEY: not set")?;
    let builder = Client::builder(key);
    Ok(match std::env::var("STABILITY_BASE_URL") {
        Ok(base_url) => builder.base_url(base_url.parse()?),
        Err(_) => builder,
    })
}
