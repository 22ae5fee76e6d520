//! What a pass is, and what it runs in.

use std::fmt;

use dlc_ir::Module;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::PassError;
use crate::needs::Needs;
use crate::report::PassReport;
use crate::sums::{Shard, ShardScores};

/// A function from module to module. Pure: the same module, options and calibration data give the
/// same result.
pub trait Pass: fmt::Debug {
    /// Name in commands, files and reports: kebab-case.
    fn name(&self) -> &'static str;

    /// The options in force, defaults filled in.
    fn options(&self) -> serde_json::Value;

    /// What running it on `module` needs, about.
    fn needs(&self, module: &Module) -> Needs {
        let _ = module;
        Needs::default()
    }

    /// Refuses what [`run`](Self::run) would refuse by the options and the shape of `module` alone,
    /// and adds graphs that stand in for those that it would add. Looks at no number.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let _ = module;
        Ok(())
    }

    /// Whether [`run`](Self::run) scores by Fisher information, and takes it from
    /// [`Sources::scores`](crate::Sources::scores) where that is given.
    fn takes_scores(&self) -> bool {
        false
    }

    /// Scores a shard of the samples that [`run`](Self::run) would score by Fisher information.
    ///
    /// # Errors
    /// Those of [`run`](Self::run); [`PassError::Calibration`] for more shards than samples, and
    /// [`PassError::Unsupported`] for a pass that doesn't [take scores](Self::takes_scores).
    fn score_shard(
        &self,
        module: &Module,
        shard: Shard,
        cx: &PassContext<'_>,
    ) -> Result<ShardScores, PassError> {
        let _ = (module, shard, cx);
        Err(PassError::Unsupported {
            pass: self.name(),
            problem: "it scores nothing by Fisher information".into(),
        })
    }

    /// Changes the module, and reports what was done.
    ///
    /// # Errors
    /// [`PassError`]; the module may then be half-changed and must not be used.
    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError>;
}

/// What passes run in.
pub struct PassContext<'a> {
    /// Told how far a pass is.
    pub progress: &'a dyn Progress,
    /// Scores of earlier runs, if they may be used.
    pub cache: Option<&'a dyn ScoreCache>,
    /// Identifies the module as it is before the pass: hashes of the checkpoint and of what passes
    /// did to it so far.
    pub module_key: String,
    /// The threads to compute with.
    pub pool: &'a rayon::ThreadPool,
}

impl PassContext<'_> {
    /// What was stored under `key`, which may be anything, if it is `sound`.
    pub(crate) fn stored<T: DeserializeOwned>(
        &self,
        key: &str,
        sound: impl Fn(&T) -> bool,
    ) -> Option<T> {
        self.cache?.read(key).filter(sound)
    }

    /// Stores a value under `key`, if there is a cache.
    pub(crate) fn store(&self, key: &str, value: &impl Serialize) {
        if let Some(cache) = self.cache {
            cache.write(key, value);
        }
    }

    /// What is stored under `key` and `sound`; or what `compute` finds, which is stored.
    pub(crate) fn cached<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        sound: impl Fn(&T) -> bool,
        compute: impl FnOnce() -> Result<T, PassError>,
    ) -> Result<T, PassError> {
        if let Some(found) = self.stored(key, sound) {
            return Ok(found);
        }
        let found = compute()?;
        self.store(key, &found);
        Ok(found)
    }
}

impl fmt::Debug for PassContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassContext")
            .field("module_key", &self.module_key)
            .finish_non_exhaustive()
    }
}

/// Told how far a long computation is.
pub trait Progress: Sync {
    /// The phase called `name` begins, a pass for instance, and the one before ends.
    fn phase(&self, name: &str) {
        let _ = name;
    }

    /// What the work will need, about; said before it begins.
    fn needs(&self, needs: Needs) {
        let _ = needs;
    }

    /// `done` of `total` steps of `what` are done.
    fn update(&self, what: &str, done: usize, total: usize);

    /// Whether the user asked to stop; passes return [`PassError::Interrupted`] soon after.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Shows nothing and never stops.
impl Progress for () {
    fn update(&self, _what: &str, _done: usize, _total: usize) {}
}

/// Keeps scores from one run to the next, and what stopped runs have found so far.
pub trait ScoreCache: Sync {
    /// What was stored under `key`.
    fn get(&self, key: &str) -> Option<String>;
    /// Stores `text` under `key`; failing to is no error.
    fn put(&self, key: &str, text: &str);
    /// What was stored under `key`, if it needn't be text.
    fn get_bytes(&self, key: &str) -> Option<Vec<u8>>;
    /// Stores `bytes` under `key`; failing to is no error.
    fn put_bytes(&self, key: &str, bytes: &[u8]);
    /// Forgets what is stored under `key`.
    fn remove(&self, key: &str);
}

impl dyn ScoreCache + '_ {
    /// The value that was stored under `key`, which may be anything.
    pub(crate) fn read<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        serde_json::from_str(&self.get(key)?).ok()
    }

    /// Stores a value under `key`; failing to is no error.
    pub(crate) fn write(&self, key: &str, value: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(value) {
            self.put(key, &text);
        }
    }
}
