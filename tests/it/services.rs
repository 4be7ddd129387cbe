//! The services that the tests use say what is wrong with them.

use anyhow::Result;
use dev_services::services::{ServiceUrls, Vhost};
use url::Url;

#[tokio::test]
async fn refused_user_of_the_management_api_is_explained() -> Result<()> {
    let services = ServiceUrls::from_env()?;
    let mut api_url = Url::parse(&services.rabbitmq_api_url)?;
    let address = format!("{}:{}", api_url.host_str().unwrap_or_default(), api_url.port().unwrap_or_default());
    api_url.set_password(Some("hunter2")).expect("the URL has a host");
    let refused = Vhost::create(&services.amqp_url, api_url.as_str()).await.err().expect("a wrong password");
    let message = format!("{refused:#}");
    for part in [&address, "401", "set TEST_RABBITMQ_API_URL to http://USER:PASSWORD@HOST:PORT"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains("hunter2"), "{message}");
    Ok(())
}
