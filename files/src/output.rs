//! Writes files that users name: the one place where dlc does.
//!
//! A regular or new file appears whole or not at all: it is written aside, in the same folder, and
//! renamed; what a run that was killed left there, the next one in that folder removes. Links are
//! followed, and stay. Devices, pipes and whatever else takes bytes are written through.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dlc_errors::{Fault, Faulty};
use thiserror::Error;

use crate::IoError;
use crate::temporary::Temporary;

/// Links that are followed before they count as a circle.
const MOST_LINKS: usize = 40;

/// A file that can't be written.
#[derive(Debug, Error)]
#[error("can't write {}: {problem}", path.display())]
pub struct OutputError {
    path: PathBuf,
    problem: OutputProblem,
}

impl Faulty for OutputError {
    fn fault(&self) -> Fault {
        Fault::BadInput
    }
}

impl From<IoError> for OutputProblem {
    /// What the system says, without the name of the file beside.
    fn from(error: IoError) -> Self {
        Self::System(error.source)
    }
}

#[derive(Debug, Error)]
enum OutputProblem {
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("it is a folder; name a file to write")]
    Folder,
    #[error("it is a socket; name a file or a pipe")]
    Socket,
    #[error("{} isn't a folder; make it first, or name another", .0.display())]
    NoFolder(PathBuf),
    #[error("files of this kind end in {0}, and this one doesn't")]
    Extension(String),
}

/// Where the bytes go.
#[derive(Debug)]
enum Target {
    /// A file that is there, with its links resolved, or a new one.
    Regular(PathBuf, Option<Metadata>),
    /// Anything else that is there.
    Through(PathBuf),
}

/// Bytes that wait beside their file, or for what they are to be written to. Dropping them leaves
/// everything as it was.
#[derive(Debug)]
pub struct StagedFile<'b> {
    path: PathBuf,
    state: Staged<'b>,
}

#[derive(Debug)]
enum Staged<'b> {
    Aside(Temporary, PathBuf),
    Through(PathBuf, &'b [u8]),
}

/// Refuses what can't be written in the end, before anything is computed: a folder, one that is
/// missing, a file that the system protects, and a name without one of `extensions`, unless it is
/// the name of a device or pipe.
///
/// # Errors
/// [`OutputError`] for each of these.
pub fn check_output(path: &Path, extensions: &[&str]) -> Result<(), OutputError> {
    let fails = |problem| OutputError {
        path: path.to_owned(),
        problem,
    };
    match target(path).map_err(fails)? {
        Target::Through(_) => Ok(()),
        Target::Regular(file, metadata) => {
            let known = |extension: &std::ffi::OsStr| {
                extensions
                    .iter()
                    .any(|known| extension.eq_ignore_ascii_case(known))
            };
            if !path.extension().is_some_and(known) {
                let list: Vec<String> = extensions
                    .iter()
                    .map(|extension| format!(".{extension}"))
                    .collect();
                return Err(fails(OutputProblem::Extension(list.join(" or "))));
            }
            // A file that may not be written isn't replaced either. Nothing in it changes.
            let writable = metadata.map_or(Ok(()), |_| {
                OpenOptions::new().write(true).open(&file).map(drop)
            });
            let writable = writable.map_err(OutputProblem::from);
            let staged = writable.and_then(|()| aside(&file, None, &[]));
            staged.map(drop).map_err(fails)
        }
    }
}

impl<'b> StagedFile<'b> {
    /// Puts `bytes` aside for `path`.
    ///
    /// # Errors
    /// [`OutputError`] for a folder, a socket, a file in a folder that isn't there, and what the
    /// system refuses to write.
    pub fn new(path: &Path, bytes: &'b [u8]) -> Result<Self, OutputError> {
        let fails = |problem| OutputError {
            path: path.to_owned(),
            problem,
        };
        let state = match target(path).map_err(fails)? {
            Target::Through(file) => Staged::Through(file, bytes),
            Target::Regular(file, metadata) => {
                let aside = aside(&file, metadata.map(|m| m.permissions()), bytes);
                Staged::Aside(aside.map_err(fails)?, file)
            }
        };
        Ok(Self {
            path: path.to_owned(),
            state,
        })
    }

    /// Gives the bytes their place.
    ///
    /// # Errors
    /// [`OutputError`] with what the system says; then the file is what it was, unless it is a
    /// device or pipe that took some bytes.
    pub fn commit(self) -> Result<(), OutputError> {
        let written = match self.state {
            Staged::Aside(aside, file) => aside.rename(&file, false).map_err(OutputProblem::from),
            Staged::Through(file, bytes) => OpenOptions::new()
                .write(true)
                .open(file)
                .and_then(|mut file| file.write_all(bytes))
                .map_err(OutputProblem::from),
        };
        written.map_err(|problem| OutputError {
            path: self.path,
            problem,
        })
    }
}

