//! Writes a bundle: the ONNX files of a module, its weights once, the manifest and the files that
//! consumers expect.
//!
//! Atomic and deterministic: the folder appears when it is complete, and the same module gives the
//! same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use dlc_bundle::{
    CacheLayout, CacheRecord, FORMAT, FileRecord, GraphRecord, MANIFEST_FILE, Manifest, PassRecord,
    PortRecord, Profile, Source,
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

/// The checkpoint's configuration.
const CONFIG: &str = "config.json";
/// The largest one that is edited.
const CONFIG_CAP: u64 = 16 << 20;

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
    let layout = layout(module, request)?;
    check_names(module, layout)?;
    let caches = cache_layout(&module.graphs, request.profile);
    let mut lowered = lower_all(module, request.profile, &request.version)?;
    let stored: Vec<_> = module
        .graphs
        .iter()
        .zip(&lowered)
        .map(|(g, l)| (g.name.as_str(), l.stored.as_slice()))
        .collect();
    let plan = WeightPlan::new(&module.weights, &stored)?;
    lowered
        .iter_mut()
        .try_for_each(|l| l.place(&plan, layout.weights))?;
    let graphs = module
        .graphs
        .iter()
        .zip(&lowered)
        .map(|(g, l)| graph_record(module, request.profile, (g, l), layout))
        .collect::<Result<Vec<_>, _>>()?;

    let staging = Staging::new(out, request.force)?;
    let mut files = BTreeMap::new();
    let weights_file = layout.weights_file();
    let file = staging.create(&weights_file)?;
    let path = staging.path(&weights_file);
    let record = plan.write(&module.weights, &file, &path, progress)?;
    files.insert(weights_file, record);
    drop(file);
    for (record, lowered) in graphs.iter().zip(&lowered) {
        files.insert(
            record.file.clone(),
            staging.write(&record.file, &lowered.model.encode_to_vec())?,
        );
    }
    for side in &module.side_files {
        files.insert(
            side.name.clone(),
            write_side_file(side, module, request, &staging)?,
        );
    }
    let bundle = WrittenBundle {
        module,
        graphs: &graphs,
        caches,
        search: &request.search,
    };
    write_targets_files(&bundle, request.deploy, &staging, &mut files)?;
    let manifest = manifest(module, request, caches, graphs, plan, layout, files);
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

/// Where the runtime that the bundle is for looks for it, after checking that it runs the model.
fn layout(module: &Module, request: &BundleRequest) -> Result<Layout, ExportError> {
    let Some(target) = request.deploy else {
        return Ok(Layout::FLAT);
    };
    target.check(&module.model)?;
    Ok((target.layout)(module.model.dtype))
}

/// A file of the checkpoint; its configuration with the keys that the bundle's runtime reads there.
fn write_side_file(
    side: &SideFile,
    module: &Module,
    request: &BundleRequest,
    staging: &Staging,
) -> Result<FileRecord, ExportError> {
    let rewritten = request.rewritten.get(&side.name);
    let edit = request
        .deploy
        .and_then(|target| target.config)
        .filter(|_| side.name == CONFIG);
    let Some(edit) = edit else {
        return match rewritten {
            Some(content) => staging.write(&side.name, content),
            None => staging.copy(&side.name, &side.path),
        };
    };
    let text = match rewritten {
        Some(content) => String::from_utf8_lossy(content).into_owned(),
        None => read_text(&side.path, CONFIG_CAP)?,
    };
    let text = edit(&text, module.model.dtype)
        .map_err(|problem| ExportError::module(side.path.display().to_string(), problem))?;
    staging.write(&side.name, text.as_bytes())
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

fn manifest(
    module: &Module,
    request: &BundleRequest,
    caches: CacheLayout,
    graphs: Vec<GraphRecord>,
    plan: WeightPlan,
    layout: Layout,
    files: BTreeMap<String, FileRecord>,
) -> Manifest {
    Manifest {
        format: FORMAT,
        dlc: request.version.clone(),
        source: request.source.clone(),
        profile: request.profile,
        caches,
        model: module.model.clone(),
        passes: request.passes.clone(),
        sampling: module.sampling.clone(),
        draft_acceptance: module.drafting.map(|drafting| drafting.acceptance),
        graphs,
        weights_file: layout.weights_file(),
        weights: plan.into_records(),
        files,
    }
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
