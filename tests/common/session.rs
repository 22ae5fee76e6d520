//! Goldens through a backend: exported with a profile, loaded, run.

use std::path::Path;

use dlc_bundle::{CacheLayout, Manifest, Profile, Source};
use dlc_exporters::{BundleRequest, SearchDefaults, write_bundle};
use dlc_ir::{DType, Module};
use dlc_runtime::{Backend, Bundle, HostTensor, Session, SessionOptions, SharedWeights};

use super::golden::{Case, EncoderGolden, Feed, Golden, module};

/// Writes `module` as a bundle.
pub fn export(module: &Module, profile: Profile, out: &Path) -> Manifest {
    let source = Source {
        name: "golden".into(),
        files: std::collections::BTreeMap::new(),
    };
    let request = BundleRequest {
        deploy: None,
        profile,
        source,
        passes: vec![],
        force: false,
        rewritten: std::collections::BTreeMap::new(),
        search: SearchDefaults::default(),
        version: "test".into(),
    };
    write_bundle(module, &request, out, &()).unwrap()
}

/// Exports a golden and compares all that it records with what `backend` computes.
pub fn check_golden(
    backend: &Backend,
    name: &'static str,
    profile: Profile,
    dtype: DType,
    case: Case,
    tolerance: f32,
) -> Result<(), String> {
    let golden = Golden::read(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    export(&golden.module(dtype), profile, &out);
    let bundle = Bundle::open(&out).map_err(|e| e.to_string())?;
    let weights = SharedWeights::open(&bundle, backend).map_err(|e| e.to_string())?;
    let mut session = Session::load(
        backend,
        &bundle,
        "target",
        weights.as_ref(),
        &SessionOptions::default(),
    )
    .map_err(|e| e.to_string())?;
    let logits = run_case(&bundle, &mut session, &golden, case)?;
    golden.check(case, &logits, tolerance)
}

/// Exports an encoder's golden and compares what it records with what `backend` computes.
pub fn check_encoder(
    backend: &Backend,
    name: &'static str,
    profile: Profile,
    dtype: DType,
    tolerance: f32,
) -> Result<(), String> {
    let golden = EncoderGolden::read(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    export(&module(name, dtype), profile, &out);
    let bundle = Bundle::open(&out).map_err(|e| e.to_string())?;
    let mut session = Session::load(backend, &bundle, "target", None, &SessionOptions::default())
        .map_err(|e| e.to_string())?;
    let inputs: Vec<(&str, HostTensor)> = golden
        .inputs
        .iter()
        .map(|(n, a)| {
            (
                n.as_str(),
                HostTensor::i64(a.shape(), a.as_i64().unwrap().to_vec()),
            )
        })
        .collect();
    let outputs = session.run_host(&inputs).map_err(|e| e.to_string())?;
    let tolerance = if dtype == DType::F16 {
        tolerance * golden.scale()
    } else {
        tolerance
    };
    for output in golden.outputs() {
        let found = outputs.iter().find(|(name, _)| name == output);
        let (_, found) = found.ok_or("the output is missing")?;
        golden.check(output, &found.to_f32().unwrap(), tolerance)?;
    }
    Ok(())
}

fn run_case(
    bundle: &Bundle,
    session: &mut Session,
    golden: &Golden,
    case: Case,
) -> Result<Vec<f32>, String> {
    let (before, feed) = golden.feeds(case);
    let run =
        |session: &mut Session, before: Option<&Feed>, feed: &Feed| -> Result<Vec<f32>, String> {
            let caches = match before {
                Some(before) => run_once(bundle, session, before, &[])?,
                None => vec![],
            };
            let outputs = run_once(bundle, session, feed, &caches)?;
            Ok(outputs
                .iter()
                .find(|(n, _)| n == "logits")
                .unwrap()
                .1
                .to_f32()
                .unwrap())
        };
    // GroupQueryAttention takes several tokens after a past for one sequence only.
    if bundle.manifest().caches == CacheLayout::InPlace && before.is_some() {
        let rows = (0..feed.shape[0]).map(|row| {
            run(
                session,
                before.as_ref().map(|b| b.row(row)).as_ref(),
                &feed.row(row),
            )
        });
        return Ok(rows.collect::<Result<Vec<_>, _>>()?.concat());
    }
    run(session, before.as_ref(), &feed)
}

/// One run; `caches` are the outputs of the run before.
pub fn run_once(
    bundle: &Bundle,
    session: &mut Session,
    feed: &Feed,
    caches: &[(String, HostTensor)],
) -> Result<Vec<(String, HostTensor)>, String> {
    let graph = bundle.graph("target").map_err(|e| e.to_string())?;
    let mut inputs: Vec<(String, HostTensor)> = Vec::new();
    for port in &graph.inputs {
        if let Some((_, shape, data)) = feed.integers().into_iter().find(|(n, ..)| *n == port.name)
        {
            inputs.push((port.name.clone(), HostTensor::i64(shape, data)));
            continue;
        }
        let present = port.name.replace("past_key_values", "present");
        let cache = caches
            .iter()
            .find(|(n, _)| *n == present)
            .map(|(_, t)| t.clone());
        let heads: usize = port.shape[1].parse().unwrap();
        let width: usize = port.shape[3].parse().unwrap();
        inputs.push((
            port.name.clone(),
            cache.unwrap_or_else(|| {
                HostTensor::floats(port.dtype, [feed.shape[0], heads, 0, width], &[])
            }),
        ));
    }
    let borrowed: Vec<(&str, HostTensor)> = inputs
        .iter()
        .map(|(n, t)| (n.as_str(), t.clone()))
        .collect();
    session.run_host(&borrowed).map_err(|e| e.to_string())
}