fn target(path: &Path) -> Result<Target, OutputProblem> {
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(OutputProblem::Folder);
    }
    let mut file = path.to_owned();
    for _ in 0..MOST_LINKS {
        let metadata = match fs::symlink_metadata(&file) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                None
            }
            found => Some(found.map_err(OutputProblem::System)?),
        };
        match metadata {
            Some(link) if link.is_symlink() => {
                // What the system opens by a link in /proc, such as /dev/stdout, has no path of its
                // own.
                if let Ok(there) = fs::metadata(&file)
                    && !there.is_file()
                {
                    return if there.is_dir() {
                        Err(OutputProblem::Folder)
                    } else {
                        Ok(Target::Through(file))
                    };
                }
                let leads_to = fs::read_link(&file).map_err(OutputProblem::System)?;
                file = folder(&file).join(leads_to);
            }
            Some(there) if there.is_dir() => return Err(OutputProblem::Folder),
            Some(there) if is_socket(&there) => return Err(OutputProblem::Socket),
            Some(there) if !there.is_file() => return Ok(Target::Through(file)),
            regular => {
                let folder = folder(&file);
                return if folder.is_dir() {
                    Ok(Target::Regular(file, regular))
                } else {
                    Err(OutputProblem::NoFolder(folder.to_owned()))
                };
            }
        }
    }
    Err(OutputProblem::System(io::Error::other(
        "its links lead in a circle",
    )))
}

fn is_socket(metadata: &Metadata) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type());
    #[cfg(not(unix))]
    false
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// A hidden file beside `path`, which goes away unless it is given that name. Its own name doesn't
/// hold that one, which may be as long as a name can be.
fn aside(
    path: &Path,
    permissions: Option<Permissions>,
    bytes: &[u8],
) -> Result<Temporary, OutputProblem> {
    let aside = Temporary::place(folder(path), "dlc-output")?;
    let mut file = File::create_new(aside.path())?;
    file.write_all(bytes)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, bytes: &[u8]) -> Result<(), OutputError> {
        StagedFile::new(path, bytes)?.commit()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_whole_and_keep_their_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        write(&path, b"first").unwrap();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        #[cfg(unix)]
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o640);
        fs::set_permissions(&path, permissions).unwrap();
        let permissions = fs::metadata(&path).unwrap().permissions();
        let staged = StagedFile::new(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        drop(staged);
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"first".to_vec(), vec!["a.png".to_owned()])
        );
        write(&path, b"second").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"second".to_vec(), vec!["a.png".to_owned()])
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions(), permissions);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_what_they_lead_to_is_written() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("inner")).unwrap();
        symlink("inner/file", at("first.png")).unwrap();
        symlink(at("first.png"), at("second.png")).unwrap();
        for content in [b"new", b"old"] {
            check_output(&at("second.png"), &["png"]).unwrap();
            write(&at("second.png"), content).unwrap();
            assert_eq!(fs::read(at("inner/file")).unwrap(), content);
            assert!(
                at("first.png").is_symlink()
                    && at("second.png").is_symlink()
                    && !at("inner/file").is_symlink()
            );
        }
        symlink("circle.png", at("circle.png")).unwrap();
        symlink("nowhere/file", at("lost.png")).unwrap();
        symlink("inner", at("folder.png")).unwrap();
        for (name, expected) in [
            ("circle.png", "circle"),
            ("lost.png", "nowhere isn't a folder"),
            ("folder.png", "it is a folder"),
        ] {
            let error = check_output(&at(name), &["png"]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(write(&at(name), b"lost").is_err() && at(name).is_symlink());
        }
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe"), folder.path().join("link.png"));
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [&pipe, &link] {
            check_output(path, &["png"]).unwrap();
            let from = pipe.clone();
            let reader = std::thread::spawn(move || fs::read(from).unwrap());
            write(path, b"content").unwrap();
            assert_eq!(reader.join().unwrap(), b"content");
        }
        assert_eq!(names(folder.path()), ["link.png", "pipe"]);
        let socket = folder.path().join("socket.png");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(
            check_output(&socket, &["png"])
                .unwrap_err()
                .to_string()
                .contains("socket")
        );
    }

    #[test]
    fn what_killed_runs_left_is_removed_by_the_next_one_in_the_folder_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for file in [
            ".dlc-output.dlc-tmp-1-0",
            ".dlc-output.dlc-tmp-1-0.lock",
            ".dlc-output.dlc-tmp-mine",
            "other.png",
        ] {
            fs::write(at(file), "half").unwrap();
        }
        let path = at(&format!("{}.png", "n".repeat(250)));
        let staged = StagedFile::new(&path, b"whole").unwrap();
        // Another process, which this one is to be here, lets it be.
        check_output(&at("b.png"), &["png"]).unwrap();
        staged.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            names(folder.path()),
            [
                ".dlc-output.dlc-tmp-mine".to_owned(),
                name,
                "other.png".to_owned()
            ]
        );
    }

    #[test]
    fn what_can_not_be_written_is_refused_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("there.png")).unwrap();
        for (name, expected) in [
            ("there.png", "it is a folder"),
            ("new.png/", "it is a folder"),
            ("", "it is a folder"),
            ("missing/a.png", "missing isn't a folder"),
            ("a.jpg", "end in .png or .webp"),
            ("png", "end in .png or .webp"),
        ] {
            let error = check_output(&folder.path().join(name), &["png", "webp"])
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        check_output(&folder.path().join("a.PNG"), &["png"]).unwrap();
        assert_eq!(names(folder.path()), ["there.png"]);
    }
}
