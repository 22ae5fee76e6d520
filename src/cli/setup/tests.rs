use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use tempfile::TempDir;

use super::*;
use crate::cli::wheel::tests::fake;

const LIBRARY: &str = "onnxruntime/capi/libonnxruntime.so.1.2.3";
const PROVIDER: &str = "onnxruntime/capi/libonnxruntime_providers_cuda.so";

/// Starts a server that answers each path with these bytes, and returns its address. It ends with
/// the tests.
fn serve(pages: BTreeMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            assert!(lines.any(|line| line.unwrap().is_empty()));
            let path = request.split(' ').nth(1).unwrap();
            let missing = answer("404 Not Found", "", b"");
            let _ = stream.write_all(pages.get(path).unwrap_or(&missing));
        }
    });
    format!("http://{address}")
}

fn answer(status: &str, header: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{header}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A list of one file, which lies at `url`.
fn list(wheel: &Wheel, url: &str) -> Vec<u8> {
    let list = json!({"meta": {"api-version": "1.1"}, "files": [
        {"filename": "other.whl", "url": "/other.whl", "hashes": {}},
        {"filename": wheel.file, "url": url, "hashes": {"sha256": "unread"}},
    ]});
    answer("200 OK", "", list.to_string().as_bytes())
}

/// A home with nothing in it, and what `setup` does there.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("data/onnxruntime")
    }

    fn fetch(&self, url: &str, wheel: &Wheel, force: bool) -> Result<PathBuf> {
        let folder = LibraryFolder::open(&self.folder())?;
        let index = Index::through(None, &format!("{url}/simple/"))?;
        super::fetch(&index, wheel, folder, force, &())
    }

    /// What `setup` says that doesn't get a wheel from a server with these pages. Nothing is left.
    fn fails(&self, wheel: &Wheel, pages: &[(&str, Vec<u8>)]) -> Failure {
        let failure = self.fetch(&server(wheel, pages), wheel, false).unwrap_err();
        assert_eq!(self.0.path().read_dir().unwrap().count(), 0);
        failure
    }

    /// Name and content of what lies in the folder.
    fn files(&self) -> Vec<(String, String)> {
        let entries = self
            .folder()
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries
            .map(|entry| {
                let text = fs::read_to_string(entry.path()).unwrap();
                (entry.file_name().into_string().unwrap(), text)
            })
            .collect();
        files.sort();
        files
    }
}

/// A server that lists the wheel at `/files/wheel`, unless `pages` say otherwise.
fn server(wheel: &Wheel, pages: &[(&str, Vec<u8>)]) -> String {
    let page = format!("/simple/{}/", wheel.package);
    let mut all = BTreeMap::from([(page, list(wheel, "../../files/wheel"))]);
    all.extend(
        pages
            .iter()
            .map(|(path, page)| ((*path).to_owned(), page.clone())),
    );
    serve(all)
}

fn pairs(files: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = files.iter().map(|(a, b)| ((*a).into(), (*b).into()));
    owned.collect()
}

#[cfg(target_os = "linux")]
#[test]
fn a_wheel_is_downloaded_through_redirects_and_its_library_installed() {
    let home = Home::new();
    let (wheel, bytes) = fake("onnxruntime", &[(LIBRARY, "cpu"), (PROVIDER, "cuda")]);
    let pages = [
        (
            "/files/wheel",
            answer("302 Found", "Location: /elsewhere?token=1\r\n", b""),
        ),
        ("/elsewhere?token=1", answer("200 OK", "", &bytes)),
    ];
    let library = home.fetch(&server(&wheel, &pages), &wheel, false).unwrap();
    assert_eq!(library, home.folder().join("libonnxruntime.so"));
    let manifest = format!(
        "{}\nlibonnxruntime.so\nlibonnxruntime.so.1.2.3\n",
        wheel.build()
    );
    assert_eq!(
        home.files(),
        pairs(&[
            (".fetched", &manifest),
            ("libonnxruntime.so", "cpu"),
            ("libonnxruntime.so.1.2.3", "cpu"),
        ])
    );
    assert!(library.is_symlink());
    let mode = std::os::unix::fs::PermissionsExt::mode(&library.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o755);
    let folder = LibraryFolder::open(&home.folder()).unwrap();
    assert!(folder.holds(&wheel.build()) && !folder.holds("onnxruntime 0"));
}

