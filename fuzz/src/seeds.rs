//! What each target begins from: real files of its format.

use std::fs;
use std::path::{Path, PathBuf};

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::{CompileRequest, Monitor, compile, parse_pass_flag, score};
use dlc_bundle::Profile;
use dlc_passes::sums::Shard;

/// A file or folder in `fixtures/`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(name)
}

/// Watches nothing.
struct Unwatched;

impl dlc_passes::Progress for Unwatched {
    fn update(&self, _what: &str, _done: usize, _total: usize) {}
}

impl dlc_exporters::Progress for Unwatched {}

const _: &dyn Monitor = &Unwatched;

/// Compiles a checkpoint of `fixtures/` into the empty folder `out`.
pub(crate) fn compile_fixture(name: &str, pass: Option<&str>, profile: Profile, out: &Path) {
    let request = CompileRequest {
        passes: pass
            .into_iter()
            .map(|pass| parse_pass_flag(pass).unwrap())
            .collect(),
        profile,
        threads: 1,
        ..CompileRequest::new(fixture(name), out)
    };
    compile(&request, None, &Unwatched).unwrap();
}

const SCHEDULE: &str = "granularity: branch\nreuse: linear\nunits: [blocks.0.attn, blocks.0.ff]\nsteps: ['11', '11', '01', '10']\n";

/// The seeds of a target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let files = |names: &[&str]| {
        names
            .iter()
            .map(|name| fs::read(fixture(name)).unwrap())
            .collect()
    };
    match target {
        "safetensors" => files(&["goldens/llama/model.safetensors", "goldens/gpt2/model.safetensors", "quantised/gptq-llama-8/model.safetensors"]),
        "gguf" => files(&["gguf/tokenizers/pieces.gguf", "gguf/tokenizers/qwen2.gguf"]),
        "config" => files(&["goldens/llama/config.json", "goldens/gemma2/config.json", "goldens/bert/config.json", "goldens/unet-sd15/config.json"]),
        "manifest" => bundles(&["dlc.yaml"]),
        "onnx" => bundles(&["model.onnx"]),
        "graph" => texts(),
        "schedule" => {
            let schedule = |manifest: &Vec<u8>| {
                let manifest: dlc_bundle::Manifest = serde_yaml::from_slice(manifest).unwrap();
                manifest.sampling.map(|sampling| serde_yaml::to_string(&sampling.schedule).unwrap().into_bytes())
            };
            bundles(&["dlc.yaml"]).iter().filter_map(schedule).chain([SCHEDULE.into()]).collect()
        }
        "adapter" => files(&["adapters/lora-llama/adapter/adapter_config.json", "adapters/patterns-llama/adapter/adapter_config.json"]),
        "scores" => vec![scores_of_shard()],
        "pipeline" => vec![b"model: m\npasses:\n  - fit-prune: {drop: 4, granularity: layer}\n  - remove-unused\nprofile: ort\noutput: out\n".to_vec()],
        "tokenizer" => files(&["tiny-llama/tokenizer.json", "cases/chat-tools-is-none/tokenizer.json", "cases/sentence-max-seq-length/tokenizer.json"]),
        "vocabulary" => files(&["tokenizers/llama-legacy/tokenizer.model", "tokenizers/gemma/tokenizer.model", "tokenizers/deberta-v2/spm.model", "tokenizers/bert/vocab.txt"]),
        "template" => vec![
            b"{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] | trim + eos_token }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}".to_vec(),
            b"{%- set ns = namespace(n=0) -%}{%- for m in messages if m.role != 'system' -%}{%- set ns.n = ns.n + 1 -%}{{ loop.index }}{{ m | tojson }}{%- endfor -%}{{ ns.n }}".to_vec(),
        ],
        _ => vec![],
    }
}

/// The file of a shard's scores.
fn scores_of_shard() -> Vec<u8> {
    let pass = format!(
        "fit-prune:drop=1,calibration={}",
        fixture("calibration-tokens.jsonl").display()
    );
    let request = CompileRequest {
        passes: vec![parse_pass_flag(&pass).unwrap()],
        threads: 1,
        ..CompileRequest::new(fixture("goldens/llama"), "unwritten")
    };
    score(&request, Shard::WHOLE, None, &Unwatched)
        .unwrap()
        .file
}

/// Files of a decoder's bundle, and of a diffusion model's with a schedule.
fn bundles(names: &[&str]) -> Vec<Vec<u8>> {
    let of = |fixture: &str, pass: Option<&str>, profile: Profile| -> Vec<Vec<u8>> {
        let out = tempfile::tempdir().unwrap();
        compile_fixture(fixture, pass, profile, out.path());
        names
            .iter()
            .map(|name| fs::read(out.path().join(name)).unwrap())
            .collect()
    };
    [
        of("goldens/llama", None, Profile::Ort),
        of(
            "digits-dit",
            Some("skip:interval=2,steps=4"),
            Profile::Portable,
        ),
    ]
    .concat()
}

/// Graphs in text form.
fn texts() -> Vec<Vec<u8>> {
    let text = |name: &str| {
        let module = import(
            &Checkpoint::open(&fixture(&format!("goldens/{name}"))).unwrap(),
            &ImportOptions::default(),
        )
        .unwrap();
        module.graphs[0].to_text(&module.weights).into_bytes()
    };
    ["llama", "unet-ddpm", "deberta"].map(text).to_vec()
}
