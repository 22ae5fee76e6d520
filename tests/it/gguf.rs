//! GGUF files: compiled as they are, and converted into checkpoints.

use std::fs;
use std::path::Path;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc_runtime::TextTokenizer;
use serde_json::Value;

use crate::command::{Shell, snapshot};
use crate::common::fixture;
use crate::common::golden::{CASES, Golden, TOLERANCE};
use crate::common::session::Engine;
use crate::common::suite::check_module;

const GOLDENS: [&str; 6] = ["llama", "llama3", "qwen2", "qwen3", "gemma2", "gemma3_text"];
const BYTE_LEVEL: [&str; 5] = ["llama-bpe", "qwen2", "smollm", "gpt-2", "default"];

/// Fails unless the checkpoint computes the golden's logits.
fn check(name: &'static str, path: &Path) {
    let golden = Golden::read(name);
    let module = import(&Checkpoint::open(path).unwrap(), &ImportOptions::default()).unwrap();
    for case in CASES {
        let module = module.clone();
        check_module(&Engine::Evaluator, module, &golden, case, TOLERANCE).unwrap();
    }
}

#[test]
fn files_compute_what_their_checkpoints_compute() {
    for name in GOLDENS {
        check(name, &fixture(&format!("gguf/{name}.gguf")));
    }
}

#[test]
fn converted_files_compute_what_their_checkpoints_compute() {
    let shell = Shell::new();
    for name in GOLDENS {
        let file = format!("fixtures/gguf/{name}.gguf");
        shell.ok(&["convert", &file, name, "--dtype", "f32"]);
        check(name, &shell.path(name));
    }
}

#[test]
fn weights_off_the_grid_compute_the_same() {
    let shell = Shell::new();
    for name in ["llama", "llama3", "qwen2", "qwen3"] {
        let file = format!("fixtures/gguf/{name}.gguf");
        shell.ok(&["convert", &file, name, "--dtype", "f32", "--off-grid"]);
        check(name, &shell.path(name));
        let again = format!("{name}-again");
        shell.ok(&[
            "convert",
            &file,
            &again,
            "--dtype",
            "f32",
            "--off-grid",
            "--threads",
            "1",
        ]);
        let weights =
            |folder: &str| fs::read(shell.path(folder).join("model.safetensors")).unwrap();
        assert!(weights(name) == weights(&again), "{name}");
        let golden = fs::read(fixture(&format!("goldens/{name}/model.safetensors"))).unwrap();
        assert!(weights(name) != golden, "{name}");
    }
    let gemma = shell.dlc(&[
        "convert",
        "fixtures/gguf/gemma2.gguf",
        "gemma2",
        "--off-grid",
    ]);
    assert_eq!(gemma.code, Some(2));
    assert!(
        gemma.stderr.contains("--off-grid is for llama"),
        "{}",
        gemma.stderr
    );
}

/// Ids that a library recorded for the texts.
fn recorded(texts: &Value, tokenizer: &str, library: &str) -> Option<Vec<Vec<u32>>> {
    serde_json::from_value(texts[tokenizer][library].clone()).ok()
}

/// Whether special tokens or composed characters are in a text, which transformers' bare classes
/// and llama.cpp treat otherwise than `tokenizer.json` of these models.
fn has_special(text: &str) -> bool {
    ["<|", "<tool>", "<s>"]
        .iter()
        .any(|token| text.contains(token))
}

fn is_decomposed(text: &str) -> bool {
    text.contains(['\u{301}', '\u{1112}'])
}

