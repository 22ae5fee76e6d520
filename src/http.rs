//! The one HTTP client: proxy, certificates, timeouts and redirects are the same wherever dlc
//! downloads.
//!
//! Never follows a redirect to another scheme than HTTP's, nor from HTTPS to HTTP, and sends a
//! secret to no other server than the one it is meant for.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

pub(crate) use ureq::Proxy;

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_mins(1);
/// How many redirects one answer may take.
const MOST_REDIRECTS: usize = 10;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    /// No server can be trusted here.
    #[error(
        "this machine has no certificates of authorities; install ca-certificates, or name a file of them by the variable SSL_CERT_FILE"
    )]
    NoAuthorities,
    /// A server leads to nowhere or in a circle.
    #[error("{0}")]
    Redirect(String),
    /// The network or the server.
    #[error("{0}")]
    Failed(String),
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub method: Method,
    pub url: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// What the header `Authorization` says to the server of `url`, and to no other.
    pub secret: Option<&'a Secret>,
    /// Whether a redirect to another server is the answer.
    pub stays: bool,
}

/// What nobody but the server may see.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The client.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    trusts_nobody: bool,
}

impl Client {
    /// A client that goes through `proxy` and trusts the authorities of this machine.
    pub fn new(proxy: Option<Proxy>) -> Self {
        let roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
            .certs
            .iter()
            .map(|root| Certificate::from_der(root).to_owned())
            .collect();
        let trusts_nobody = roots.is_empty();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .proxy(proxy)
            .tls_config(tls)
            .user_agent(concat!("dlc/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build()
            .into();
        Self {
            agent,
            trusts_nobody,
        }
    }

    /// The answer after all redirects, whatever its status.
    pub fn send(&self, request: Request<'_>) -> Result<Answer, HttpError> {
        let home = origin(request.url);
        let mut url = request.url.to_owned();
        for _ in 0..=MOST_REDIRECTS {
            let secret = request.secret.filter(|_| origin(&url) == home);
            let answer = self.call(request, url, secret)?;
            let Some(next) = answer.next()? else {
                return Ok(answer);
            };
            if request.stays && origin(&next) != home {
                return Ok(answer);
            }
            url = next;
        }
        Err(HttpError::Redirect("too many redirects".into()))
    }

    fn call(
        &self,
        request: Request<'_>,
        url: String,
        secret: Option<&Secret>,
    ) -> Result<Answer, HttpError> {
        if self.trusts_nobody && url.starts_with("https:") {
            return Err(HttpError::NoAuthorities);
        }
        let mut call = match request.method {
            Method::Get => self.agent.get(&url),
            Method::Head => self.agent.head(&url),
        };
        for (name, value) in request.headers {
            call = call.header(*name, *value);
        }
        if let Some(Secret(secret)) = secret {
            call = call.header("Authorization", secret);
        }
        match call.call() {
            Ok(response) => Ok(Answer { url, response }),
            Err(error) => Err(HttpError::Failed(reason(&error))),
        }
    }
}

/// What a server answers.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Where it came from, after redirects.
    pub url: String,
    response: Response<Body>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// What a header says, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The body.
    pub fn reader(self) -> impl Read {
        self.response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader()
    }

    /// The whole body of at most `cap` bytes.
    pub fn read(self, cap: u64) -> Result<Vec<u8>, HttpError> {
        let mut body = self.response.into_body();
        let read = body.with_config().limit(cap).read_to_vec();
        read.map_err(|error| HttpError::Failed(reason(&error)))
    }

    /// Where the answer leads, if it is a redirect.
    fn next(&self) -> Result<Option<String>, HttpError> {
        if !matches!(self.status(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let Some(location) = self.header("Location") else {
            return Ok(None);
        };
        let next = resolve(&self.url, location);
        let is_http = next.starts_with("https://")
            || next.starts_with("http://") && !self.url.starts_with("https://");
        match origin(&next) {
            Some(_) if is_http => Ok(Some(next)),
            _ => Err(HttpError::Redirect(
                "the server redirects to an address that isn't safe to follow".into(),
            )),
        }
    }
}

/// What went wrong, in words.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "the host isn't found".to_owned(),
        ureq::Error::Timeout(_) => format!("no answer in {} s", PATIENCE.as_secs()),
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// What is wrong with an answer of this status, in words.
pub(crate) fn status_text(status: u16) -> String {
    match status {
        404 => "there is no such page (404)".to_owned(),
        status => format!("the server answers {status}"),
    }
}

/// Scheme, host and port of an address: what a secret is meant for.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri
        .port_u16()
        .unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Why `url` is no address to begin with, if it isn't: it has another scheme, no host, or a user
/// name, of which dlc sends none.
pub(crate) fn unusable(url: &str) -> Option<&'static str> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let host = rest.split('/').next().unwrap_or_default();
    if !matches!(scheme, "http" | "https") || host.is_empty() {
        return Some("isn't an address that begins with https:// or http://");
    }
    host.contains('@')
        .then_some("holds a user name, and dlc sends none")
}

/// The address that `reference` means on the page at `base`.
pub(crate) fn resolve(base: &str, reference: &str) -> String {
    let (reference, query) =
        reference.split_at(reference.find(['?', '#']).unwrap_or(reference.len()));
    if reference.contains("://") {
        return format!("{reference}{query}");
    }
    let (scheme, rest) = base.split_once("://").unwrap_or_default();
    if let Some(host) = reference.strip_prefix("//") {
        return format!("{scheme}://{host}{query}");
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let folder = if reference.starts_with('/') {
        ""
    } else {
        path.rsplit_once('/').map_or("", |(folder, _)| folder)
    };
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in reference.trim_start_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("{scheme}://{host}/{}{query}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_on_a_page_are_resolved_as_browsers_do() {
        let base = "https://host:8080/root/simple/onnxruntime/";
        for (reference, expected) in [
            ("https://files/a.whl", "https://files/a.whl"),
            ("//files/a.whl", "https://files/a.whl"),
            ("/a.whl", "https://host:8080/a.whl"),
            ("a.whl", "https://host:8080/root/simple/onnxruntime/a.whl"),
            (
                "../../files/a.whl#sha256=0",
                "https://host:8080/root/files/a.whl#sha256=0",
            ),
            ("../../../../../a.whl", "https://host:8080/a.whl"),
            (
                "/a?of=https://b/../c",
                "https://host:8080/a?of=https://b/../c",
            ),
        ] {
            assert_eq!(resolve(base, reference), expected, "{reference}");
        }
        assert_eq!(resolve("http://host", "a.whl"), "http://host/a.whl");
    }

    #[test]
    fn a_secret_is_for_one_scheme_host_and_port() {
        let home = origin("https://hub.co/a");
        assert!(home.is_some());
        for same in [
            "https://hub.co:443/b",
            "https://HUB.co",
            "https://me@hub.co/",
        ] {
            assert_eq!(origin(same), home, "{same}");
        }
        for other in [
            "http://hub.co/a",
            "https://hub.co:8443/a",
            "https://hub.co.evil.com/a",
            "https://hub.co@evil.com/a",
            "https://hub.co\\@evil.com/a",
            "https:///a",
            "file:///etc/passwd",
        ] {
            assert_ne!(origin(other), home, "{other}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        assert!(!format!("{:?}", Secret::new("hf_word".into())).contains("word"));
    }
}
