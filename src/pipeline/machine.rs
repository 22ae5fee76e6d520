//! The machine that a bundle is made for, for passes that choose by what steps cost: it compiles
//! drafts and times them on the runtime that `dlc run` would take.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dlc_bundle::{Profile, Source};
use dlc_exporters::{BundleRequest, write_bundle};
use dlc_files::temporary::Temporary;
use dlc_files::{read_document, yaml};
use dlc_ir::Module;
use dlc_methods::speculation::{DraftCosts, StepCosts, TokenModel};
use dlc_passes::{Machine, PassError};
use dlc_runtime::{
    BackendSearch, Bundle, DecoderOptions, DecoderSession, SessionOptions, SharedWeights,
    calibration_prompt, start, time_passes,
};

use super::error::PipelineError;
use super::monitor::Monitor;

/// Largest file with costs.
const CAP: u64 = 1 << 20;
/// Turns of all passes, of which the fastest of each counts, and the time that they go on for at
/// least.
const REPEATS: usize = 20;
const LEAST: Duration = Duration::from_secs(4);

/// This machine.
pub struct BundleMachine<'a> {
    /// The operators of the bundle.
    pub profile: Profile,
    /// Where runtimes are looked for.
    pub backend: &'a BackendSearch,
    /// Threads to decode with.
    pub threads: usize,
    /// A folder with room for a bundle, which is gone afterwards.
    pub scratch: PathBuf,
    /// Told how far writing is.
    pub monitor: &'a dyn Monitor,
}

impl std::fmt::Debug for BundleMachine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BundleMachine")
            .field("profile", &self.profile)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

impl BundleMachine<'_> {
    fn time(&self, probes: &Module) -> Result<StepCosts, PipelineError> {
        let backend = start(self.backend)?;
        let folder = Temporary::scratch(&self.scratch, "probes");
        let folder = folder.map_err(|source| PipelineError::Scratch {
            folder: self.scratch.clone(),
            source,
        })?;
        let place = folder.path().join("bundle");
        let request = BundleRequest {
            deploy: None,
            profile: self.profile,
            source: Source::default(),
            passes: vec![],
            force: false,
            rewritten: std::collections::BTreeMap::new(),
            search: dlc_exporters::SearchDefaults::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let manifest = write_bundle(
            &Module {
                side_files: vec![],
                ..probes.clone()
            },
            &request,
            &place,
            self.monitor,
        )?;
        self.monitor.update("loading and timing graphs", 0, 0);
        let bundle = Bundle::of_written(&place, manifest);
        let options = DecoderOptions {
            session: SessionOptions {
                threads: Some(self.threads),
                ..SessionOptions::default()
            },
            ..DecoderOptions::default()
        };
        let weights = SharedWeights::open(&bundle, &backend)?;
        let open =
            |name: &str| DecoderSession::open(&backend, &bundle, name, weights.as_ref(), &options);
        let mut target = open("target")?;
        let mut drafts = probes
            .graphs
            .iter()
            .skip(1)
            .map(|graph| open(&graph.name))
            .collect::<Result<Vec<_>, _>>()?;
        let mut drafts: Vec<&mut dyn TokenModel> = drafts
            .iter_mut()
            .map(|draft| draft as &mut dyn TokenModel)
            .collect();
        let prompt = calibration_prompt(&bundle.manifest().model);
        Ok(time_passes(
            &mut target,
            &mut drafts,
            &prompt,
            REPEATS,
            LEAST,
        )?)
    }
}

impl Machine for BundleMachine<'_> {
    fn name(&self) -> Result<String, PassError> {
        let backend = start(self.backend).map_err(|e| no_costs(&e))?;
        Ok(format!(
            "{} {}, profile {}, {} threads",
            backend.kind().name(),
            backend.version(),
            self.profile.name(),
            self.threads
        ))
    }

    fn step_costs(&self, probes: &Module) -> Result<StepCosts, PassError> {
        self.time(probes).map_err(|e| match e {
            _ if self.monitor.interrupted() => PassError::Interrupted,
            e => no_costs(&e),
        })
    }

    fn read_costs(&self, file: &Path) -> Result<DraftCosts, PassError> {
        let place = file.display().to_string();
        let text =
            read_document(file, CAP).map_err(|e| costs_error(&place, e.problem.to_string()))?;
        let costs: DraftCosts = yaml::read(&text)
            .map_err(|e| costs_error(&place, format!("holds no costs: {e}; {FORM}")))?;
        if costs.is_sound() {
            Ok(costs)
        } else {
            Err(costs_error(
                &place,
                format!("holds costs that can't be: {FORM}"),
            ))
        }
    }
}

const FORM: &str = "costs are numbers of 0 and more in target steps, as `dlc bench BUNDLE --calibrate` prints them: blocks by kind and head, each with whole, int8 \
                    and int4; fixed; verify, a list of [tokens, cost] from [1, 1] on";

fn costs_error(place: &str, problem: String) -> PassError {
    PassError::Costs {
        place: place.to_owned(),
        problem,
    }
}

fn no_costs(problem: &dyn std::fmt::Display) -> PassError {
    costs_error(
        "timing steps",
        format!(
            "{problem}; if another machine is to decode, give its costs with costs=FILE.yaml, from `dlc bench --calibrate` there"
        ),
    )
}
