//! `dlc verify`: every graph of a bundle, run by the backend, against the evaluator; and the bundle
//! against its checkpoint.
//!
//! A graph of a model of text sees whole sequences, a batch with padding on the left, two tokens
//! after a cached prefix, and one after a batch padded on either side; one of a diffusion model a
//! batch of random inputs, and a smaller image that is no square where it takes such.

mod tolerance;

use std::collections::BTreeMap;

use dlc_bundle::GraphRecord;
use dlc_eval::{Array, Peaks, run_noting_peaks};
use dlc_ir::cost::quantized_matrices;
use dlc_ir::diff::diff;
use dlc_ir::{DType, Graph, Module, Task, WeightTable, parse_graph_over};
use dlc_passes::{fold_constants, keep_codes};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use self::tolerance::Tolerance;
use dlc_runtime::{Backend, Bundle, HostTensor, Session, SessionOptions, SharedWeights};

use super::error::PipelineError;
use super::feeds::{Feeds, SEED, host_inputs, own_size, random_feeds, takes_any_size};
use super::range::{self, Reach};

/// Prefix length of the cached case, and length of the others.
const PREFIX: usize = 7;
const LENGTH: usize = 13;

/// A kind of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// A whole sequence on empty caches.
    Sequence,
    /// Two sequences, the first with padding on the left.
    LeftPadded,
    /// Two tokens after a cached prefix.
    Cached,
    /// A token after each of two cached prefixes, padded on the left and on the right.
    CachedPadded,
    /// Numbers in the ranges that the graph takes.
    Random,
    /// The same for images of another height and width, if the graph takes such.
    OtherSize,
    /// Not an input of its own: the largest activation of all of them, by the evaluator, against
    /// the largest number of f16.
    Range,
}

impl Case {
    /// Every case of a model of text.
    pub const ALL: [Self; 4] = [
        Self::Sequence,
        Self::LeftPadded,
        Self::Cached,
        Self::CachedPadded,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sequence => "sequence",
            Self::LeftPadded => "left-padded batch",
            Self::Cached => "2 tokens after 7 cached",
            Self::CachedPadded => "1 token after padding",
            Self::Random => "random inputs",
            Self::OtherSize => "another height and width",
            Self::Range => "largest activation",
        }
    }

    fn reads_caches(self) -> bool {
        matches!(self, Self::Cached | Self::CachedPadded)
    }
}

/// The outcome of one case on one graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The graph's name.
    pub graph: String,
    /// The input.
    pub case: Case,
    /// What was found.
    pub outcome: Deviation,
}

/// The largest error, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// Largest absolute difference.
    pub error: f32,
    /// What was allowed.
    pub allowed: f32,
    /// Output and index of the largest difference.
    pub place: String,
}

impl Check {
    /// Whether the error is one that is allowed.
    pub fn passed(&self) -> bool {
        self.outcome.error <= self.outcome.allowed
    }
}

/// Runs every case on every graph, judged by `tolerance`, or without one by what
/// [`Tolerance::of_graph`] says.
///
/// # Errors
/// [`PipelineError`] if a graph can't be loaded or run at all.
pub fn verify_bundle(
    bundle: &Bundle,
    module: &Module,
    backend: &Backend,
    options: &SessionOptions,
    tolerance: Option<Tolerance>,
) -> Result<Vec<Check>, PipelineError> {
    let weights = SharedWeights::open(bundle, backend)?;
    let mut checks = Vec::new();
    for (record, graph) in bundle.manifest().graphs.iter().zip(&module.graphs) {
        let mut session = Session::load(backend, bundle, &record.name, weights.as_ref(), options)?;
        let tolerance = tolerance.unwrap_or_else(|| Tolerance::of_graph(graph, bundle.manifest()));
        let mut oracle = Oracle {
            module,
            graph,
            peaks: Peaks::default(),
        };
        let mut push = |case, outcome| {
            checks.push(Check {
                graph: record.name.clone(),
                case,
                outcome,
            });
        };
        if module.model.task == Task::ImageGeneration {
            let other = other_size(module).filter(|_| takes_any_size(graph));
            let sizes = [Some((Case::Random, own_size(module))), other];
            for (case, size) in sizes.into_iter().flatten() {
                let rng = &mut ChaCha8Rng::seed_from_u64(SEED);
                let mut feeds = random_feeds(graph, module, size, rng)?;
                show_all(record, &mut feeds)?;
                push(
                    case,
                    compare(&mut oracle, record, &mut session, &feeds, tolerance)?,
                );
            }
        } else {
            // A graph without caches reads whole sequences only.
            for case in Case::ALL
                .into_iter()
                .filter(|case| !case.reads_caches() || !record.caches.is_empty())
            {
                push(
                    case,
                    run_case(&mut oracle, record, &mut session, case, tolerance)?,
                );
            }
        }
        if let Some(Reach {
            magnitude, place, ..
        }) = Reach::of(graph, &oracle.peaks, bundle.manifest().profile)
        {
            push(
                Case::Range,
                Deviation {
                    error: magnitude,
                    allowed: range::limit(),
                    place,
                },
            );
        }
    }
    Ok(checks)
}

