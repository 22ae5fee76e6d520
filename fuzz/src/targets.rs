//! The targets, one for each format.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::UNIX_EPOCH;

use dlc::checkpoint::{AdapterFiles, Checkpoint};
use dlc::import::{ImportOptions, import};
use dlc::pipeline::{PipelineConfig, check_scores, module_of_bundle, read_onnx};
use dlc_bundle::Profile;
use dlc_ir::{Module, SkipSchedule, parse_graph, verify};
use dlc_passes::merge_adapter::{MergeAdapter, MergeAdapterOptions};
use dlc_passes::{Adapter, AdapterTensor, Pass, PassContext, Sources};
use dlc_runtime::{Bundle, ChatMessage, ChatTemplate, TextTokenizer};

use crate::seeds::{compile_fixture, fixture};

/// A format that dlc reads.
#[derive(Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Reads bytes in this format.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "safetensors",
        run: safetensors,
    },
    Target {
        name: "gguf",
        run: gguf,
    },
    Target {
        name: "config",
        run: config,
    },
    Target {
        name: "manifest",
        run: manifest,
    },
    Target {
        name: "onnx",
        run: onnx,
    },
    Target {
        name: "graph",
        run: graph,
    },
    Target {
        name: "schedule",
        run: schedule,
    },
    Target {
        name: "adapter",
        run: adapter,
    },
    Target {
        name: "scores",
        run: scores,
    },
    Target {
        name: "pipeline",
        run: pipeline,
    },
    Target {
        name: "tokenizer",
        run: tokenizer,
    },
    Target {
        name: "vocabulary",
        run: vocabulary,
    },
    Target {
        name: "template",
        run: template,
    },
];

/// A folder of this process in which one file is fuzzed.
struct Folder {
    path: PathBuf,
}

impl Folder {
    /// An empty folder in memory where there is such a place, with what `fill` puts into it.
    fn new(fill: impl FnOnce(&Path)) -> Self {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        // Processes end by a signal here, so nothing would remove a temporary folder: one place is
        // used again and again.
        let path = root.join(format!(
            "dlc-fuzz-{}-{}",
            std::process::id(),
            SERIAL.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&path).unwrap();
        fill(&path);
        Self { path }
    }

    /// The folder, with `bytes` in the file `name`.
    fn with(&self, name: &str, bytes: &[u8]) -> &Path {
        let path = self.path.join(name);
        fs::write(&path, bytes).unwrap();
        &self.path
    }
}

static SERIAL: AtomicUsize = AtomicUsize::new(0);

fn copy(file: &str, to: &Path) {
    fs::copy(fixture(file), to).unwrap();
}

/// Scores of a shard.
fn scores(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new(|_| ()));
    let name = "part.safetensors";
    let _ = check_scores(&[FOLDER.with(name, bytes).join(name)]);
}

/// Weights of a checkpoint, quantised or not.
fn safetensors(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
        Folder::new(|path| {
            copy("goldens/llama/config.json", &path.join("config.json"));
            let name = "quantize_config.json";
            copy(&format!("quantised/gptq-llama-8/{name}"), &path.join(name));
        })
    });
    read_checkpoint(FOLDER.with("model.safetensors", bytes));
}

/// A GGUF file.
fn gguf(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new(|_| ()));
    read_checkpoint(&FOLDER.with("model.gguf", bytes).join("model.gguf"));
}

/// `config.json` of a checkpoint.
fn config(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
        Folder::new(|path| {
            copy(
                "goldens/llama/model.safetensors",
                &path.join("model.safetensors"),
            );
        })
    });
    read_checkpoint(FOLDER.with("config.json", bytes));
}

fn read_checkpoint(folder: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(folder) {
        let _ = import(&checkpoint, &ImportOptions::default());
    }
}

/// `dlc.yaml` of a bundle.
fn manifest(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
        Folder::new(|path| compile_fixture("goldens/llama", None, Profile::Ort, path))
    });
    // As the command opens it: weights that didn't change are hashed once.
    static CACHE: LazyLock<Folder> = LazyLock::new(|| Folder::new(|_| ()));
    if let Ok(bundle) = Bundle::open_cached(FOLDER.with("dlc.yaml", bytes), Some(&CACHE.path)) {
        let _ = module_of_bundle(&bundle);
    }
}

/// An ONNX file.
fn onnx(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
        Folder::new(|path| compile_fixture("goldens/llama", None, Profile::Ort, path))
    });
    let _ = read_onnx(&FOLDER.with("model.onnx", bytes).join("model.onnx"));
}

/// The text form of a graph.
fn graph(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok((graph, weights)) = parse_graph(text) {
        let _ = verify::check(&graph, &weights);
    }
}

