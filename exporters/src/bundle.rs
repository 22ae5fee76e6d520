//! Writes a bundle: the ONNX files of a module, its weights once, the manifest and the files that
//! consumers expect.
//!
//! Atomic and deterministic: the folder appears when it is complete, and the same module gives the
//! same bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use dlc_bundle::{
    CacheRecord, FORMAT, FileRecord, GraphRecord, MANIFEST_FILE, Manifest, PassRecord, PortRecord,
    Profile, Source,
};
use dlc_files::{FileStamp, read_text};
use dlc_ir::{
    CachePart, DType, Dim, Graph, Input, LengthRotation, Module, Op, Output, SideFile, ValueType,
    cost,
};
use prost::Message;

use crate::deploy::{DeploymentTarget, Layout, TARGETS, WrittenBundle};
use crate::error::ExportError;
use crate::names::check_names;
use crate::onnx::lower::{
    KEPT, LEVELS, Lowered, OPTIONAL_INPUTS, cache_layout, kept_values, lower_all, noise_levels,
};
use crate::progress::Progress;
use crate::search::SearchDefaults;
use crate::staging::Staging;
use crate::weights::WeightPlan;

/// The first graph.
const TARGET: &str = "target";
/// The largest file of a checkpoint that is edited.
const EDIT_CAP: u64 = 16 << 20;

/// What a bundle is made with, besides the module.
#[derive(Debug, Clone)]
pub struct BundleRequest {
    /// The operators to use.
    pub profile: Profile,
    /// The runtime that it is written for, if one was named.
    pub deploy: Option<&'static DeploymentTarget>,
    /// Where the module came from.
    pub source: Source,
    /// The passes that made it, in order.
    pub passes: Vec<PassRecord>,
    /// Whether to replace a bundle that stands there already.
    pub force: bool,
    /// Side files that are written with another content than the file's, by name.
    pub rewritten: BTreeMap<String, Vec<u8>>,
    /// How consumers should choose tokens by default.
    pub search: SearchDefaults,
    /// The version of dlc.
    pub version: String,
}

/// Writes `module` as the bundle `out`, and returns its manifest.
///
/// # Errors
/// Any error leaves `out` as it was and nothing beside it: an op without a form in the profile, a
/// weight without data, an output that exists (see [`BundleRequest::force`]), a file that can't be
/// read or written, or [`ExportError::Interrupted`].
pub fn write_bundle(
    module: &Module,
    request: &BundleRequest,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Manifest, ExportError> {
    write_bundle_of(&[], module, request, out, progress)
}

/// The same for a module that was made of `inputs`, which must still be what they were when all is
/// written.
///
/// # Errors
/// See [`write_bundle`]; and [`ExportError::Changed`].
pub fn write_bundle_of(
    inputs: &[FileStamp],
    module: &Module,
    request: &BundleRequest,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Manifest, ExportError> {
    let (layout, fitted) = fitted(module, request)?;
    let module = &*fitted.module;
    check_names(module, layout)?;
    let caches = cache_layout(&module.graphs, request.profile);
    let mut lowered = lower_all(
        module,
        request.profile,
        &request.version,
        fitted.whole_texts,
    )?;
    let plans = plans(module, &lowered, layout)?;
    for (graph, lowered) in module.graphs.iter().zip(&mut lowered) {
        if let Some(plan) = plans.get(&layout.weights_file(&graph.name)) {
            lowered.place(plan, layout.weights)?;
        }
    }
    let record = |(graph, lowered): (&Graph, &Lowered)| {
        let mut record = graph_record(module, request.profile, (graph, lowered), layout)?;
        record.latents_divisor = fitted.latents_divisors.get(&graph.name).copied();
        Ok(record)
    };
    let graphs = module.graphs.iter().zip(&lowered).map(record);
    let graphs = graphs.collect::<Result<Vec<_>, ExportError>>()?;

    let staging = Staging::new(out, request.force)?;
    let mut files = write_weights(module, &plans, &staging, progress)?;
    for (record, lowered) in graphs.iter().zip(&lowered) {
        files.insert(
            record.file.clone(),
            staging.write(&record.file, &lowered.model.encode_to_vec())?,
        );
    }
    for side in &module.side_files {
        let place = layout.side_file(&side.name);
        let record = write_side_file(side, &place, module, request, &staging)?;
        files.insert(place, record);
    }
    let bundle = WrittenBundle {
        module,
        graphs: &graphs,
        caches,
        search: &request.search,
    };
    write_targets_files(&bundle, request.deploy, &staging, &mut files)?;
    let weights = plans.into_values().flat_map(WeightPlan::into_records);
    let manifest = Manifest {
        format: FORMAT,
        dlc: request.version.clone(),
        source: request.source.clone(),
        profile: request.profile,
        caches,
        model: module.model.clone(),
        passes: request.passes.clone(),
        sampling: module.sampling.clone(),
        draft_acceptance: module.drafting.map(|drafting| drafting.acceptance),
        weights_file: layout.weights_file(TARGET),
        weights: weights.collect(),
        graphs,
        files,
    };
    let text = serde_yaml::to_string(&manifest)
        .map_err(|e| ExportError::module(MANIFEST_FILE, e.to_string()))?;
    staging.write(MANIFEST_FILE, text.as_bytes())?;
    if progress.cancelled() {
        return Err(ExportError::Interrupted);
    }
    inputs.iter().try_for_each(FileStamp::check)?;
    staging.commit()?;
    Ok(manifest)
}

/// A module as it is written.
struct Written<'m> {
    module: Cow<'m, Module>,
    whole_texts: bool,
    latents_divisors: BTreeMap<String, f32>,
}

/// Where the runtime that the bundle is for looks for it, and the module as it takes it, after
/// checking that it runs the model.
fn fitted<'m>(
    module: &'m Module,
    request: &BundleRequest,
) -> Result<(Layout, Written<'m>), ExportError> {
    let own = Written {
        module: Cow::Borrowed(module),
        whole_texts: false,
        latents_divisors: BTreeMap::new(),
    };
    let Some(target) = request.deploy else {
        return Ok((Layout::FLAT, own));
    };
    target.check(&module.model)?;
    let fitted = (target.fit)(module)?.map(|fitted| Written {
        module: Cow::Owned(fitted.module),
        whole_texts: fitted.whole_texts,
        latents_divisors: fitted.latents_divisors,
    });
    Ok(((target.layout)(&module.model), fitted.unwrap_or(own)))
}

