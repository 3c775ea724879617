//! TLS to backends, whatever their certificates: a check asks whether somebody answers, as `kubelet` does, and backends have names that
//! the host does not know.

use std::borrow::Cow;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Target;
use super::check::Deadline;
use super::dialer::{Connection, chain};

/// What TLS connections have in common.
pub struct Tls {
    /// `None` when the crypto library lacks what TLS needs.
    connector: Option<TlsConnector>,
}

impl Tls {
    /// HTTP/1.1 over TLS 1.2 or 1.3. Each connection is a full handshake.
    pub fn new() -> Self {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let connector = config.ok().map(|config| {
            let verifier = Arc::new(Anybody(provider));
            let config = config.dangerous().with_custom_certificate_verifier(verifier);
            let mut config = config.with_no_client_auth();
            config.resumption = Resumption::disabled();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            TlsConnector::from(Arc::new(config))
        });
        Self { connector }
    }

    /// Shakes hands. `host` is asked for by name, if it is one.
    ///
    /// # Errors
    /// The finding of the check.
    pub async fn connect(
        &self,
        target: &Target,
        host: Option<&str>,
        connection: Connection,
        deadline: Deadline,
    ) -> Result<TlsStream<Connection>, Cow<'static, str>> {
        let connector = self.connector.as_ref().ok_or("TLS is not available")?;
        let name = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
        let name = name.unwrap_or_else(|| ServerName::from(target.address));
        let handshake = deadline.step("TLS handshake not finished", connector.connect(name, connection)).await?;
        handshake.map_err(|error| chain("TLS", &error))
    }
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
