//! Writes a bundle: the ONNX files of a module, its weights once, the manifest and the files that
//! consumers expect.
//!
//! Atomic and deterministic: the folder appears when it is complete, and the same module gives the
//! same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dlc_bundle::{
    CacheLayout, CacheRecord, FORMAT, FileRecord, GraphRecord, MANIFEST_FILE, Manifest, PassRecord,
    PortRecord, Profile, Source, WEIGHTS_FILE,
};
use dlc_files::FileStamp;
use dlc_ir::{CachePart, Dim, Graph, Input, Module, ValueType, cost};
use prost::Message;

use crate::deploy::{DeploymentTarget, GraphFile, TARGETS, WrittenBundle};
use crate::error::ExportError;
use crate::onnx::lower::{LEVELS, Lowered, Target, cache_layout, lower, noise_levels};
use crate::progress::Progress;
use crate::search::SearchDefaults;
use crate::staging::Staging;
use crate::weights::WeightPlan;

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
    check_names(module)?;
    let caches = cache_layout(&module.graphs, request.profile);
    let context_length = module.model.context_length;
    let target = Target {
        profile: request.profile,
        caches,
        weights: &module.weights,
        context_length,
        version: &request.version,
    };
    let mut lowered = module
        .graphs
        .iter()
        .map(|graph| lower(graph, target))
        .collect::<Result<Vec<_>, _>>()?;
    let stored: Vec<_> = module
        .graphs
        .iter()
        .zip(&lowered)
        .map(|(g, l)| (g.name.as_str(), l.stored.as_slice()))
        .collect();
    let plan = WeightPlan::new(&module.weights, &stored)?;
    lowered.iter_mut().try_for_each(|l| l.place(&plan))?;
    let graphs = module
        .graphs
        .iter()
        .zip(&lowered)
        .map(|(g, l)| graph_record(module, g, l))
        .collect::<Result<Vec<_>, _>>()?;

    let staging = Staging::new(out, request.force)?;
    let mut files = BTreeMap::new();
    let weights_file = staging.create(WEIGHTS_FILE)?;
    files.insert(
        WEIGHTS_FILE.to_owned(),
        plan.write(
            &module.weights,
            &weights_file,
            &staging.path(WEIGHTS_FILE),
            progress,
        )?,
    );
    drop(weights_file);
    for (record, lowered) in graphs.iter().zip(&lowered) {
        files.insert(
            record.file.clone(),
            staging.write(&record.file, &lowered.model.encode_to_vec())?,
        );
    }
    for side in &module.side_files {
        let record = match request.rewritten.get(&side.name) {
            Some(content) => staging.write(&side.name, content)?,
            None => staging.copy(&side.name, &side.path)?,
        };
        files.insert(side.name.clone(), record);
    }
    let bundle = WrittenBundle {
        module,
        graphs: (module.graphs.iter().zip(&lowered))
            .map(|(graph, lowered)| GraphFile {
                graph,
                file: file_name(&graph.name),
                inputs: lowered.input_names(),
            })
            .collect(),
        caches,
        search: &request.search,
    };
    write_targets_files(&bundle, request.deploy, &staging, &mut files)?;
    let manifest = manifest(module, request, caches, graphs, plan, files);
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

/// `model.onnx` for the target, else the graph's name.
fn file_name(graph: &str) -> String {
    if graph == "target" {
        "model.onnx".to_owned()
    } else {
        format!("{graph}.onnx")
    }
}

/// Every file of the bundle has a name of its own that stays inside the folder; side files may be
/// in a folder there.
fn check_names(module: &Module) -> Result<(), ExportError> {
    if module.graphs.first().is_none_or(|g| g.name != "target") {
        return Err(ExportError::module(
            "module",
            "its first graph is not `target`",
        ));
    }
    let of_targets = TARGETS.iter().flat_map(|target| target.writes);
    let mut taken: BTreeSet<String> = [MANIFEST_FILE, WEIGHTS_FILE]
        .iter()
        .chain(of_targets)
        .map(|name| (*name).to_owned())
        .collect();
    let plain = |name: &str| {
        !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
    };
    let graphs = module.graphs.iter().map(|g| (file_name(&g.name), false));
    let mut folders = BTreeSet::new();
    for (name, is_side) in graphs.chain(module.side_files.iter().map(|f| (f.name.clone(), true))) {
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() > if is_side { 2 } else { 1 } || !parts.iter().all(|part| plain(part)) {
            return Err(ExportError::module(
                name,
                "is no file name that a bundle can hold",
            ));
        }
        if let [folder, _] = parts[..] {
            folders.insert(folder.to_lowercase());
        }
        if !taken.insert(name.to_lowercase()) {
            return Err(ExportError::module(
                name,
                "two files of the bundle would have this name",
            ));
        }
    }
    match taken.intersection(&folders).next() {
        Some(both) => Err(ExportError::module(
            both,
            "a file and a folder of the bundle would have this name",
        )),
        None => Ok(()),
    }
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
        weights: plan.into_records(),
        files,
    }
}

fn graph_record(
    module: &Module,
    graph: &Graph,
    lowered: &Lowered,
) -> Result<GraphRecord, ExportError> {
    let used = lowered.input_names();
    let port = |name: &str, ty: &ValueType| PortRecord {
        name: name.to_owned(),
        dtype: ty.dtype,
        shape: ty.shape.0.iter().map(Dim::to_string).collect(),
    };
    let ty = |value| &graph.value(value).ty;
    let levels = noise_levels(graph);
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
        file: file_name(&graph.name),
        parameters: cost::cost(graph, &module.weights).parameters,
        inputs: graph
            .inputs()
            .iter()
            .filter(|i| used.contains(&i.name))
            .map(input)
            .collect(),
        outputs: graph
            .outputs()
            .iter()
            .map(|o| port(&o.name, ty(o.value)))
            .collect(),
        caches: caches(graph)?,
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
