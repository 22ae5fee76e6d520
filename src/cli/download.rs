//! Downloads files of a Python package index over HTTP: the only part of dlc that opens a
//! connection.
//!
//! What arrives is nothing before its SHA-256 is the expected one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dlc_errors::Fault;
use dlc_files::IoError;
use dlc_passes::Progress;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy, ResponseExt};

use super::failure::{Context, Failure, Result, bail};
use super::wheel::Wheel;

/// The index of all public Python packages.
pub(super) const PYPI: &str = "https://pypi.org/simple";
/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_mins(1);
/// The form of an index's answer: <https://peps.python.org/pep-0691/>.
const JSON: &str = "application/vnd.pypi.simple.v1+json";
/// The longest list of a project's files that is read.
const LONGEST_LIST: u64 = 64 << 20;

/// The files of a project on an index.
#[derive(Debug, Deserialize)]
struct Project {
    files: Vec<ProjectFile>,
}

#[derive(Debug, Deserialize)]
struct ProjectFile {
    filename: String,
    url: String,
}

/// An index and the way to it.
#[derive(Debug)]
pub(super) struct Index {
    agent: Agent,
    url: String,
    trusts_nobody: bool,
}

impl Index {
    /// The index at `url`, reached as the environment says: `HTTPS_PROXY`, `NO_PROXY`,
    /// `SSL_CERT_FILE`.
    pub fn new(url: &str) -> Result<Self> {
        Self::through(Proxy::try_from_env(), url)
    }

    /// The index at `url`, through `proxy`.
    pub fn through(proxy: Option<Proxy>, url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let host = rest.split('/').next().unwrap_or_default();
        if !matches!(scheme, "http" | "https") || host.is_empty() {
            bail!("the index isn't an address that begins with https:// or http://");
        }
        if host.contains('@') {
            bail!(
                "the index's address holds a user name, and dlc sends none; name an index that needs none with --index"
            );
        }
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
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build()
            .into();
        Ok(Self {
            agent,
            url: url.trim_end_matches('/').to_owned(),
            trusts_nobody,
        })
    }

