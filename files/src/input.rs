//! Opens files that users and strangers name: the one place where dlc does.
//!
//! Only regular files, only up to a size, and none that stands for another: a pointer of Git LFS, a
//! web page. A pipe, device or socket is refused before it can block.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use dlc_errors::{Fault, Faulty};
use thiserror::Error;

/// A file that can't be an input.
#[derive(Debug, Error)]
#[error("{}: {problem}", path.display())]
pub struct InputError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: InputProblem,
}

/// What is wrong with a file, and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InputProblem {
    /// There is nothing.
    #[error("doesn't exist. Check the path")]
    Missing,
    /// The system refused.
    #[error("can't be read ({0}). Check the path and its permissions")]
    System(io::Error),
    /// A folder, pipe, device or socket.
    #[error("is {0}, not a regular file. Name a file, or copy into one what is to be read")]
    NotRegular(&'static str),
    /// More bytes than a file of its kind has.
    #[error(
        "is larger than {0} bytes, which no such file should be. Check that it is the file that you mean"
    )]
    TooLarge(u64),
    /// What a clone without Git LFS has instead of a large file.
    #[error(
        "is a pointer of Git LFS, not the file itself. Fetch the file with `git lfs pull`, or download it again"
    )]
    LfsPointer,
    /// What a site answered instead of the file.
    #[error(
        "is a web page (HTML), not the file that its name says. Download the file itself, not the page about it"
    )]
    WebPage,
    /// Bytes that are no text.
    #[error("is not UTF-8 text")]
    NotText,
}

impl Faulty for InputError {
    fn fault(&self) -> Fault {
        Fault::BadInput
    }
}

impl InputError {
    /// What the system says of `path`.
    pub fn system(path: &Path, error: io::Error) -> Self {
        let missing = error.kind() == io::ErrorKind::NotFound;
        Self {
            path: path.to_owned(),
            problem: if missing {
                InputProblem::Missing
            } else {
                InputProblem::System(error)
            },
        }
    }
}

/// Opens a regular file and returns its size.
///
/// # Errors
/// [`InputError`], also for a file that stands for another.
pub fn open_input(path: &Path) -> Result<(File, u64), InputError> {
    open(path, false)
}

/// The bytes of a file of at most `cap` of them.
///
/// # Errors
/// See [`open_input`]; also for a larger file.
pub fn read_input(path: &Path, cap: u64) -> Result<Vec<u8>, InputError> {
    let (file, size) = open_input(path)?;
    read(file, size, path, cap)
}

/// The text in a file in some format, such as JSON, of at most `cap` bytes.
///
/// # Errors
/// See [`read_input`]; also for bytes that aren't UTF-8.
pub fn read_document(path: &Path, cap: u64) -> Result<String, InputError> {
    text(read_input(path, cap)?, path)
}

/// The text in a file of at most `cap` bytes that may hold any text, a web page's too.
///
/// # Errors
/// See [`read_document`].
pub fn read_text(path: &Path, cap: u64) -> Result<String, InputError> {
    let (file, size) = open(path, true)?;
    Ok(without_mark(text(read(file, size, path, cap)?, path)?))
}

/// The text after the byte order mark, with which editors on Windows begin UTF-8 files.
pub fn without_mark(text: String) -> String {
    text.strip_prefix('\u{FEFF}')
        .map(str::to_owned)
        .unwrap_or(text)
}

fn open(path: &Path, takes_pages: bool) -> Result<(File, u64), InputError> {
    let (mut file, size) = open_regular(path)?;
    let fails = |problem| InputError {
        path: path.to_owned(),
        problem,
    };
    match stand_in(&mut file) {
        Err(error) => Err(InputError::system(path, error)),
        Ok(Some(InputProblem::WebPage)) if takes_pages => Ok((file, size)),
        Ok(Some(problem)) => Err(fails(problem)),
        Ok(None) => Ok((file, size)),
    }
}

/// Opens a regular file of any content, to copy it or to hash it, and returns its size.
///
/// # Errors
/// [`InputError`] for what isn't there, can't be read or is no regular file.
pub fn open_regular(path: &Path) -> Result<(File, u64), InputError> {
    let fails = |problem| InputError {
        path: path.to_owned(),
        problem,
    };
    let system = |error| InputError::system(path, error);
    // Opening alone does something to some devices, so that they are looked at first.
    check_regular(&std::fs::metadata(path).map_err(system)?).map_err(fails)?;
    let mut options = OpenOptions::new();
    options.read(true);
    // What stands there by now may be a pipe all the same; without a writer it would block.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(system)?;
    let metadata = file.metadata().map_err(system)?;
    check_regular(&metadata).map_err(fails)?;
    Ok((file, metadata.len()))
}