/// A schedule of skipped blocks.
fn schedule(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(schedule) = serde_yaml::from_str::<SkipSchedule>(text) {
        let _ = schedule.computed();
    }
}

/// `adapter_config.json` of an adapter.
fn adapter(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
        Folder::new(|path| {
            copy(
                "adapters/lora-llama/adapter/adapter_model.safetensors",
                &path.join("adapter_model.safetensors"),
            );
        })
    });
    static BASE: LazyLock<Module> = LazyLock::new(|| {
        let checkpoint = Checkpoint::open(&fixture("adapters/lora-llama")).unwrap();
        import(&checkpoint, &ImportOptions::default()).unwrap()
    });
    static POOL: LazyLock<rayon::ThreadPool> = LazyLock::new(|| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap()
    });
    let Ok(files) = AdapterFiles::open(FOLDER.with("adapter_config.json", bytes)) else {
        return;
    };
    let data = |record: dlc::checkpoint::TensorRecord| {
        record.expr().map(|data| AdapterTensor {
            shape: record.shape,
            data,
        })
    };
    let (Some(config), name) = (files.config, files.name) else {
        return;
    };
    let tensors: Option<BTreeMap<_, _>> = files
        .tensors
        .into_iter()
        .map(|(name, record)| Some((name, data(record)?)))
        .collect();
    let adapters = tensors.map(|tensors| Adapter {
        name,
        config_file: "adapter_config.json".into(),
        tensors_file: "adapter_model.safetensors".into(),
        weight: 1.0,
        config,
        alphas: None,
        tensors,
        part: None,
    });
    let sources = Sources {
        adapters: adapters.as_slice(),
        ..Sources::NONE
    };
    let mut cx = PassContext {
        progress: &(),
        cache: None,
        module_key: String::new(),
        pool: &POOL,
    };
    if let Ok(pass) = MergeAdapter::new(MergeAdapterOptions::default(), &sources) {
        let _ = pass.run(&mut BASE.clone(), &mut cx);
    }
}

/// A pipeline file of `dlc compile --config`.
fn pipeline(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new(|_| ()));
    if let Ok(config) =
        PipelineConfig::read(&FOLDER.with("pipeline.yaml", bytes).join("pipeline.yaml"))
    {
        let _ = config.pass_specs();
    }
}

/// `tokenizer.json`.
fn tokenizer(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new(|_| ()));
    let Ok(tokenizer) =
        TextTokenizer::load(&FOLDER.with("tokenizer.json", bytes).join("tokenizer.json"))
    else {
        return;
    };
    for text in [
        "In the beginning",
        "aaaa bbbb\n\n  é 漢字 \u{1F600} <|end|> 0123",
        "",
    ] {
        let tokens = tokenizer.encode(text, true).unwrap_or_default();
        let mut stream = tokenizer.stream();
        let _ = stream.push(&tokens);
        let _ = stream.finish();
        let _ = tokenizer.analyse(text);
    }
}

/// `tokenizer.model`, `spm.model` and `vocab.txt`.
fn vocabulary(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new(|_| ()));
    for (class, file) in [
        ("LlamaTokenizer", "tokenizer.model"),
        ("GemmaTokenizer", "tokenizer.model"),
        ("DebertaV2Tokenizer", "spm.model"),
        ("BertTokenizer", "vocab.txt"),
    ] {
        let mut sources = dlc_tokenizer::Sources::default();
        let config = &mut sources.files.config;
        config.insert("tokenizer_class".to_owned(), class.into());
        sources.vocabulary.insert(file.to_owned(), bytes.to_vec());
        if let Ok(made) = dlc_tokenizer::convert(&sources) {
            let json = made.tokenizer.to_string();
            let path = FOLDER
                .with("tokenizer.json", json.as_bytes())
                .join("tokenizer.json");
            if let Ok(tokenizer) = TextTokenizer::load(&path) {
                let _ = tokenizer.encode("aaaa bbbb\n\n  \u{e9} \u{6f22} <s>", true);
            }
        }
    }
}

/// `chat_template.jinja`.
fn template(bytes: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
        Folder::new(|path| {
            copy(
                "tiny-llama/tokenizer_config.json",
                &path.join("tokenizer_config.json"),
            );
        })
    });
    let Ok(template) = ChatTemplate::load(FOLDER.with("chat_template.jinja", bytes)) else {
        return;
    };
    let turns = [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi!"),
        ("user", "a < b & é"),
    ];
    let turns: Vec<ChatMessage> = turns
        .iter()
        .map(|(role, content)| ChatMessage::new(*role, *content))
        .collect();
    let _ = template.render(&turns, true, UNIX_EPOCH);
}
