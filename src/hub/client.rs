//! The routes of the Hub: which files a revision has, how large they are, and what is in them.

use std::collections::BTreeSet;
use std::time::Duration;

use dlc_passes::Progress;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::error::HubError;
use super::{HubName, Settings, pause};
use crate::checkpoint::{is_commit, is_inside, shown};
use crate::http::{Answer, Client, Method, Request, Secret, status_text};

/// The longest list of a repository's files that is read.
const LONGEST_LIST: u64 = 32 << 20;
/// Most files of a repository.
const MOST_FILES: usize = 100_000;
/// How often a server may ask to wait, and how long at once.
const MOST_WAITS: u32 = 4;
const LONGEST_WAIT: u64 = 300;
/// What stands for itself in a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
const PATH: &AsciiSet = &PART.remove(b'/');

/// Asks for one repository.
pub(super) struct HubClient<'a> {
    http: Client,
    endpoint: &'a str,
    token: Option<Secret>,
    name: &'a HubName,
    progress: &'a dyn Progress,
}

/// What a revision of a repository is.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    /// Names with slashes.
    pub files: BTreeSet<String>,
}

/// A file of a repository, as its server describes it.
#[derive(Debug, Clone)]
pub(super) struct RemoteFile {
    pub name: String,
    /// The hash of its content: SHA-256, or that of a git blob.
    pub etag: String,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Model {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl<'a> HubClient<'a> {
    pub fn new(
        settings: &'a Settings,
        name: &'a HubName,
        progress: &'a dyn Progress,
    ) -> Result<Self, HubError> {
        if let Some(problem) = crate::http::unusable(&settings.endpoint) {
            return Err(HubError::Setting(format!(
                "the variable HF_ENDPOINT {problem}"
            )));
        }
        let token = settings.token.as_deref().map(bearer).transpose()?;
        Ok(Self {
            http: Client::new(settings.proxy.clone()),
            endpoint: settings.endpoint.trim_end_matches('/'),
            token,
            name,
            progress,
        })
    }

    /// The files of the revision.
    pub fn list(&self) -> Result<Listing, HubError> {
        let revision = utf8_percent_encode(self.name.revision(), PART);
        let repository = self.name.repository();
        let url = format!(
            "{}/api/models/{repository}/revision/{revision}",
            self.endpoint
        );
        let answer = self.ask(Method::Get, &url, &[("Accept", "application/json")], None)?;
        let body = answer.read(LONGEST_LIST).map_err(|error| {
            HubError::unreachable(&self.name.to_string(), self.endpoint, &error)
        })?;
        let Ok(Model { sha, siblings }) = serde_json::from_slice(&body) else {
            return Err(self.strange("the server's answer is no list of a repository's files"));
        };
        let other = is_commit(self.name.revision()) && sha != self.name.revision();
        if !is_commit(&sha) || other || siblings.len() > MOST_FILES {
            return Err(self.strange("the server's list of files isn't the Hub's"));
        }
        let names = siblings.into_iter().map(|file| file.rfilename);
        Ok(Listing {
            commit: sha,
            // No file that a checkpoint needs has another name.
            files: names.filter(|name| is_inside(name)).collect(),
        })
    }

    /// What is known of a file before it is downloaded.
    pub fn describe(&self, commit: &str, file: &str) -> Result<RemoteFile, HubError> {
        let url = self.url(commit, file);
        // Of a compressed answer the length is another.
        let answer = self.ask(
            Method::Head,
            &url,
            &[("Accept-Encoding", "identity")],
            Some(file),
        )?;
        let linked = answer.header("X-Linked-Etag");
        let etag = linked.or(answer.header("ETag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let length = answer.header("X-Linked-Size").or(answer
            .header("Content-Length")
            .filter(|_| answer.status() == 200));
        let bytes = length.and_then(|text| text.parse().ok());
        match bytes {
            Some(bytes) if is_hash(&etag) => Ok(RemoteFile {
                name: file.to_owned(),
                etag,
                bytes,
            }),
            _ => Err(self.strange(&format!(
                "the server doesn't say size and hash of {}",
                shown(file)
            ))),
        }
    }

    /// The content of a file from a byte on.
    pub fn get(&self, commit: &str, file: &str, from: u64) -> Result<Answer, HubError> {
        let range = format!("bytes={from}-");
        let headers = [("Accept-Encoding", "identity"), ("Range", &range)];
        let headers = if from == 0 { &headers[..1] } else { &headers };
        self.ask(Method::Get, &self.url(commit, file), headers, Some(file))
    }

    fn url(&self, commit: &str, file: &str) -> String {
        let file = utf8_percent_encode(file, PATH);
        format!(
            "{}/{}/resolve/{commit}/{file}",
            self.endpoint,
            self.name.repository()
        )
    }

    /// The answer to a request, which is as good as asked for or says that the range is none; waits
    /// where the server asks for it. What a redirect of the Hub says itself is the answer to HEAD.
    fn ask(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        file: Option<&str>,
    ) -> Result<Answer, HubError> {
        let request = Request {
            method,
            url,
            headers,
            secret: self.token.as_ref(),
            stays: method == Method::Head,
        };
        for waits in 0.. {
            if self.progress.interrupted() {
                return Err(HubError::Interrupted);
            }
            let answer = self.http.send(request).map_err(|error| {
                HubError::unreachable(&self.name.to_string(), self.endpoint, &error)
            })?;
            let wait = match answer.status() {
                200 | 206 | 416 => return Ok(answer),
                300..400 if method == Method::Head => return Ok(answer),
                429 => asked_wait(&answer).unwrap_or(1 << waits),
                500 | 502 | 503 | 504 => 1 << waits,
                _ => return Err(self.refusal(&answer, file)),
            };
            if waits == MOST_WAITS || wait > LONGEST_WAIT {
                return Err(self.gives_up(answer.status(), wait));
            }
            self.progress.phase(&format!(
                "waiting {wait} s: the Hub answers {}",
                answer.status()
            ));
            pause(Duration::from_secs(wait), self.progress)?;
        }
        Err(self.gives_up(429, 0))
    }

    fn gives_up(&self, status: u16, wait: u64) -> HubError {
        if status != 429 {
            return self.strange(&status_text(status));
        }
        HubError::TooManyRequests {
            name: self.name.to_string(),
            wait: if wait > LONGEST_WAIT {
                format!(" and asks to wait {wait} s")
            } else {
                String::new()
            },
        }
    }

    /// Why the server doesn't give what was asked for.
    fn refusal(&self, answer: &Answer, file: Option<&str>) -> HubError {
        let name = self.name.to_string();
        let code = answer.header("X-Error-Code").unwrap_or_default();
        let repository = self.name.repository();
        match answer.status() {
            status @ (401 | 403) if code == "GatedRepo" || status == 403 => HubError::Forbidden {
                page: format!("{}/{repository}", self.endpoint),
                name,
                status,
            },
            401 => HubError::Unauthorized {
                name,
                had_token: self.token.is_some(),
            },
            404 => HubError::NotFound {
                what: match (code, file) {
                    ("RevisionNotFound", _) => {
                        format!(
                            "branch, tag or commit {} in {repository}",
                            self.name.revision()
                        )
                    }
                    (_, Some(file)) => format!("file {} in it", shown(file)),
                    _ => "repository of this name".to_owned(),
                },
                name,
            },
            status => self.strange(&status_text(status)),
        }
    }

    /// An error about what the server says or sends.
    pub fn strange(&self, problem: &str) -> HubError {
        HubError::Answer {
            name: self.name.to_string(),
            problem: problem.to_owned(),
        }
    }
}

/// What the server wants to be shown; what can't be a token isn't sent, nor printed.
fn bearer(token: &str) -> Result<Secret, HubError> {
    let token = token.trim();
    if token.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(Secret::new(format!("Bearer {token}")))
    } else {
        Err(HubError::Setting(
            "the variable HF_TOKEN holds no token: it has spaces or other characters that none has"
                .into(),
        ))
    }
}

/// Whether it is SHA-256 or SHA-1 in hexadecimal.
fn is_hash(etag: &str) -> bool {
    matches!(etag.len(), 40 | 64) && etag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// How many seconds a server asks to wait: `Retry-After: 30`, `RateLimit: "api";r=0;t=30`.
fn asked_wait(answer: &Answer) -> Option<u64> {
    let limit = answer.header("RateLimit").unwrap_or_default();
    let reset = limit
        .split(';')
        .find_map(|part| part.trim().strip_prefix("t="));
    answer.header("Retry-After").or(reset)?.trim().parse().ok()
}
