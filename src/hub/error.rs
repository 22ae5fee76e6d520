//! Why a repository can't be had. Every message says what to do next; none says the token.

use std::path::PathBuf;

use dlc_errors::{Fault, Faulty};
use dlc_files::IoError;
use thiserror::Error;

use crate::checkpoint::CheckpointError;
use crate::http::HttpError;

/// A repository that can't be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// There is no folder of this name, and the network isn't to be used.
    #[error(
        "{name} is neither a folder here nor whole in the cache {}, and HF_HUB_OFFLINE forbids to ask the Hub; take that variable away, or download the model elsewhere (`hf download`) and name its folder", cache.display()
    )]
    Offline {
        /// The repository.
        name: String,
        /// The folder of Hugging Face's cache.
        cache: PathBuf,
    },
    /// The server can't be reached.
    #[error(
        "{name} is neither a folder here nor whole in the cache, and {endpoint} can't be asked: {reason}. Check the path, the network and the proxy (the variable HTTPS_PROXY), or download the model elsewhere (`hf download`) and name its folder"
    )]
    Unreachable {
        /// The repository.
        name: String,
        /// The server.
        endpoint: String,
        /// What went wrong.
        reason: String,
    },
    /// Nobody, or not this user, may see it; or it isn't there.
    #[error(
        "{name}: the Hub doesn't show it (401): check its name, for there is no such folder here either; if it is private or gated, set HF_TOKEN to a token that may read it{}", if *.had_token { " (the present one may not)" } else { "" }
    )]
    Unauthorized {
        /// The repository.
        name: String,
        /// Whether a token was sent.
        had_token: bool,
    },
    /// Its terms must be accepted first, or the token may not read it.
    #[error(
        "{name}: the Hub denies it ({status}): accept its terms at {page}, and set HF_TOKEN to a token of that account"
    )]
    Forbidden {
        /// The repository.
        name: String,
        /// Its page.
        page: String,
        /// 401 or 403.
        status: u16,
    },
    /// There is none of this name.
    #[error("{name}: there is no such folder here, and the Hub has no {what}; check the name")]
    NotFound {
        /// The repository.
        name: String,
        /// What there is none of.
        what: String,
    },
    /// The server wants fewer requests.
    #[error(
        "{name}: the Hub takes no more requests for now (429){wait}; wait, or set HF_TOKEN, which allows more of them"
    )]
    TooManyRequests {
        /// The repository.
        name: String,
        /// How long it asks to wait.
        wait: String,
    },
    /// The transfer broke off too often.
    #[error(
        "{name}: the download of {file} broke off after {done} of {total} bytes: {reason}. Run the command again: it goes on from there"
    )]
    BrokenOff {
        /// The repository.
        name: String,
        /// The file.
        file: String,
        /// How much is here.
        done: u64,
        /// How long it is.
        total: u64,
        /// What went wrong.
        reason: String,
    },
    /// What the server says or sends can't be used.
    #[error("{name}: {problem}; run the command again, or take another server with HF_ENDPOINT")]
    Answer {
        /// The repository.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A link in the cache that leads out of it.
    #[error("{}: leads out of the cache. Remove it, and download the model again", .0.display())]
    LeadsOut(PathBuf),
    /// There is no room for more of a file.
    #[error(
        "{}: the disk is full. Make room and run the command again, which goes on from there, or name another folder by the variable HF_HUB_CACHE", .0.display()
    )]
    Full(PathBuf),
    /// What the environment says can't be used.
    #[error("{0}")]
    Setting(String),
    /// What is in the repository can't be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The cache can't be written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl HubError {
    /// Whether the cache may serve instead: the server wasn't reached, or answers nobody.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TooManyRequests { .. }
        )
    }

    pub(super) fn unreachable(name: &str, endpoint: &str, error: &HttpError) -> Self {
        match error {
            HttpError::NoAuthorities => Self::Setting(error.to_string()),
            HttpError::Redirect(problem) => Self::Answer {
                name: name.to_owned(),
                problem: problem.clone(),
            },
            HttpError::Failed(reason) => Self::Unreachable {
                name: name.to_owned(),
                endpoint: endpoint.to_owned(),
                reason: reason.clone(),
            },
        }
    }
}

impl Faulty for HubError {
    fn fault(&self) -> Fault {
        match self {
            Self::Checkpoint(error) => error.fault(),
            Self::Io(error) => error.fault(),
            Self::Interrupted => Fault::Interrupted,
            _ => Fault::BadInput,
        }
    }
}
