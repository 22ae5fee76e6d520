//! Whether activations fit f16: what passes its largest number is infinite there, and answers
//! become NaN.
//!
//! Backends on a CPU compute f16 in f32 and show nothing of it, so the evaluator's own numbers
//! decide.

use dlc_bundle::Profile;
use dlc_eval::{Peaks, run_noting_peaks};
use dlc_exporters::onnx::keeps_scores_single;
use dlc_ir::cost::macs_per_image;
use dlc_ir::{DType, Graph, Module, NodeId, Op, Task};
use dlc_passes::Calibration;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::error::PipelineError;
use super::feeds::{SEED, own_size, random_feeds, text_feeds};

/// Tokens of the text that a compilation looks at.
const TOKENS: usize = 32;
/// Multiply-adds of an image from which on a compilation leaves the check to `dlc verify`: some
/// seconds' worth.
const MOST_MACS: u64 = 50_000_000_000;

/// The largest number of f16.
pub(super) fn limit() -> f32 {
    half::f16::MAX.to_f32()
}

/// The largest number that a graph computes in f16, its place, and how many nodes pass the limit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reach {
    pub magnitude: f32,
    pub place: String,
    pub nodes: usize,
}

impl Reach {
    /// None for a graph without values in f16. Scores count where they are values of the profile's
    /// operators, and aren't capped: what is infinite before is the cap afterwards.
    pub fn of(graph: &Graph, peaks: &Peaks, profile: Profile) -> Option<Self> {
        let in_f16 = |id: &NodeId| {
            graph
                .node(*id)
                .outputs
                .iter()
                .any(|v| graph.value(*v).ty.dtype == DType::F16)
        };
        let in_single = keeps_scores_single(graph, profile);
        let is_capped = |id: NodeId| matches!(&graph.node(id).op, Op::Attention(attention) if attention.softcap.is_some());
        let scores = peaks
            .scores
            .iter()
            .filter(|(id, _)| !in_single && !is_capped(**id));
        let all = peaks
            .outputs
            .iter()
            .map(|(id, peak)| (*id, *peak, ""))
            .chain(scores.map(|(id, peak)| (*id, *peak, ", scores")));
        let all: Vec<_> = all.filter(|(id, ..)| in_f16(id)).collect();
        let (id, magnitude, part) = *all.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let names = graph.value_names();
        let node = graph.node(id);
        let value = node.outputs.first().map_or("", |value| &names[*value]);
        let nodes = all.iter().filter(|(_, peak, _)| *peak > limit()).count();
        Some(Self {
            magnitude,
            place: format!("{value} ({}{part})", node.op.name()),
            nodes,
        })
    }

    pub fn overflows(&self) -> bool {
        self.magnitude > limit()
    }
}

/// What a user should know of a target in f16: that its activations pass the limit, or that nobody
/// looked.
pub(super) fn warning(
    module: &Module,
    profile: Profile,
    calibration: &dyn Calibration,
) -> Option<String> {
    let graph = module
        .graph("target")
        .filter(|_| module.model.dtype == DType::F16)?;
    if macs_per_image(graph, &module.weights, module.model.diffusion.as_ref())
        .is_some_and(|macs| macs > MOST_MACS)
    {
        return Some("whether activations fit f16 wasn't checked, since the model is large: `dlc verify` does it".to_owned());
    }
    let reach = match reach(module, graph, profile, calibration) {
        Ok(reach) => reach?,
        Err(error) => {
            return Some(format!(
                "whether activations fit f16 couldn't be checked: {error}"
            ));
        }
    };
    reach.overflows().then(|| {
        let Reach { magnitude, place, nodes } = &reach;
        let others = if *nodes > 1 { format!(" and pass the limit in {} nodes more", nodes - 1) } else { String::new() };
        format!(
            "activations reach {magnitude:.1e} at {place}{others}; the largest number of f16 is {}, so answers will be NaN or wrong where f16 is \
             computed in f16, as on GPUs: use --dtype bf16 or f32",
            limit()
        )
    })
}

fn reach(
    module: &Module,
    graph: &Graph,
    profile: Profile,
    calibration: &dyn Calibration,
) -> Result<Option<Reach>, PipelineError> {
    let rng = &mut ChaCha8Rng::seed_from_u64(SEED);
    let feeds = if module.model.task == Task::ImageGeneration {
        random_feeds(graph, module, own_size(module), rng)?
    } else {
        let longest = TOKENS.min(module.model.context_length).max(1);
        text_feeds(graph, &text(module, longest, calibration, rng))?
    };
    let mut peaks = Peaks::default();
    run_noting_peaks(graph, &module.weights, &feeds, &mut peaks)?;
    Ok(Reach::of(graph, &peaks, profile))
}

/// The beginning of a text, where single activations are largest in real models; tokens at random
/// if there is no tokenizer for it.
fn text(
    module: &Module,
    length: usize,
    calibration: &dyn Calibration,
    rng: &mut ChaCha8Rng,
) -> Vec<i64> {
    let vocab = module.model.vocab_size as i64;
    let samples = calibration.samples(None, 1, length).unwrap_or_default();
    let tokens: Vec<i64> = samples
        .into_iter()
        .flatten()
        .map(i64::from)
        .filter(|token| *token < vocab)
        .collect();
    if tokens.is_empty() {
        (0..length)
            .map(|_| rng.random_range(0..vocab.max(1)))
            .collect()
    } else {
        tokens
    }
}
