//! A server that speaks the Hub's routes on a port of this machine, and one that stands for its
//! content network on another.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha1::{Digest, Sha1};
use sha2::Sha256;

/// The commit of every repository here.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as a server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    /// With what comes after `?`.
    pub path: String,
    /// Header names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Whether it came to the content network.
    pub elsewhere: bool,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// `200 OK`.
    pub status: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// How many bytes of the body come before the connection is cut.
    pub cut: Option<usize>,
    /// Whether the connection stays open without a word after that.
    pub stalls: bool,
}

impl Reply {
    pub fn new(status: &str) -> Self {
        Self {
            status: status.into(),
            ..Self::default()
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// Changes the answers of a server: sees the request and the answer that it would get.
type Meddler = Box<dyn FnMut(&Seen, Reply) -> Reply + Send>;

struct Hub {
    /// Files by repository and name.
    files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Branches and tags; all mean [`COMMIT`].
    revisions: Vec<String>,
    seen: Vec<Seen>,
    meddler: Option<Meddler>,
    elsewhere: String,
}

/// Both servers. They end with the tests.
pub struct HubServer {
    pub url: String,
    hub: Arc<Mutex<Hub>>,
}

impl HubServer {
    pub fn new() -> Self {
        let hub = Arc::new(Mutex::new(Hub {
            files: BTreeMap::new(),
            revisions: vec!["main".into()],
            seen: vec![],
            meddler: None,
            elsewhere: String::new(),
        }));
        let url = serve(Arc::clone(&hub), false);
        let elsewhere = serve(Arc::clone(&hub), true);
        hub.lock().unwrap().elsewhere = elsewhere;
        Self { url, hub }
    }

    /// Adds a file to a repository, which is there from then on.
    pub fn add(&self, repository: &str, name: &str, content: impl Into<Vec<u8>>) {
        let mut hub = self.hub.lock().unwrap();
        let files = hub.files.entry(repository.into()).or_default();
        files.insert(name.into(), content.into());
    }

    /// Adds all files of a folder and of those in it.
    pub fn add_folder(&self, repository: &str, folder: &Path) {
        self.add_below(repository, folder, "");
    }

    fn add_below(&self, repository: &str, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.path().is_dir() {
                self.add_below(repository, &entry.path(), &format!("{name}/"));
            } else {
                self.add(repository, &name, fs::read(entry.path()).unwrap());
            }
        }
    }

    /// Adds a branch or tag.
    pub fn add_revision(&self, name: &str) {
        self.hub.lock().unwrap().revisions.push(name.into());
    }

    /// Lets something else be answered from now on.
    pub fn meddle(&self, meddler: impl FnMut(&Seen, Reply) -> Reply + Send + 'static) {
        self.hub.lock().unwrap().meddler = Some(Box::new(meddler));
    }

    /// Answers as it should from now on.
    pub fn behave(&self) {
        self.hub.lock().unwrap().meddler = None;
    }

    /// The requests since this was last asked.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.hub.lock().unwrap().seen)
    }
}

/// What the Hub calls a content: SHA-256 of large files, git's hash of others.
pub fn etag(name: &str, content: &[u8]) -> String {
    if is_large(name) {
        return format!("{:x}", Sha256::digest(content));
    }
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    format!("{:x}", hash.finalize())
}

/// Whether a file lies on the content network.
fn is_large(name: &str) -> bool {
    let ending = std::path::Path::new(name).extension();
    ending.is_some_and(|ending| ending == "safetensors" || ending == "bin")
}

fn serve(hub: Arc<Mutex<Hub>>, elsewhere: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (hub, stream) = (Arc::clone(&hub), stream.unwrap());
            std::thread::spawn(move || answer(&hub, stream, elsewhere));
        }
    });
    format!("http://{address}")
}