fn check_regular(metadata: &Metadata) -> Result<(), InputProblem> {
    if metadata.is_file() {
        Ok(())
    } else {
        Err(InputProblem::NotRegular(kind(metadata)))
    }
}

fn kind(metadata: &Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if metadata.is_dir() {
        "a folder"
    } else {
        "something else"
    }
}

fn read(file: File, size: u64, path: &Path, cap: u64) -> Result<Vec<u8>, InputError> {
    let fails = |problem| InputError {
        path: path.to_owned(),
        problem,
    };
    if size > cap {
        return Err(fails(InputProblem::TooLarge(cap)));
    }
    // The size may be another by now, and files of the system say that they have none.
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(cap.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| InputError::system(path, error))?;
    if bytes.len() as u64 > cap {
        Err(fails(InputProblem::TooLarge(cap)))
    } else {
        Ok(bytes)
    }
}

fn text(bytes: Vec<u8>, path: &Path) -> Result<String, InputError> {
    String::from_utf8(bytes).map_err(|_| InputError {
        path: path.to_owned(),
        problem: InputProblem::NotText,
    })
}

/// What the file stands in for, by its beginning; reading starts there again.
fn stand_in(file: &mut File) -> io::Result<Option<InputProblem>> {
    const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";
    const PAGES: [&[u8]; 3] = [b"<!doctype html", b"<html", b"<head>"];
    let mut start = Vec::with_capacity(256);
    (&mut *file).take(256).read_to_end(&mut start)?;
    file.rewind()?;
    if start.starts_with(LFS) {
        return Ok(Some(InputProblem::LfsPointer));
    }
    let start = start
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(&start)
        .trim_ascii_start();
    let page = PAGES.iter().any(|page| {
        start
            .get(..page.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(page))
    });
    Ok(page.then_some(InputProblem::WebPage))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn problem<T: std::fmt::Debug>(result: Result<T, InputError>) -> InputProblem {
        result.unwrap_err().problem
    }

    #[test]
    fn files_up_to_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs::write(&path, "word").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "word");
        assert!(matches!(
            problem(read_text(&path, 3)),
            InputProblem::TooLarge(3)
        ));
        assert!(matches!(
            problem(read_input(&folder.path().join("nowhere"), 3)),
            InputProblem::Missing
        ));
        fs::write(&path, b"\xff\xfe").unwrap();
        assert!(matches!(
            problem(read_document(&path, 4)),
            InputProblem::NotText
        ));
        // It says that it is empty.
        assert!(
            !read_text(Path::new("/proc/self/status"), 1 << 16)
                .unwrap()
                .is_empty()
        );
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_refused_before_it_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, socket) = (folder.path().join("pipe"), folder.path().join("socket"));
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, expected) in [
            (pipe.as_path(), "is a pipe, not a regular file"),
            (&socket, "is a socket, not a regular file"),
            (folder.path(), "is a folder, not a regular file"),
            (Path::new("/dev/zero"), "is a device, not a regular file"),
        ] {
            let error = open_input(path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        assert!(matches!(
            problem(read_input(&link, 4)),
            InputProblem::NotRegular("a pipe")
        ));
    }

    #[test]
    fn files_that_stand_for_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(
            &path,
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        )
        .unwrap();
        assert!(matches!(
            problem(open_input(&path)),
            InputProblem::LfsPointer
        ));
        assert!(matches!(
            problem(read_text(&path, 1 << 20)),
            InputProblem::LfsPointer
        ));
        for page in [
            "<!DOCTYPE html>\n<html>",
            "\u{feff}\n  <HTML lang=\"en\">",
            "<head>",
        ] {
            fs::write(&path, page).unwrap();
            assert!(matches!(
                problem(read_document(&path, 1 << 20)),
                InputProblem::WebPage
            ));
            assert_eq!(
                read_text(&path, 1 << 20).unwrap(),
                page.trim_start_matches('\u{feff}')
            );
        }
        fs::write(&path, "<header of ours>").unwrap();
        open_input(&path).unwrap();
    }
}
