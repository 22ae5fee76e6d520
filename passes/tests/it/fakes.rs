//! What passes get from outside, made up; and running passes with it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use dlc_ir::Module;
use dlc_passes::{
    Calibration, Machine, PassContext, PassError, PassReport, PassRun, Progress, Samplers,
    ScoreCache, ScoreTable, Sources, registry, run_passes,
};

use super::model::samples;

/// Tokens that the made-up tokenizer calls special.
pub const BASIC_TOKENS: [u32; 2] = [20, 21];

/// Gives samples, and keeps what was asked for.
pub struct Given {
    pub samples: Vec<Vec<u32>>,
    pub asked: Cell<(usize, usize)>,
}

impl Given {
    pub fn new(samples: Vec<Vec<u32>>) -> Self {
        Self {
            samples,
            asked: Cell::new((0, 0)),
        }
    }
}

impl Calibration for Given {
    fn samples(
        &self,
        _file: Option<&Path>,
        samples: usize,
        length: usize,
    ) -> Result<Vec<Vec<u32>>, PassError> {
        self.asked.set((samples, length));
        Ok(self
            .samples
            .iter()
            .take(samples)
            .map(|s| s.iter().copied().take(length).collect())
            .collect())
    }

    fn basic_tokens(&self) -> Result<Vec<u32>, PassError> {
        Ok(BASIC_TOKENS.to_vec())
    }
}

/// Keeps what it was told, and asks to stop once it was told so often.
#[derive(Default)]
pub struct Watcher {
    pub updates: Mutex<Vec<(String, usize, usize)>>,
    pub patience: Option<usize>,
}

impl Progress for Watcher {
    fn update(&self, what: &str, done: usize, total: usize) {
        self.updates
            .lock()
            .unwrap()
            .push((what.to_owned(), done, total));
    }

    fn interrupted(&self) -> bool {
        self.patience
            .is_some_and(|patience| self.updates.lock().unwrap().len() >= patience)
    }
}

/// A cache in memory.
#[derive(Default)]
pub struct Memory(pub Mutex<BTreeMap<String, Vec<u8>>>);

impl ScoreCache for Memory {
    fn get(&self, key: &str) -> Option<String> {
        self.get_bytes(key)
            .and_then(|bytes| String::from_utf8(bytes).ok())
    }

    fn put(&self, key: &str, text: &str) {
        self.put_bytes(key, text.as_bytes());
    }

    fn get_bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(key).cloned()
    }

    fn put_bytes(&self, key: &str, bytes: &[u8]) {
        self.0
            .lock()
            .unwrap()
            .insert(key.to_owned(), bytes.to_owned());
    }

    fn remove(&self, key: &str) {
        self.0.lock().unwrap().remove(key);
    }
}

/// Everything from outside.
pub struct Outside<'a> {
    pub calibration: &'a Given,
    pub machine: Option<&'a dyn Machine>,
    pub samplers: Option<&'a dyn Samplers>,
    pub progress: &'a dyn Progress,
    pub cache: Option<&'a Memory>,
    pub key: &'a str,
    pub threads: usize,
}

/// Runs a pass with options as in YAML's flow form, `drop: 1, score: kl`, and the clean-up passes
/// after it.
pub fn run_with(
    pass: &str,
    options: &str,
    module: &mut Module,
    outside: &Outside<'_>,
) -> Result<Vec<PassRun>, PassError> {
    let sources = Sources {
        calibration: outside.calibration,
        machine: outside.machine,
        samplers: outside.samplers,
        multiplies_f16_codes: true,
        ..Sources::NONE
    };
    let passes = registry::build(
        pass,
        &serde_yaml::from_str(&format!("{{{options}}}")).unwrap(),
        sources,
    )?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(outside.threads)
        .build()
        .unwrap();
    let mut cx = PassContext {
        progress: outside.progress,
        cache: outside.cache.map(|c| c as &dyn ScoreCache),
        module_key: outside.key.to_owned(),
        pool: &pool,
    };
    run_passes(module, &passes, &mut cx)
}

/// Runs fit-prune on these samples, without a cache.
pub fn fit_prune(
    options: &str,
    module: &mut Module,
    samples: Vec<Vec<u32>>,
) -> Result<Vec<PassRun>, PassError> {
    let calibration = Given::new(samples);
    run_with(
        "fit-prune",
        options,
        module,
        &Outside {
            calibration: &calibration,
            machine: None,
            samplers: None,
            progress: &(),
            cache: None,
            key: "",
            threads: 1,
        },
    )
}

/// Runs passes one after the other, each a name and its options, on the usual samples.
pub fn run_all(passes: &[(&str, &str)], module: &mut Module) -> Result<Vec<PassRun>, PassError> {
    let calibration = Given::new(samples());
    let outside = Outside {
        calibration: &calibration,
        machine: None,
        samplers: None,
        progress: &(),
        cache: None,
        key: "",
        threads: 2,
    };
    let mut runs = Vec::new();
    for (pass, options) in passes {
        runs.extend(run_with(pass, options, module, &outside)?);
    }
    Ok(runs)
}

/// The score table of fit-prune with these options on the usual samples.
pub fn table(options: &str, module: &Module) -> ScoreTable {
    let runs = fit_prune(options, &mut module.clone(), samples()).unwrap();
    runs[0].report.scores.clone().unwrap()
}

/// The value of a fact of the first pass.
pub fn fact<'r>(runs: &'r [PassRun], name: &str) -> Option<&'r str> {
    runs[0]
        .report
        .facts
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, value)| value.as_str())
}

/// All facts of a report, and what changed in short.
pub fn report_text(report: &PassReport) -> String {
    let facts = report.facts.iter();
    let facts: Vec<String> = facts
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    let diff = report.diff.as_ref().unwrap().summary();
    format!("{}\n\n{diff}", facts.join("\n"))
}
