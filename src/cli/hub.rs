//! What a checkpoint or adapter on the command line means: a path, or a repository of the Hub.
//!
//! The one place where names become folders. A path that is there is always meant first.

use std::path::{Path, PathBuf};

use super::failure::{Context, Failure, Result};
use super::output::{note, warn};
use super::progress::Bar;
use super::room::{check_room, size};
use super::{environment, signals};
use crate::checkpoint::{Kind, snapshot_name};
use crate::hub::{Cached, HubError, HubName, Plan, Settings, cached};
use crate::pipeline::AdapterSpec;

/// A checkpoint or an adapter on this machine.
#[derive(Debug)]
pub(super) struct Found {
    /// Its folder or file.
    pub path: PathBuf,
    /// `ORG/NAME@REVISION`, if that was named.
    pub name: Option<String>,
}

/// The checkpoint that `path` means; downloads it if need be.
pub(super) fn checkpoint(path: &Path) -> Result<Found> {
    find(path, Kind::Checkpoint)
}

/// Lets adapters that are named be those on this machine; downloads them if need be.
pub(super) fn adapters(specs: &mut [AdapterSpec]) -> Result<()> {
    for spec in specs {
        let Found { path, name } = find(&spec.folder, Kind::Adapter)?;
        (spec.folder, spec.name) = (path, name);
    }
    Ok(())
}

/// The name of the folder that a checkpoint lies in, of the repository that it is, or of the GGUF
/// file without its ending.
pub(super) fn model_name(path: &Path) -> String {
    if let Some(name) = name(path) {
        return name.model().to_owned();
    }
    if path.extension().is_some_and(|ending| ending == "gguf") {
        let stem = path.file_stem().unwrap_or_default();
        return stem.to_string_lossy().into_owned();
    }
    let folder = match path.parent() {
        Some(parent) if !path.is_dir() && parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) if !path.is_dir() => parent,
        _ => path,
    };
    if let Some(name) = snapshot_name(folder).as_deref().and_then(HubName::parse) {
        return name.model().to_owned();
    }
    let full = folder.canonicalize().ok();
    full.as_deref()
        .and_then(Path::file_name)
        .map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// The repository that is meant, if no path is.
fn name(path: &Path) -> Option<HubName> {
    let is_there = path.symlink_metadata().is_ok();
    HubName::parse(path.to_str()?).filter(|_| !is_there)
}

fn find(path: &Path, kind: Kind) -> Result<Found> {
    let Some(name) = name(path) else {
        return Ok(Found {
            path: path.to_owned(),
            name: None,
        });
    };
    let settings = environment::hub().context(
        "there is no home folder with a cache; name a folder by the variable HF_HUB_CACHE",
    )?;
    Ok(Found {
        path: fetch(&settings, &name, kind)?,
        name: Some(name.to_string()),
    })
}

fn fetch(settings: &Settings, name: &HubName, kind: Kind) -> Result<PathBuf> {
    let here = cached(settings, name, kind)?;
    match here {
        Cached::Whole(folder) => return Ok(folder),
        Cached::Usable(folder) if settings.offline => return Ok(folder),
        Cached::Nothing if settings.offline => {
            return Err(Failure::from(HubError::Offline {
                name: name.to_string(),
                cache: settings.cache.clone(),
            }));
        }
        _ => {}
    }
    let bar = Bar::new();
    let plan = match (Plan::new(settings, name, kind, &bar), here) {
        (Err(error), Cached::Usable(folder)) if error.is_passing() => {
            warn(&format!("{error}. What the cache has of it is taken"))?;
            return Ok(folder);
        }
        (plan, _) => plan?,
    };
    if plan.files() > 0 {
        check_room(&settings.cache, plan.bytes(), "the variable HF_HUB_CACHE")?;
        note(&format!(
            "downloading {name} to {}: {} files, {}",
            settings.cache.display(),
            plan.files(),
            size(plan.bytes())
        ))?;
        signals::keep(&settings.cache);
    }
    let folder = plan.fetch(&bar)?;
    bar.finish();
    Ok(folder)
}