#[cfg(target_os = "linux")]
#[test]
fn another_build_takes_the_place_of_what_was_installed_and_nothing_else() {
    let home = Home::new();
    fs::create_dir_all(home.folder()).unwrap();
    let write = |name: &str, text: &str| fs::write(home.folder().join(name), text).unwrap();
    // As the script leaves it, with a line that leads out.
    write(
        ".fetched",
        "onnxruntime 1.0.0\nlibonnxruntime.so.1.0.0\nlibonnxruntime.so\n../../mine\n",
    );
    write("libonnxruntime.so.1.0.0", "old");
    write("libonnxruntime.so", "old");
    write("notes", "mine");
    fs::write(home.0.path().join("mine"), "mine").unwrap();
    let (wheel, bytes) = fake("onnxruntime-gpu", &[(LIBRARY, "gpu"), (PROVIDER, "cuda")]);
    let url = server(&wheel, &[("/files/wheel", answer("200 OK", "", &bytes))]);
    home.fetch(&url, &wheel, false).unwrap();
    let names = |home: &Home| home.files().into_iter().map(|f| f.0).collect::<Vec<_>>();
    let expected = [
        ".fetched",
        "libonnxruntime.so",
        "libonnxruntime.so.1.2.3",
        "libonnxruntime_providers_cuda.so",
        "notes",
    ];
    assert_eq!(names(&home), expected);
    assert!(home.0.path().join("mine").exists());
    // A library that somebody else put there.
    fs::remove_file(home.folder().join(".fetched")).unwrap();
    let error = home.fetch(&url, &wheel, false).unwrap_err().message();
    assert!(
        error.contains("isn't of an earlier setup") && error.contains("--force"),
        "{error}"
    );
    assert_eq!(names(&home), expected[1..]);
    home.fetch(&url, &wheel, true).unwrap();
    assert_eq!(names(&home), expected);
}

#[test]
fn what_is_not_the_wheel_is_not_kept() {
    let home = Home::new();
    let (wheel, bytes) = fake("onnxruntime", &[(LIBRARY, "cpu")]);
    let mut other = bytes.clone();
    other[50] ^= 1;
    let mut cut = answer("200 OK", "", &bytes);
    cut.truncate(cut.len() - 9);
    let unsized_cut = [b"HTTP/1.1 200 OK\r\n\r\n", &bytes[..40]].concat();
    for (page, expected) in [
        (
            answer("200 OK", "", &other),
            "isn't the file that dlc knows: its SHA-256 is",
        ),
        (
            answer("200 OK", "", &[&bytes[..], b"more"].concat()),
            "it is longer than",
        ),
        (answer("200 OK", "", &bytes[..40]), "broke off after 40 of"),
        (unsized_cut, "broke off after 40 of"),
        (cut, "broke off after"),
        (answer("503 Busy", "", b""), "the server answers 503"),
        (
            answer("302 Found", "Location: /files/wheel\r\n", b""),
            "too many redirects",
        ),
    ] {
        let failure = home.fails(&wheel, &[("/files/wheel", page)]);
        let message = failure.message();
        assert!(message.contains(expected), "{expected}: {message}");
        assert_eq!(failure.fault, Fault::BadInput);
    }
    let missing = home.fails(&wheel, &[]).message();
    assert!(missing.contains("there is no such page (404)") && missing.contains(wheel.file));
}

#[test]
fn an_index_that_does_not_lead_to_the_wheel_is_named_with_a_way_out() {
    let home = Home::new();
    let (wheel, _) = fake("onnxruntime", &[(LIBRARY, "cpu")]);
    let page = "/simple/onnxruntime/";
    let html = answer("200 OK", "Content-Type: text/html\r\n", b"<a href=x>x</a>");
    let empty = answer("200 OK", "", br#"{"files": []}"#);
    for (answer, expected) in [
        (html, "isn't a package index in JSON (PEP 691)"),
        (empty, "lists no onnxruntime-0-fake.whl"),
        (
            answer("404 Not Found", "", b""),
            "there is no such page (404)",
        ),
    ] {
        let message = home.fails(&wheel, &[(page, answer)]).message();
        let named = message.contains(page) && message.contains("--index");
        assert!(named && message.contains(expected), "{message}");
    }
}

#[test]
fn an_interrupted_download_leaves_nothing() {
    struct Stopped;
    impl Progress for Stopped {
        fn update(&self, _what: &str, _done: usize, _total: usize) {}
        fn interrupted(&self) -> bool {
            true
        }
    }
    let home = Home::new();
    let (wheel, bytes) = fake("onnxruntime", &[(LIBRARY, "cpu")]);
    let url = server(&wheel, &[("/files/wheel", answer("200 OK", "", &bytes))]);
    let folder = LibraryFolder::open(&home.folder()).unwrap();
    let index = Index::through(None, &format!("{url}/simple")).unwrap();
    let failure = super::fetch(&index, &wheel, folder, false, &Stopped).unwrap_err();
    assert_eq!(failure.fault, Fault::Interrupted);
    assert_eq!(home.0.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_platform_without_a_wheel_is_unsupported() {
    let failure = no_wheel("macos-x86_64", false);
    assert_eq!(failure.fault, Fault::Unsupported);
    assert!(failure.message().contains("macos-x86_64") && failure.message().contains("tract"));
}