/// The weight files, by their places, with what the graphs beside each use.
fn plans(
    module: &Module,
    lowered: &[Lowered],
    layout: Layout,
) -> Result<BTreeMap<String, WeightPlan>, ExportError> {
    let mut stored: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (graph, lowered) in module.graphs.iter().zip(lowered) {
        let name = graph.name.as_str();
        let beside = stored.entry(layout.weights_file(name)).or_default();
        beside.push((name, lowered.stored.as_slice()));
    }
    let plan =
        |(file, stored): (String, Vec<_>)| Ok((file, WeightPlan::new(&module.weights, &stored)?));
    stored.into_iter().map(plan).collect()
}

fn write_weights(
    module: &Module,
    plans: &BTreeMap<String, WeightPlan>,
    staging: &Staging,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, FileRecord>, ExportError> {
    progress.total(plans.values().map(WeightPlan::bytes).sum());
    let write = |(place, plan): (&String, &WeightPlan)| {
        let (file, path) = (staging.create(place)?, staging.path(place));
        let record = plan.write(&module.weights, &file, &path, progress)?;
        Ok((place.clone(), record))
    };
    plans.iter().map(write).collect()
}

/// A file of the checkpoint, at its `place` in the bundle; with the entries that the bundle's
/// runtime reads there.
fn write_side_file(
    side: &SideFile,
    place: &str,
    module: &Module,
    request: &BundleRequest,
    staging: &Staging,
) -> Result<FileRecord, ExportError> {
    let rewritten = request.rewritten.get(&side.name);
    let edits = request.deploy.map_or(&[][..], |target| target.edits);
    let Some((_, edit)) = edits.iter().find(|(name, _)| *name == place) else {
        return match rewritten {
            Some(content) => staging.write(place, content),
            None => staging.copy(place, &side.path),
        };
    };
    let text = match rewritten {
        Some(content) => String::from_utf8_lossy(content).into_owned(),
        None => read_text(&side.path, EDIT_CAP)?,
    };
    let text = edit(&text, module)
        .map_err(|problem| ExportError::module(side.path.display().to_string(), problem))?;
    staging.write(place, text.as_bytes())
}

/// Writes what runtimes read beside the graphs: those that always find their files, and the one
/// that the bundle is for.
fn write_targets_files(
    bundle: &WrittenBundle<'_>,
    deploy: Option<&DeploymentTarget>,
    staging: &Staging,
    files: &mut BTreeMap<String, FileRecord>,
) -> Result<(), ExportError> {
    let wanted = |target: &&DeploymentTarget| {
        target.always || deploy.is_some_and(|deploy| deploy.name == target.name)
    };
    for target in TARGETS.iter().filter(wanted) {
        for (name, content) in (target.files)(bundle) {
            files.insert(name.to_owned(), staging.write(name, &content)?);
        }
    }
    Ok(())
}

fn graph_record(
    module: &Module,
    profile: Profile,
    (graph, lowered): (&Graph, &Lowered),
    layout: Layout,
) -> Result<GraphRecord, ExportError> {
    let used = lowered.input_names();
    let port = |name: &str, ty: &ValueType| PortRecord {
        name: name.to_owned(),
        dtype: ty.dtype,
        shape: ty.shape.0.iter().map(Dim::to_string).collect(),
    };
    let ty = |value| &graph.value(value).ty;
    let (levels, kept) = (noise_levels(graph), kept_values(graph, profile));
    let output = |output: &Output| {
        let mut port = port(&output.name, ty(output.value));
        if kept.contains(&output.value)
            && let Some(tokens) = port.shape.get_mut(1)
        {
            KEPT.clone_into(tokens);
        }
        port
    };
    let optional = |name: &str| PortRecord {
        name: name.to_owned(),
        dtype: DType::I64,
        shape: vec![],
    };
    let input = |input: &Input| {
        let port = port(&input.name, ty(input.value));
        if levels.contains(&input.value) {
            PortRecord {
                shape: vec![LEVELS.to_owned()],
                ..port
            }
        } else {
            port
        }
    };
    Ok(GraphRecord {
        name: graph.name.clone(),
        file: layout.graph_file(&graph.name),
        weights_file: Some(layout.weights_file(&graph.name))
            .filter(|file| *file != layout.weights_file(TARGET)),
        latents_divisor: None,
        parameters: cost::cost(graph, &module.weights).parameters,
        inputs: graph
            .inputs()
            .iter()
            .filter(|i| used.contains(&i.name))
            .map(input)
            .collect(),
        optional_inputs: OPTIONAL_INPUTS
            .into_iter()
            .filter(|name| used.iter().any(|used| used == name))
            .map(optional)
            .collect(),
        outputs: graph.outputs().iter().map(output).collect(),
        caches: caches(graph)?,
        rotates_by_length: length_rotation(graph),
    })
}

/// How the graph's rotations depend on lengths: any of them.
fn length_rotation(graph: &Graph) -> Option<LengthRotation> {
    let rotations = graph.nodes().filter_map(|(_, node)| match &node.op {
        Op::Rope(rope) => rope.length_rotation(),
        _ => None,
    });
    rotations.reduce(|a, b| LengthRotation {
        trained: a.trained.min(b.trained),
        grows: a.grows || b.grows,
    })
}

/// The caches by slot: slots are numbered in the order of layers, as [`Graph::renumber_caches`]
/// does.
fn caches(graph: &Graph) -> Result<Vec<CacheRecord>, ExportError> {
    let keys = graph.inputs().iter().filter_map(|i| {
        i.cache
            .filter(|c| c.part == CachePart::Key)
            .map(|c| (c.layer, i))
    });
    let keys: BTreeMap<u32, _> = keys.collect();
    let mut records = Vec::new();
    for (slot, (layer, input)) in keys.into_iter().enumerate() {
        let expected = format!("past_key_values.{slot}.key");
        if input.name != expected {
            let problem = format!(
                "the cache of layer {layer} is named {}, not {expected}; number its caches with `Graph::renumber_caches`",
                input.name
            );
            return Err(ExportError::module(
                format!("graph {}", graph.name),
                problem,
            ));
        }
        let dims = &graph.value(input.value).ty.shape.0;
        let known = |axis: usize| dims.get(axis).and_then(Dim::known).unwrap_or_default();
        records.push(CacheRecord {
            slot: slot as u32,
            layer,
            heads: known(1),
            head_dim: known(3),
        });
    }
    Ok(records)
}
