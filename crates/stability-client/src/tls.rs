//! TLS of the client's own connections. Nothing is installed for the whole process.

use reqwest::{ClientBuilder, Url};

/// Sets up TLS with the system's root certificates and these, each a PEM bundle.
#[cfg(feature = "rustls")]
pub(crate) fn configure(builder: ClientBuilder, root_certificates: &[Vec<u8>]) -> Result<ClientBuilder, String> {
    use std::sync::Arc;

    use rustls::ClientConfig;
    use rustls::crypto::{CryptoProvider, ring};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use rustls_platform_verifier::Verifier;

    let mut certificates = Vec::new();
    for pem in root_certificates {
        let parsed: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().unwrap_or_default();
        if parsed.is_empty() {
            return Err(NOT_PEM.to_owned());
        }
        certificates.extend(parsed);
    }
    let failed = |error: rustls::Error| format!("TLS cannot be set up ({error})");
    let installed = CryptoProvider::get_default().cloned();
    let provider = installed.unwrap_or_else(|| Arc::new(ring::default_provider()));
    let verifier = Verifier::new_with_extra_roots(certificates, provider.clone()).map_err(failed)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(builder.tls_backend_preconfigured(config))
}

/// Sets up TLS with the system's root certificates and these, each a PEM bundle.
#[cfg(all(feature = "native-tls", not(feature = "rustls")))]
pub(crate) fn configure(mut builder: ClientBuilder, root_certificates: &[Vec<u8>]) -> Result<ClientBuilder, String> {
    for pem in root_certificates {
        let certificates = reqwest::Certificate::from_pem_bundle(pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err(NOT_PEM.to_owned());
        }
        builder = builder.tls_certs_merge(certificates);
    }
    Ok(builder)
}

/// Without a TLS feature, root certificates are refused.
#[cfg(not(any(feature = "rustls", feature = "native-tls")))]
pub(crate) fn configure(builder: ClientBuilder, root_certificates: &[Vec<u8>]) -> Result<ClientBuilder, String> {
    if root_certificates.is_empty() {
        return Ok(builder);
    }
    Err("root certificates need the feature rustls or native-tls".to_owned())
}

/// Checks that requests to this URL can be sent: without a TLS feature, `https` cannot.
pub(crate) fn check(base_url: &Url) -> Result<(), String> {
    if cfg!(any(feature = "rustls", feature = "native-tls")) || base_url.scheme() == "http" {
        return Ok(());
    }
    Err("base URL: https needs the feature rustls or native-tls".to_owned())
}

#[cfg(any(feature = "rustls", feature = "native-tls"))]
const NOT_PEM: &str = "a root certificate is not PEM";