#[test]
fn tokenizers_give_the_ids_of_llama_cpp_and_transformers() {
    let shell = Shell::new();
    let texts = fs::read(fixture("gguf/tokenizers/texts.json")).unwrap();
    let recordings: Value = serde_json::from_slice(&texts).unwrap();
    let texts: Vec<String> = serde_json::from_value(recordings["texts"].clone()).unwrap();
    for name in BYTE_LEVEL.into_iter().chain(["pieces", "gemma"]) {
        shell.ok(&[
            "convert",
            &format!("fixtures/gguf/tokenizers/{name}.gguf"),
            name,
        ]);
        let tokenizer = TextTokenizer::load(&shell.path(name).join("tokenizer.json")).unwrap();
        let llama_cpp = recorded(&recordings, name, "llama.cpp").unwrap();
        let other = ["transformers", "sentencepiece"]
            .iter()
            .find_map(|library| recorded(&recordings, name, library));
        for (i, text) in texts.iter().enumerate() {
            let ids = tokenizer.encode(text, true).unwrap();
            if !(name == "qwen2" && is_decomposed(text)) {
                assert_eq!(ids, llama_cpp[i], "{name}, llama.cpp: {text:?}");
            }
            if let Some(other) = other.as_ref().filter(|_| !has_special(text)) {
                assert_eq!(ids, other[i], "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn a_file_is_compiled_and_run_as_it_is() {
    let shell = Shell::new();
    let transcripts: Vec<String> = [
        &[
            "compile",
            "fixtures/gguf/tokenizers/smollm.gguf",
            "-o",
            "bundle",
        ][..],
        &["run", "bundle", "--prompt", "In the", "--max-tokens", "4"],
        &[
            "convert",
            "fixtures/gguf/tokenizers/pieces.gguf",
            "checkpoint",
        ],
        &[
            "convert",
            "fixtures/gguf/tokenizers/pieces.gguf",
            "again",
            "--dtype",
            "f32",
            "--json",
        ],
        &["inspect", "fixtures/gguf/llama3.gguf"],
    ]
    .map(|args| shell.ok(args).transcript())
    .into();
    assert_eq!(shell.listing(), ["again", "bundle", "checkpoint"]);
    let same = shell.ok(&["compile", "checkpoint", "-o", "converted"]);
    assert!(same.stderr.contains("converted"), "{}", same.stderr);
    let files: Vec<String> = fs::read_dir(shell.path("bundle"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        assert!(files.iter().any(|name| name == file), "{file}: {files:?}");
    }
    snapshot!("gguf", transcripts.join("\n"));
}

#[test]
fn files_that_cannot_be_converted_say_why() {
    let shell = Shell::new();
    let whole = fs::read(fixture("gguf/llama.gguf")).unwrap();
    shell.write("cut.gguf", &whole[..whole.len() / 2]);
    shell.write("short.gguf", &whole[..20]);
    shell.write("folder/model.gguf", &whole);
    shell.write("empty.gguf", "");
    let renamed = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|w| w == from).unwrap();
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    shell.write(
        "other.gguf",
        renamed(b"blk.2.attn_v.weight", b"blk.2.attn_x.weight"),
    );
    shell.write(
        "big.gguf",
        renamed(&3u32.to_le_bytes(), &3u32.to_be_bytes()),
    );
    shell.write(
        "counts.gguf",
        renamed(&39u64.to_le_bytes(), &(1u64 << 50).to_le_bytes()),
    );
    let transcripts: Vec<String> = [
        &["convert", "cut.gguf", "out"][..],
        &["convert", "short.gguf", "out"],
        &["convert", "empty.gguf", "out"],
        &["convert", "big.gguf", "out"],
        &["convert", "counts.gguf", "out"],
        &["convert", "other.gguf", "out"],
        &["convert", "nowhere.gguf", "out"],
        &["convert", "fixtures/goldens/llama", "out"],
        &["compile", "folder", "-o", "out"],
        &[
            "merge",
            "fixtures/gguf/llama.gguf",
            "--adapter",
            "fixtures/adapters/lora-llama/adapter",
            "-o",
            "out",
        ],
    ]
    .map(|args| {
        let outcome = shell.dlc(args);
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        outcome.transcript()
    })
    .into();
    assert!(!shell.path("out").exists());
    snapshot!("gguf_refused", transcripts.join("\n"));
}