/// Answers the one request of a connection.
fn answer(hub: &Mutex<Hub>, mut stream: TcpStream, elsewhere: bool) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    let mut parts = first.split(' ').map(str::to_owned);
    let (method, path) = (parts.next().unwrap(), parts.next().unwrap());
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty());
    let headers = headers.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    let seen = Seen {
        method,
        path,
        headers: headers.collect(),
        elsewhere,
    };
    let reply = {
        let mut hub = hub.lock().unwrap();
        hub.seen.push(seen.clone());
        let reply = hub.reply(&seen);
        match &mut hub.meddler {
            Some(meddler) => meddler(&seen, reply),
            None => reply,
        }
    };
    let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", reply.status);
    let sized = reply
        .headers
        .iter()
        .any(|(name, _)| name == "Content-Length");
    if !sized {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body = match reply.cut {
        Some(cut) => &reply.body[..cut.min(reply.body.len())],
        None => &reply.body,
    };
    let body: &[u8] = if seen.method == "HEAD" { &[] } else { body };
    let _ = stream.write_all(&[head.as_bytes(), b"\r\n", body].concat());
    if reply.stalls {
        std::thread::sleep(std::time::Duration::from_mins(2));
    }
}

impl Hub {
    fn reply(&self, seen: &Seen) -> Reply {
        let path = seen.path.split('?').next().unwrap();
        let parts: Vec<&str> = path.trim_start_matches('/').splitn(5, '/').collect();
        match parts[..] {
            ["content", org, name, _, file] => self.content(seen, &format!("{org}/{name}"), file),
            ["api", "models", org, name, rest] => {
                let revision = rest.strip_prefix("revision/").unwrap_or_default();
                self.list(&format!("{org}/{name}"), &revision.replace("%2F", "/"))
            }
            [org, name, "resolve", revision, file] => {
                self.file(seen, &format!("{org}/{name}"), revision, file)
            }
            _ => Reply::new("404 Not Found"),
        }
    }

    fn knows(&self, revision: &str) -> bool {
        revision == COMMIT || self.revisions.iter().any(|known| known == revision)
    }

    fn list(&self, repository: &str, revision: &str) -> Reply {
        let Some(files) = self.files.get(repository) else {
            // As the Hub answers who shows no token.
            return Reply::new("401 Unauthorized").header("X-Error-Code", "RepoNotFound");
        };
        if !self.knows(revision) {
            return Reply::new("404 Not Found").header("X-Error-Code", "RevisionNotFound");
        }
        let names: Vec<_> = files
            .keys()
            .map(|name| json!({"rfilename": name}))
            .collect();
        let list = json!({"id": repository, "sha": COMMIT, "siblings": names});
        Reply::new("200 OK").body(list.to_string())
    }

    /// A small file, or the way to a large one.
    fn file(&self, seen: &Seen, repository: &str, revision: &str, file: &str) -> Reply {
        let content = self.files.get(repository).and_then(|files| files.get(file));
        let Some(content) = content.filter(|_| self.knows(revision)) else {
            return Reply::new("404 Not Found").header("X-Error-Code", "EntryNotFound");
        };
        let etag = format!("\"{}\"", etag(file, content));
        let reply = if is_large(file) {
            let place = format!("{}/content/{repository}/x/{file}?signed=1", self.elsewhere);
            Reply::new("302 Found")
                .header("Location", place)
                .header("X-Linked-Etag", &etag)
                .header("X-Linked-Size", content.len().to_string())
                .header("ETag", "\"of-the-pointer\"")
        } else {
            part(seen, content).header("ETag", etag)
        };
        reply.header("X-Repo-Commit", COMMIT)
    }

    fn content(&self, seen: &Seen, repository: &str, file: &str) -> Reply {
        match self.files.get(repository).and_then(|files| files.get(file)) {
            Some(content) => part(seen, content),
            None => Reply::new("404 Not Found"),
        }
    }
}

/// The part of a content that is asked for.
fn part(seen: &Seen, content: &[u8]) -> Reply {
    if seen.method == "HEAD" {
        return Reply::new("200 OK").header("Content-Length", content.len().to_string());
    }
    let range = seen
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="));
    let from = range.and_then(|range| range.trim_end_matches('-').parse::<usize>().ok());
    match from {
        None => Reply::new("200 OK").body(content),
        Some(from) if from < content.len() => Reply::new("206 Partial Content")
            .header(
                "Content-Range",
                format!("bytes {from}-{}/{}", content.len() - 1, content.len()),
            )
            .body(&content[from..]),
        Some(_) => Reply::new("416 Range Not Satisfiable"),
    }
}
