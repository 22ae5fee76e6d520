//! Downloads one file into the cache: goes on where an earlier try ended, and gives it its name once
//! its hash is the one that the server named.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dlc_files::IoError;
use dlc_passes::Progress;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::Cache;
use super::client::{HubClient, RemoteFile};
use super::error::HubError;
use super::{HubName, pause};
use crate::checkpoint::shown;
use crate::http::Answer;

/// How often a transfer may break off without the next one bringing anything.
const MOST_BREAKS: u32 = 5;
const MEGABYTE: u64 = 1_000_000;

/// How far all downloads are together.
pub(super) struct Meter<'a> {
    pub progress: &'a dyn Progress,
    pub done: AtomicU64,
    pub total: u64,
}

impl Meter<'_> {
    /// `bytes` more are here, or fewer.
    fn advance(&self, bytes: i64) -> Result<(), HubError> {
        let before = self
            .done
            .fetch_add(bytes.cast_unsigned(), Ordering::Relaxed);
        let done = before.wrapping_add_signed(bytes);
        let megabytes = |bytes: u64| usize::try_from(bytes / MEGABYTE).unwrap_or_default();
        self.progress
            .update("MB", megabytes(done), megabytes(self.total));
        if self.progress.interrupted() {
            return Err(HubError::Interrupted);
        }
        Ok(())
    }
}

/// What the content's hash is compared with.
enum Hash {
    Sha256(Sha256),
    /// Of a git blob.
    Sha1(Sha1),
}

impl Hash {
    fn of(file: &RemoteFile) -> Self {
        if file.etag.len() == 64 {
            return Self::Sha256(Sha256::new());
        }
        let mut hash = Sha1::new();
        hash.update(format!("blob {}\0", file.bytes));
        Self::Sha1(hash)
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha1(hash) => hash.update(bytes),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Sha256(hash) => format!("{:x}", hash.finalize()),
            Self::Sha1(hash) => format!("{:x}", hash.finalize()),
        }
    }
}

/// Downloads the blob of `file`, unless it is in the cache by then.
pub(super) fn fetch(
    client: &HubClient<'_>,
    cache: &Cache,
    (name, commit): (&HubName, &str),
    file: &RemoteFile,
    meter: &Meter<'_>,
) -> Result<(), HubError> {
    let _lock = cache.lock(&file.etag, meter.progress)?;
    let blob = cache.blob(&file.etag);
    if blob.is_file() {
        return meter.advance(file.bytes.cast_signed());
    }
    meter.progress.phase(&format!("downloading {name}"));
    let path = cache.incomplete(&file.etag);
    let mut resumed = true;
    loop {
        let mut part = Part::open(&path, file)?;
        resumed &= part.done > 0;
        meter.advance(part.done.cast_signed())?;
        part.complete(client, (name, commit), meter)?;
        let hash = part.hash.text();
        if hash == file.etag {
            break;
        }
        fs::remove_file(&path).map_err(IoError::of("remove", &path))?;
        meter.advance(-file.bytes.cast_signed())?;
        // What an earlier run left may be what was wrong.
        if !std::mem::take(&mut resumed) {
            return Err(client.strange(&format!(
                "{} isn't what the server says: its hash is {hash} instead of {}; nothing of it is kept",
                shown(&file.name),
                file.etag
            )));
        }
    }
    Ok(fs::rename(&path, &blob).map_err(IoError::of("create", &blob))?)
}

/// A file of which some is here.
struct Part<'a> {
    file: &'a RemoteFile,
    path: &'a Path,
    output: File,
    hash: Hash,
    done: u64,
}

/// Why no more of a file comes.
enum End {
    /// All of it is here.
    Whole,
    /// The transfer broke off.
    Broken(String),
}

impl<'a> Part<'a> {
    /// What is here of the file.
    fn open(path: &'a Path, file: &'a RemoteFile) -> Result<Self, HubError> {
        let mut options = File::options();
        let options = options.create(true).truncate(false).read(true).write(true);
        let output = options.open(path).map_err(IoError::of("create", path))?;
        let mut part = Self {
            file,
            path,
            output,
            hash: Hash::of(file),
            done: 0,
        };
        let mut buffer = vec![0; 1 << 16];
        loop {
            match part
                .output
                .read(&mut buffer)
                .map_err(IoError::of("read", path))?
            {
                0 => return Ok(part),
                count => {
                    part.hash.update(&buffer[..count]);
                    part.done += count as u64;
                }
            }
            if part.done > file.bytes {
                part.restart()?;
                return Ok(part);
            }
        }
    }

    fn restart(&mut self) -> Result<(), HubError> {
        (self.hash, self.done) = (Hash::of(self.file), 0);
        let emptied = self.output.set_len(0);
        let emptied = emptied.and_then(|()| self.output.seek(SeekFrom::Start(0)));
        emptied.map_err(IoError::of("write", self.path))?;
        Ok(())
    }

    /// Downloads what isn't here yet.
    fn complete(
        &mut self,
        client: &HubClient<'_>,
        (name, commit): (&HubName, &str),
        meter: &Meter<'_>,
    ) -> Result<(), HubError> {
        let mut breaks = 0;
        while self.done < self.file.bytes {
            let before = self.done;
            let end = match client.get(commit, &self.file.name, self.done) {
                Ok(answer) => self.receive(client, answer, meter)?,
                Err(HubError::Unreachable { reason, .. }) => End::Broken(reason),
                Err(error) => return Err(error),
            };
            let End::Broken(reason) = end else { break };
            breaks = if self.done > before { 0 } else { breaks + 1 };
            if breaks == MOST_BREAKS {
                return Err(HubError::BrokenOff {
                    name: name.to_string(),
                    file: shown(&self.file.name),
                    done: self.done,
                    total: self.file.bytes,
                    reason,
                });
            }
            pause(Duration::from_millis(100 << breaks), meter.progress)?;
        }
        self.output
            .flush()
            .map_err(IoError::of("write", self.path))?;
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), HubError> {
        match self.output.write_all(piece) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                Err(HubError::Full(self.path.to_owned()))
            }
            written => Ok(written.map_err(IoError::of("write", self.path))?),
        }
    }

    /// Takes what one answer brings.
    fn receive(
        &mut self,
        client: &HubClient<'_>,
        answer: Answer,
        meter: &Meter<'_>,
    ) -> Result<End, HubError> {
        let starts = format!("bytes {}-", self.done);
        let range = answer.header("Content-Range").unwrap_or_default();
        let goes_on = answer.status() == 206 && range.starts_with(&starts);
        if self.done > 0 && !goes_on {
            // The server knows no ranges: it begins again.
            meter.advance(-self.done.cast_signed())?;
            self.restart()?;
            if answer.status() != 200 {
                return Ok(End::Broken("the server sends another part".into()));
            }
        }
        let mut body = answer.reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let piece = match body.read(&mut buffer) {
                Ok(0) if self.done == self.file.bytes => return Ok(End::Whole),
                Ok(0) => return Ok(End::Broken("the server sent no more".into())),
                Ok(count) => &buffer[..count],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(End::Broken(error.to_string())),
            };
            if self.done + piece.len() as u64 > self.file.bytes {
                return Err(client.strange(&format!(
                    "{} is longer than the {} bytes that the server names",
                    shown(&self.file.name),
                    self.file.bytes
                )));
            }
            self.write(piece)?;
            self.hash.update(piece);
            self.done += piece.len() as u64;
            meter.advance(piece.len() as i64)?;
        }
    }
}