/// Lets the evaluator see every token where the file takes no mask, as one of a whole text does.
fn show_all(
    record: &GraphRecord,
    feeds: &mut BTreeMap<String, Array>,
) -> Result<(), PipelineError> {
    const MASK: &str = "attention_mask";
    let takes_mask = record.inputs.iter().any(|port| port.name == MASK);
    if let Some(mask) = feeds.get_mut(MASK).filter(|_| !takes_mask) {
        let shape = mask.shape().to_vec();
        let tokens = shape.iter().product();
        *mask = Array::i64(shape, vec![1; tokens])?;
    }
    Ok(())
}

/// A smaller height and width than the model's own, odd ones if it takes such.
fn other_size(module: &Module) -> Option<(Case, [usize; 2])> {
    let model = module.model.diffusion.as_ref()?;
    let step = model.size_step?;
    let half = |side: usize| side / step / 2;
    let size = [half(model.height) | 1, half(model.width) + 2];
    Some((Case::OtherSize, size.map(|steps| steps * step)))
}

/// The evaluator on one graph, and how large its numbers have been.
struct Oracle<'m> {
    module: &'m Module,
    graph: &'m Graph,
    peaks: Peaks,
}

impl Oracle<'_> {
    fn run(
        &mut self,
        feeds: &BTreeMap<String, Array>,
    ) -> Result<BTreeMap<String, Array>, PipelineError> {
        let weights = &self.module.weights;
        // Noting peaks costs every score of attention once more.
        if self.module.model.dtype == DType::F16 {
            Ok(run_noting_peaks(
                self.graph,
                weights,
                feeds,
                &mut self.peaks,
            )?)
        } else {
            Ok(dlc_eval::run(self.graph, weights, feeds)?)
        }
    }
}

fn run_case(
    oracle: &mut Oracle<'_>,
    record: &GraphRecord,
    session: &mut Session,
    case: Case,
    tolerance: Tolerance,
) -> Result<Deviation, PipelineError> {
    let graph = oracle.graph;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let vocab = oracle.module.model.vocab_size as i64;
    let batch = if matches!(case, Case::LeftPadded | Case::CachedPadded) {
        2
    } else {
        1
    };
    let mut ids = |length: usize| -> Vec<i64> {
        (0..batch * length)
            .map(|_| rng.random_range(0..vocab))
            .collect()
    };
    let length = if case.reads_caches() { PREFIX } else { LENGTH };
    let mut prefix = Feeds::prefix(graph, batch, length, &ids(length));
    match case {
        Case::Sequence | Case::Cached | Case::Random | Case::OtherSize | Case::Range => {}
        Case::LeftPadded => prefix.pad(0, 0..4),
        Case::CachedPadded => {
            prefix.pad(0, 0..4);
            prefix.pad(1, PREFIX - 3..PREFIX);
        }
    }
    let expected = oracle.run(&prefix.arrays(graph)?)?;
    let actual = prefix.run(session, record)?;
    if !case.reads_caches() {
        return Ok(deviation(&expected, &actual, Some(&prefix), tolerance));
    }
    // Each goes on with the caches that it made itself: how they stand in the file is the profile's
    // own affair.
    let next = ids(if case == Case::Cached { 2 } else { 1 });
    let feeds = prefix.continued(graph, &expected, &next);
    let expected = oracle.run(&feeds.arrays(graph)?)?;
    let actual = feeds.with_caches(record, &actual).run(session, record)?;
    Ok(deviation(&expected, &actual, Some(&feeds), tolerance))
}

/// The evaluator against the backend on `arrays`, without padding.
fn compare(
    oracle: &mut Oracle<'_>,
    record: &GraphRecord,
    session: &mut Session,
    arrays: &BTreeMap<String, Array>,
    tolerance: Tolerance,
) -> Result<Deviation, PipelineError> {
    let expected = oracle.run(arrays)?;
    let actual = session.run_host(&host_inputs(record, arrays))?;
    Ok(deviation(&expected, &actual, None, tolerance))
}

