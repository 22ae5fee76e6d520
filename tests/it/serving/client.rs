//! A server on a free port, and a client that is no library: what goes over the socket is seen.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::command::Shell;
use crate::common::fixture;
use crate::stopping::send;

/// What loading may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
pub const JSON: &str = "Content-Type: application/json\r\n";
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

/// `dlc serve tiny`, ended when it is dropped.
pub struct Server {
    pub shell: Shell,
    pub port: u16,
    child: Child,
    lines: Mutex<Receiver<String>>,
    /// Lines of stderr that were read.
    told: Mutex<Vec<String>>,
}

/// An answer as a whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// What a stream told.
    pub fn events(&self) -> Vec<String> {
        events(&self.body)
    }
}

fn events(body: &str) -> Vec<String> {
    let lines = body.lines().filter_map(|line| line.strip_prefix("data: "));
    lines.map(str::to_owned).collect()
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(Shell::new(), args)
    }

    /// In a shell that may have other bundles, named among the arguments.
    pub fn start_in(shell: Shell, args: &[&str]) -> Self {
        Self::start_with(shell, TEMPLATE, args)
    }

    /// With another chat template.
    pub fn start_with(shell: Shell, template: &str, args: &[&str]) -> Self {
        shell.copy(&fixture("tiny-llama"), "checkpoint");
        shell.write("checkpoint/chat_template.jinja", template);
        shell.ok(&["compile", "checkpoint", "-o", "tiny", "--threads", "1"]);
        let all = [&["serve", "tiny", "--port", "0", "--threads", "1"], args].concat();
        let mut child = shell.start(&all);
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| {
                let _ = sender.send(line);
            });
        });
        let mut server = Self {
            shell,
            port: 0,
            child,
            lines: Mutex::new(lines),
            told: Mutex::default(),
        };
        let listening = server.line("listening on http://");
        server.port = listening.rsplit(':').next().unwrap().parse().unwrap();
        server.line("model `tiny` is ready");
        while server.get("/ready").status != 200 {
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// The next line of stderr that begins so.
    pub fn line(&self, start: &str) -> String {
        loop {
            let line = self.lines.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            self.told.lock().unwrap().push(line.clone());
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// Whether it has said so before it was ready.
    pub fn tells(&self, what: &str) {
        let told = self.told.lock().unwrap();
        assert!(told.iter().any(|line| line.contains(what)), "{told:?}");
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes as they are, and reads to the end.
    pub fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        parse(&self.raw(&request))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, JSON, body.to_string().as_bytes())
    }

    /// Asks, and leaves the answer unread.
    pub fn open(&self, path: &str, body: &Value) -> Stream {
        let mut stream = self.connect();
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        Stream {
            reader: BufReader::new(stream),
            read: String::new(),
        }
    }

    /// The value of a metric by its name and labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        value.trim().parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub fn becomes(&self, name: &str, value: u64) {
        let started = std::time::Instant::now();
        while self.metric(name) != value {
            assert!(
                started.elapsed() < PATIENCE,
                "{name}: {}",
                self.metric(name)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, name: &str) {
        send(name, &self.child);
    }

    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer that is read as it comes.
pub struct Stream {
    reader: BufReader<TcpStream>,
    read: String,
}

impl Stream {
    /// Waits for the first event.
    pub fn first_event(&mut self) {
        while !self.read.contains("\ndata: ") {
            assert!(
                self.reader.read_line(&mut self.read).unwrap() > 0,
                "{}",
                self.read
            );
        }
    }

    /// All events, at the end.
    pub fn events(mut self) -> Vec<String> {
        let _ = self.reader.read_to_string(&mut self.read);
        events(&parse(&self.read).body)
    }
}

fn parse(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Answer {
        status: status.unwrap_or(0),
        head: head.to_owned(),
        body: if chunked {
            joined(body)
        } else {
            body.to_owned()
        },
    }
}

/// A body without the lengths of its chunks.
fn joined(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        if length == 0 || length > rest.len() {
            break;
        }
        whole += &rest[..length];
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}