    /// Downloads a wheel into `folder`, and returns its path there.
    pub fn download(
        &self,
        wheel: &Wheel,
        folder: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf> {
        let url = self.find(wheel)?;
        let response = self
            .get(&url, "application/octet-stream")
            .with_context(|| format!("can't download {} from {}", wheel.file, self.url))?;
        let path = folder.join(wheel.file);
        let mut file = File::create_new(&path).map_err(IoError::of("create", &path))?;
        let sha256 = receive(response, wheel, progress, |bytes| {
            Ok(file.write_all(bytes).map_err(IoError::of("write", &path))?)
        })?;
        if sha256 != wheel.sha256 {
            bail!(
                "{} from {} isn't the file that dlc knows: its SHA-256 is {sha256} instead of {}; nothing of it is kept. Name another index with --index",
                wheel.file,
                self.url,
                wheel.sha256
            );
        }
        Ok(path)
    }

    /// The address of a wheel.
    fn find(&self, wheel: &Wheel) -> Result<String> {
        let page = format!("{}/{}/", self.url, wheel.package);
        let mut response = self
            .get(&page, JSON)
            .with_context(|| format!("can't read {page}"))?;
        let base = response.get_uri().to_string();
        let list = response
            .body_mut()
            .with_config()
            .limit(LONGEST_LIST)
            .read_to_vec()
            .map_err(|error| self.failure(&error))
            .with_context(|| format!("can't read {page}"))?;
        let Ok(project) = serde_json::from_slice::<Project>(&list) else {
            bail!(
                "{page} isn't a package index in JSON (PEP 691); name one that is with --index, such as {PYPI}"
            );
        };
        let file = project
            .files
            .into_iter()
            .find(|file| file.filename == wheel.file);
        let file = file.with_context(|| {
            format!(
                "{page} lists no {}; name a complete index with --index, such as {PYPI}",
                wheel.file
            )
        })?;
        Ok(resolve(&base, &file.url))
    }

    fn get(&self, url: &str, accept: &str) -> Result<Response<Body>> {
        if self.trusts_nobody && url.starts_with("https:") {
            bail!(
                "this machine has no certificates of authorities; install ca-certificates, or name a file of them by the variable SSL_CERT_FILE"
            );
        }
        self.agent
            .get(url)
            .header("Accept", accept)
            .call()
            .map_err(|error| self.failure(&error))
    }

    /// What went wrong on the way to the index, and ways out.
    fn failure(&self, error: &ureq::Error) -> Failure {
        let reason = match error {
            ureq::Error::StatusCode(404) => "there is no such page (404)".to_owned(),
            ureq::Error::StatusCode(code) => format!("the server answers {code}"),
            ureq::Error::HostNotFound => "the host isn't found".to_owned(),
            ureq::Error::Timeout(_) => format!("no answer in {} s", PATIENCE.as_secs()),
            ureq::Error::Io(error) => error.to_string(),
            error => error.to_string(),
        };
        Failure::usage(format!(
            "{reason}. Check the network and the proxy (the variable HTTPS_PROXY), name another index than {} with --index, or install the Python package onnxruntime, which dlc finds too",
            self.url
        ))
    }
}

/// Hands on the body of a response piece by piece, and returns its SHA-256.
fn receive(
    response: Response<Body>,
    wheel: &Wheel,
    progress: &dyn Progress,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<String> {
    const MEGABYTE: u64 = 1_000_000;
    let (mut hash, mut done) = (Sha256::new(), 0);
    let mut body = response
        .into_body()
        .into_with_config()
        .limit(u64::MAX)
        .reader();
    let mut buffer = vec![0; 1 << 16];
    loop {
        check_interruption(progress)?;
        let piece = match body.read(&mut buffer) {
            Ok(0) if done == wheel.bytes => return Ok(format!("{:x}", hash.finalize())),
            Ok(0) => return Err(broken_off(wheel, done, "the server sent no more")),
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken_off(wheel, done, &error.to_string())),
        };
        done += piece.len() as u64;
        if done > wheel.bytes {
            bail!(
                "{} isn't the file that dlc knows: it is longer than {} bytes. Name another index with --index",
                wheel.file,
                wheel.bytes
            );
        }
        hash.update(piece);
        take(piece)?;
        progress.update(
            "MB",
            (done / MEGABYTE) as usize,
            (wheel.bytes / MEGABYTE) as usize,
        );
    }
}

/// Ends what the user asked to stop.
pub(super) fn check_interruption(progress: &dyn Progress) -> Result<()> {
    if progress.interrupted() {
        return Err(Failure::of(Fault::Interrupted, "interrupted"));
    }
    Ok(())
}

fn broken_off(wheel: &Wheel, done: u64, reason: &str) -> Failure {
    Failure::usage(format!(
        "the download of {} broke off after {done} of {} bytes: {reason}. Run the command again",
        wheel.file, wheel.bytes
    ))
}

/// The address that `reference` means on the page at `base`.
fn resolve(base: &str, reference: &str) -> String {
    if reference.contains("://") {
        return reference.to_owned();
    }
    let (scheme, rest) = base.split_once("://").unwrap_or_default();
    if let Some(host) = reference.strip_prefix("//") {
        return format!("{scheme}://{host}");
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
    format!("{scheme}://{host}/{}", parts.join("/"))
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
        ] {
            assert_eq!(resolve(base, reference), expected, "{reference}");
        }
        assert_eq!(resolve("http://host", "a.whl"), "http://host/a.whl");
    }

    #[test]
    fn what_is_no_index_is_refused_without_a_word_of_passwords() {
        for url in ["", "pypi.org/simple", "file:///simple", "https://"] {
            let error = Index::through(None, url).unwrap_err().message();
            assert!(error.contains("begins with https://"), "{error}");
        }
        let error = Index::through(None, "https://me:secret@host/simple").unwrap_err();
        assert!(!error.message().contains("secret"), "{}", error.message());
    }
}