/// The difference that is largest against what is allowed: of answers, where they are for one token
/// only at real ones; and of caches where there is no padding.
fn deviation(
    expected: &BTreeMap<String, Array>,
    actual: &[(String, HostTensor)],
    feeds: Option<&Feeds>,
    tolerance: Tolerance,
) -> Deviation {
    // Where nothing is allowed, any difference is beyond all measure, and none is 0.
    let share = |error: f32, allowed: f32| error / allowed.max(f32::MIN_POSITIVE);
    let mut worst: Option<Deviation> = None;
    let padded = feeds.is_some_and(|feeds| feeds.mask.contains(&0));
    for (name, array) in expected {
        let (Some(wanted), Some((_, tensor))) =
            (array.as_f32(), actual.iter().find(|(n, _)| n == name))
        else {
            return Deviation {
                error: f32::INFINITY,
                allowed: 0.0,
                place: format!("{name} is missing"),
            };
        };
        if padded && name.starts_with("present.") {
            continue;
        }
        let found = tensor.to_f32().unwrap_or_default();
        if found.len() != wanted.len() {
            return Deviation {
                error: f32::INFINITY,
                allowed: 0.0,
                place: format!(
                    "{name} has shape {:?}, not {:?}",
                    tensor.shape,
                    array.shape()
                ),
            };
        }
        let by_token = array.shape().len() == 3;
        let width = array.shape().last().copied().unwrap_or(1).max(1);
        let peak = wanted
            .iter()
            .filter(|x| x.is_finite())
            .fold(0f32, |m, x| m.max(x.abs()));
        let allowed = tolerance.absolute + tolerance.relative * peak;
        for (i, (a, b)) in wanted
            .iter()
            .zip(&found)
            .enumerate()
            .filter(|(i, _)| !by_token || feeds.is_none_or(|feeds| feeds.is_token(i / width)))
        {
            let error = match (a.is_finite(), b.is_finite()) {
                (true, true) => (a - b).abs(),
                // Weights that are NaN or infinite were asked for: the backend must say so too.
                (false, false) => 0.0,
                _ => f32::INFINITY,
            };
            if worst
                .as_ref()
                .is_none_or(|w| share(error, allowed) > share(w.error, w.allowed))
            {
                worst = Some(Deviation {
                    error,
                    allowed,
                    place: format!("{name}[{i}]"),
                });
            }
        }
    }
    worst.unwrap_or_else(|| Deviation {
        error: f32::INFINITY,
        allowed: 0.0,
        place: "the graph has no outputs".into(),
    })
}

/// What differs between a bundle's module and a freshly imported checkpoint: lines to show, none if
/// the target is the same.
///
/// # Errors
/// [`PipelineError::Ir`] if a weight can't be read.
pub fn compare_with_source(bundle: &Module, source: &Module) -> Result<Vec<String>, PipelineError> {
    let source = &as_written(bundle, source)?;
    let mut differences = Vec::new();
    let (Some(a), Some(b)) = (source.graph("target"), bundle.graph("target")) else {
        return Ok(vec!["there is no graph `target`".into()]);
    };
    let graphs = diff((a, &source.weights), (b, &bundle.weights));
    if !graphs.is_empty() {
        differences.push(graphs.to_string());
    }
    for (_, weight) in source.weights.entries() {
        let Some(id) = bundle.weights.find(&weight.name) else {
            differences.push(format!("weight {} is not in the bundle", weight.name));
            continue;
        };
        if let Some(i) = first_difference(weight, &bundle.weights[id])? {
            differences.push(format!(
                "weight {} differs from element {i} on",
                weight.name
            ));
        }
    }
    Ok(differences)
}

/// The source with constants folded and the codes that the bundle's target keeps, if it keeps any,
/// and with its weights in the bundle's order: these come after all that was imported.
fn as_written(bundle: &Module, source: &Module) -> Result<Module, PipelineError> {
    let mut source = source.clone();
    let keeps = bundle
        .graph("target")
        .is_some_and(|target| quantized_matrices(target, &bundle.weights).next().is_some());
    if fold_constants(&mut source)? == 0 && !keeps {
        return Ok(source);
    }
    if keeps {
        keep_codes(&mut source, None)?;
    }
    let names = bundle
        .weights
        .entries()
        .chain(source.weights.entries())
        .map(|(_, weight)| &weight.name);
    let mut weights = WeightTable::default();
    for name in names {
        let weight = source.weights.find(name).map(|id| &source.weights[id]);
        let data = weight.and_then(|weight| Some((weight, weight.expr()?.clone())));
        if let Some((weight, data)) = data.filter(|_| weights.find(name).is_none()) {
            weights.add(name, &weight.shape, data)?;
        }
    }
    let graphs = source.graphs.iter();
    let graphs = graphs
        .map(|graph| parse_graph_over(&graph.to_text(&source.weights), &weights))
        .collect::<Result<_, _>>()?;
    Ok(Module {
        graphs,
        weights,
        ..source
    })
}

fn first_difference(
    a: &dlc_ir::Weight,
    b: &dlc_ir::Weight,
) -> Result<Option<usize>, PipelineError> {
    const TILE: usize = 1 << 16;
    if a.ty() != b.ty() {
        return Ok(Some(0));
    }
    let (mut x, mut y) = (
        vec![0u8; TILE * a.dtype.size()],
        vec![0u8; TILE * a.dtype.size()],
    );
    for from in (0..a.elements()).step_by(TILE) {
        let bytes = TILE.min(a.elements() - from) * a.dtype.size();
        a.write_bytes(from, &mut x[..bytes])?;
        b.write_bytes(from, &mut y[..bytes])?;
        if let Some(i) = x[..bytes].iter().zip(&y[..bytes]).position(|(p, q)| p != q) {
            return Ok(Some(from + i / a.dtype.size()));
        }
    }
    Ok(None)
}
