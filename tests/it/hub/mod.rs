//! Names of repositories of the Hub, against a server on this machine: what is downloaded, what the
//! cache looks like after it.

mod failing;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use crate::command::{Outcome, Shell, contents};
use crate::common::fixture;
use crate::common::hub::{COMMIT, HubServer, Reply, Seen, etag};

const TINY: &str = "org/tiny";
/// What no server may see but the Hub, and nobody on the screen.
const TOKEN: &str = "hf_secretsecret";
const WEIGHTS: &str = "model.safetensors";

/// A shell whose Hub is a server of its own.
struct Machine {
    shell: Shell,
    server: HubServer,
}

impl Machine {
    /// With tiny-llama as `org/tiny`, and the other things that repositories have.
    fn new() -> Self {
        let (shell, server) = (Shell::new(), HubServer::new());
        server.add_folder(TINY, &fixture("tiny-llama"));
        for name in [
            "README.md",
            ".gitattributes",
            "pytorch_model.bin",
            "tf_model.h5",
            "flax_model.msgpack",
            "onnx/model.onnx",
            "tiny.Q4_K_M.gguf",
            "model.fp16.safetensors",
            "training_args.bin",
        ] {
            server.add(TINY, name, name);
        }
        Self { shell, server }
    }

    fn cache(&self) -> PathBuf {
        self.shell.path("hf/hub")
    }

    fn folder(&self, repository: &str) -> PathBuf {
        let name = repository.replace('/', "--");
        self.cache().join(format!("models--{name}"))
    }

    fn command(&self, args: &[&str], variables: &[(&str, &str)]) -> std::process::Command {
        let mut command = self.shell.command(args);
        command
            .env("HF_HOME", self.shell.path("hf"))
            .env("HF_ENDPOINT", &self.server.url)
            .envs(variables.iter().copied());
        command
    }

    fn run_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Outcome {
        let output = self.command(args, variables).output().unwrap();
        self.shell.outcome(args, &output)
    }

    fn run(&self, args: &[&str]) -> Outcome {
        self.run_with(args, &[])
    }

    fn ok(&self, args: &[&str]) -> Outcome {
        let outcome = self.run(args);
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        outcome
    }

    /// What is said of a command that the user's input ends.
    fn fails(&self, args: &[&str], variables: &[(&str, &str)], parts: &[&str]) -> String {
        let outcome = self.run_with(args, variables);
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        for part in parts {
            assert!(
                outcome.stderr.contains(part),
                "{part}: {}",
                outcome.transcript()
            );
        }
        assert!(
            !outcome.transcript().contains(TOKEN),
            "{}",
            outcome.transcript()
        );
        outcome.stderr
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args, &[])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// The names of the files that were downloaded, each once.
fn downloaded(seen: &[Seen]) -> Vec<String> {
    let gets = seen
        .iter()
        .filter(|seen| seen.method == "GET" && !seen.elsewhere);
    let mut names: Vec<String> = gets
        .filter_map(|seen| {
            Some(
                seen.path
                    .split_once("/resolve/")?
                    .1
                    .split_once('/')?
                    .1
                    .to_owned(),
            )
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The files below a folder, links to files among them.
fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(Result::unwrap)
    {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            names.extend(
                files(&entry.path())
                    .iter()
                    .map(|inner| format!("{name}/{inner}")),
            );
        } else {
            names.push(name);
        }
    }
    names.sort();
    names
}

fn source_name(bundle: &Path) -> String {
    let manifest = fs::read_to_string(bundle.join("dlc.yaml")).unwrap();
    let name = manifest
        .lines()
        .skip_while(|line| *line != "source:")
        .nth(1)
        .unwrap();
    name.trim_start_matches("  name: ").to_owned()
}

#[test]
fn a_name_is_downloaded_once_and_compiled_like_its_folder() {
    let machine = Machine::new();
    let outcome = machine.ok(&["compile", TINY]);
    let line = "downloading org/tiny@main to [TMP]/hf/hub: 5 files, 5 MB\n";
    assert!(outcome.stderr.contains(line), "{}", outcome.transcript());
    assert_eq!(outcome.stdout, "tiny-dlc\n");
    let needed = [
        "config.json",
        "generation_config.json",
        WEIGHTS,
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(downloaded(&machine.server.seen()), needed);
    // Only the name is another.
    machine
        .shell
        .ok(&["compile", "fixtures/tiny-llama", "-o", "local"]);
    let bundle = |name: &str| {
        let files = contents(&machine.shell.path(name)).into_iter();
        let named = |(file, bytes): (String, Vec<u8>)| {
            let text = String::from_utf8_lossy(&bytes).replace("tiny-llama", "org/tiny@main");
            (file, text)
        };
        files.map(named).collect::<Vec<_>>()
    };
    assert!(bundle("tiny-dlc") == bundle("local"));
    assert_eq!(
        source_name(&machine.shell.path("tiny-dlc")),
        "org/tiny@main"
    );
    // Nothing is asked any more, and nothing is needed.
    machine.ok(&["compile", TINY, "-o", "again"]);
    machine.ok(&["inspect", TINY]);
    machine.ok(&["diff", TINY, "fixtures/tiny-llama", "--exit-code"]);
    machine.ok(&["verify", "again", "--source", TINY]);
    assert_eq!(machine.server.seen(), [] as [Seen; 0]);
}

#[test]
fn the_cache_is_laid_out_as_other_tools_expect_it() {
    let machine = Machine::new();
    machine.ok(&["inspect", TINY]);
    let folder = machine.folder(TINY);
    assert_eq!(
        fs::read_to_string(folder.join("refs/main")).unwrap(),
        COMMIT
    );
    let snapshot = folder.join("snapshots").join(COMMIT);
    let mut blobs = Vec::new();
    for (name, content) in contents(&fixture("tiny-llama")) {
        let etag = etag(&name, &content);
        let link = fs::read_link(snapshot.join(&name)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(&etag));
        assert_eq!(fs::read(snapshot.join(&name)).unwrap(), content);
        blobs.push(etag);
    }
    blobs.sort();
    assert_eq!(files(&folder.join("blobs")), blobs);
    let absent = files(&folder.join(".no_exist").join(COMMIT));
    assert!(absent.contains(&"additional_chat_templates/default.jinja".into()));
    assert!(absent.contains(&"vocab.json".into()) && !absent.contains(&"config.json".into()));
    let locks = files(&machine.cache().join(".locks/models--org--tiny"));
    assert_eq!(
        locks,
        blobs
            .iter()
            .map(|etag| format!("{etag}.lock"))
            .collect::<Vec<_>>()
    );
    assert!(machine.cache().join("CACHEDIR.TAG").exists());
    assert_eq!(machine.shell.listing(), ["hf"]);
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let machine = Machine::new();
    machine.server.add_revision("v1.0");
    machine.server.add_revision("refs/pr/1");
    for revision in ["v1.0", "refs/pr/1", COMMIT] {
        let name = format!("{TINY}@{revision}");
        machine.ok(&["compile", &name, "-o", "out", "--force"]);
        assert_eq!(source_name(&machine.shell.path("out")), name);
    }
    // The files were the same.
    let gets = machine.server.seen();
    assert_eq!(gets.iter().filter(|seen| seen.elsewhere).count(), 1);
    machine.ok(&["inspect", &format!("{TINY}@refs/pr/1")]);
    assert_eq!(machine.server.seen(), [] as [Seen; 0]);
    machine.fails(
        &["inspect", &format!("{TINY}@v2")],
        &[],
        &["org/tiny@v2", "no branch, tag or commit v2 in org/tiny"],
    );
}

#[test]
fn paths_are_never_asked_of_the_hub() {
    let machine = Machine::new();
    for path in [
        "./org/tiny",
        "/org/tiny",
        "org/tiny/",
        "a/b/c",
        "nowhere",
        "org/model.safetensors",
        "org/model.gguf",
        "org/model.Q4_K_M.GGUF",
    ] {
        machine.fails(&["inspect", path], &[], &["doesn't exist"]);
    }
    let gguf = fs::read(fixture("gguf/llama.gguf")).unwrap();
    machine.shell.write("org/llama.gguf", gguf);
    machine.ok(&["inspect", "org/llama.gguf"]);
    machine.shell.copy(&fixture("tiny-llama"), TINY);
    machine.ok(&["compile", TINY, "-o", "out"]);
    assert_eq!(source_name(&machine.shell.path("out")), "tiny");
    assert_eq!(machine.server.seen(), [] as [Seen; 0]);
    assert!(!machine.shell.path("hf").exists());
}

#[test]
fn a_pipeline_is_downloaded_with_the_parts_that_are_compiled() {
    let machine = Machine::new();
    let server = &machine.server;
    server.add_folder("org/sd", &fixture("pipelines/sd15"));
    for name in [
        "safety_checker/model.safetensors",
        "vae/diffusion_pytorch_model.bin",
    ] {
        server.add("org/sd", name, "no");
    }
    machine.ok(&["compile", "org/sd", "-o", "out"]);
    assert_eq!(
        downloaded(&machine.server.seen()),
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
    );
}

#[test]
fn both_text_encoders_of_a_pipeline_are_downloaded_with_their_tokenizers() {
    let machine = Machine::new();
    machine
        .server
        .add_folder("org/xl", &fixture("pipelines/sdxl"));
    machine.ok(&["compile", "org/xl", "-o", "out"]);
    let seen = downloaded(&machine.server.seen());
    for folder in ["text_encoder", "text_encoder_2"] {
        assert!(seen.contains(&format!("{folder}/model.safetensors")));
    }
    for folder in ["tokenizer", "tokenizer_2"] {
        assert!(seen.contains(&format!("{folder}/tokenizer_config.json")));
    }
}

#[test]
fn shards_steps_and_components_are_found_where_they_lie() {
    let machine = Machine::new();
    let server = &machine.server;
    server.add_folder("org/shards", &fixture("cases/index-with-stale-key"));
    server.add_folder("org/sentence", &fixture("cases/sentence-in-hub-cache"));
    server.add("org/sentence", "1_Pooling/pytorch_model.bin", "no");
    for (name, from) in [
        ("config.json", "goldens/deberta-v3/config.json"),
        (WEIGHTS, "goldens/deberta-v3/model.safetensors"),
        ("spm.model", "tokenizers/deberta-v2/spm.model"),
        (
            "tokenizer_config.json",
            "tokenizers/deberta-v2-bare/tokenizer_config.json",
        ),
    ] {
        server.add("org/vocabulary", name, fs::read(fixture(from)).unwrap());
    }
    server.add_folder("org/digits", &fixture("digits-dit"));
    server.add(
        "org/digits",
        "model_index.json",
        r#"{"_class_name": "DDPMPipeline"}"#,
    );
    server.add(
        "org/digits",
        "vae/diffusion_pytorch_model.safetensors",
        "no",
    );
    server.add(
        "org/digits",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "no",
    );
    for (name, needed) in [
        (
            "org/shards",
            &[
                "config.json",
                "generation_config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ][..],
        ),
        (
            "org/sentence",
            &[
                "1_Pooling/config.json",
                "config.json",
                WEIGHTS,
                "modules.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ],
        ),
        (
            "org/vocabulary",
            &["config.json", WEIGHTS, "spm.model", "tokenizer_config.json"],
        ),
        (
            "org/digits",
            &[
                "model_index.json",
                "scheduler/scheduler_config.json",
                "transformer/config.json",
                "transformer/diffusion_pytorch_model.safetensors",
            ],
        ),
    ] {
        machine.ok(&["compile", name, "-o", "out", "--force"]);
        assert_eq!(downloaded(&machine.server.seen()), needed, "{name}");
        assert_eq!(
            source_name(&machine.shell.path("out")),
            format!("{name}@main")
        );
        machine.ok(&["compile", name, "-o", "out", "--force"]);
        assert_eq!(machine.server.seen(), [] as [Seen; 0], "{name}");
    }
    let pooling = machine
        .folder("org/sentence")
        .join(format!("snapshots/{COMMIT}/1_Pooling/config.json"));
    assert!(
        fs::read_link(pooling)
            .unwrap()
            .starts_with("../../../blobs")
    );
}

#[test]
fn adapters_have_names_too() {
    let machine = Machine::new();
    let server = &machine.server;
    server.add_folder("org/base", &fixture("adapters/lora-llama"));
    server.add_folder("org/lora", &fixture("adapters/lora-llama/adapter"));
    server.add("org/lora", "README.md", "no");
    server.add("org/lora", "checkpoint-10/adapter_model.safetensors", "no");
    machine.ok(&[
        "merge",
        "org/base",
        "--adapter",
        "org/lora=0.5",
        "-o",
        "merged",
    ]);
    machine.ok(&[
        "compile",
        "org/base",
        "--adapter",
        "org/lora@main",
        "-o",
        "out",
    ]);
    let needed = ["adapter_config.json", "adapter_model.safetensors"];
    let seen: Vec<Seen> = server
        .seen()
        .into_iter()
        .filter(|seen| seen.path.contains("/lora/"))
        .collect();
    assert_eq!(downloaded(&seen), needed);
    let manifest = fs::read_to_string(machine.shell.path("out/dlc.yaml")).unwrap();
    assert!(
        manifest.contains("adapter 0, 1 x org/lora@main: adapter_model.safetensors"),
        "{manifest}"
    );
    server.add("org/pickled", "adapter_config.json", "{}");
    server.add("org/pickled", "adapter_model.bin", "no");
    machine.fails(
        &["merge", "org/base", "--adapter", "org/pickled"],
        &[],
        &["org/pickled@main: holds its weights as pickle"],
    );
    machine.fails(
        &["compile", "org/lora"],
        &[],
        &["org/lora@main: is an adapter, not a model"],
    );
}

#[test]
fn what_cannot_be_read_is_refused_before_anything_is_downloaded() {
    let machine = Machine::new();
    let server = &machine.server;
    for (name, files, expected, code) in [
        (
            "pickled",
            &["pytorch_model.bin"][..],
            "in PyTorch's pickle format only",
            3,
        ),
        (
            "gguf",
            &["tiny.Q4_0.gguf"],
            "but GGUF. Name that file: DIR/tiny.Q4_0.gguf after `hf download org/gguf --local-dir DIR`",
            2,
        ),
        (
            "other",
            &["consolidated.safetensors"],
            "Name one file, such as DIR/consolidated.safetensors after `hf download org/other",
            2,
        ),
        ("empty", &["README.md"], "Name another repository", 2),
        (
            "two",
            &["unet/config.json", "transformer/config.json"],
            "Name the folder of one, such as DIR/transformer after `hf download org/two",
            2,
        ),
    ] {
        let name = format!("org/{name}");
        server.add(&name, "config.json", "{}");
        for file in files {
            server.add(&name, file, "no");
        }
        let outcome = machine.run(&["compile", &name]);
        let named = outcome.stderr.contains(&format!("error: {name}@main"));
        assert!(
            named && outcome.stderr.contains(expected),
            "{}",
            outcome.transcript()
        );
        assert_eq!(outcome.code, Some(code), "{}", outcome.transcript());
        assert_eq!(server.seen().len(), 1);
    }
    server.add_revision("refs/pr/1");
    machine.fails(
        &["compile", "org/two@refs/pr/1"],
        &[],
        &["DIR/transformer after `hf download org/two --revision refs/pr/1 --local-dir DIR`"],
    );
    server.seen();
    // Nor is anything downloaded for what can't be done.
    machine.shell.write("full/file", "");
    machine.fails(&["compile", TINY, "-o", "full"], &[], &["full"]);
    machine.fails(&["compile", TINY, "--pass", "nonsense"], &[], &["nonsense"]);
    machine.fails(
        &["merge", TINY, "--adapter", TINY, "-o", "full"],
        &[],
        &["full"],
    );
    assert_eq!(server.seen(), [] as [Seen; 0]);
    assert!(!machine.shell.path("hf").exists());
}

#[test]
fn the_token_is_for_the_hub_alone_and_is_never_printed() {
    let machine = Machine::new();
    let hub = machine.server.url.clone();
    let needs_token = move |seen: &Seen, reply: Reply| {
        let shown = seen.header("authorization") == Some(format!("Bearer {TOKEN}").as_str());
        if shown || seen.elsewhere {
            reply
        } else {
            Reply::new("401 Unauthorized").header("X-Error-Code", "RepoNotFound")
        }
    };
    machine.server.meddle(needs_token);
    let compile = ["compile", TINY, "--verbose"];
    machine.fails(
        &compile,
        &[],
        &["org/tiny@main", "401", "HF_TOKEN", "no such folder"],
    );
    machine.fails(
        &compile,
        &[("HF_TOKEN", "hf_other")],
        &["the present one may not"],
    );
    machine.fails(
        &compile,
        &[("HF_TOKEN", &format!("{TOKEN} x"))],
        &["HF_TOKEN holds no token"],
    );
    machine.server.seen();
    let outcome = machine.run_with(&compile, &[("HF_TOKEN", TOKEN)]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(!outcome.transcript().contains(TOKEN));
    let seen = machine.server.seen();
    assert!(seen.iter().any(|seen| seen.elsewhere));
    for seen in seen {
        assert_eq!(
            seen.header("authorization").is_some(),
            !seen.elsewhere,
            "{seen:?} {hub}"
        );
    }
    // A token that `hf auth login` saved.
    fs::remove_dir_all(machine.cache()).unwrap();
    machine.shell.write("hf/token", format!("{TOKEN}\n"));
    machine.ok(&["inspect", TINY]);
    fs::remove_dir_all(machine.cache()).unwrap();
    machine.fails(
        &["inspect", TINY],
        &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")],
        &["401"],
    );
}

#[test]
fn offline_the_cache_is_all_there_is() {
    let machine = Machine::new();
    let offline = [("HF_HUB_OFFLINE", "1")];
    machine.fails(
        &["inspect", TINY],
        &offline,
        &[
            "org/tiny@main is neither a folder here nor whole in the cache [TMP]/hf/hub",
            "HF_HUB_OFFLINE",
            "hf download",
        ],
    );
    machine.ok(&["inspect", TINY]);
    machine.server.seen();
    // As other tools leave it, which don't note what there isn't.
    fs::remove_dir_all(machine.folder(TINY).join(".no_exist")).unwrap();
    assert_eq!(machine.run_with(&["inspect", TINY], &offline).code, Some(0));
    assert_eq!(machine.server.seen(), [] as [Seen; 0]);
    // Without a network, too, and with a word.
    let outcome = machine.run_with(&["inspect", TINY], &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    let warned =
        outcome.stderr.contains("warning: ") && outcome.stderr.contains("What the cache has");
    assert!(
        outcome.code == Some(0) && warned,
        "{}",
        outcome.transcript()
    );
    machine.ok(&["inspect", TINY]);
    // One list of files, after which it is known.
    assert_eq!(machine.server.seen().len(), 1);
    machine.ok(&["inspect", TINY]);
    assert_eq!(machine.server.seen(), [] as [Seen; 0]);
    let weights = machine
        .folder(TINY)
        .join(format!("snapshots/{COMMIT}/{WEIGHTS}"));
    fs::remove_file(weights).unwrap();
    machine.fails(&["inspect", TINY], &offline, &["nor whole in the cache"]);
    // The blob is there still.
    machine.ok(&["inspect", TINY]);
    assert_eq!(downloaded(&machine.server.seen()), Vec::<String>::new());
}

#[test]
fn a_folder_of_the_cache_is_a_checkpoint_with_a_name() {
    let machine = Machine::new();
    machine.ok(&["inspect", TINY]);
    machine.server.seen();
    for path in [
        "hf/hub/models--org--tiny".to_owned(),
        format!("hf/hub/models--org--tiny/snapshots/{COMMIT}"),
    ] {
        let outcome = machine.shell.ok(&["compile", &path]);
        assert_eq!(outcome.stdout, "tiny-dlc\n");
        assert_eq!(
            source_name(&machine.shell.path("tiny-dlc")),
            "org/tiny@main"
        );
        fs::remove_dir_all(machine.shell.path("tiny-dlc")).unwrap();
    }
    let reference = machine.folder(TINY).join("refs/main");
    fs::remove_file(&reference).unwrap();
    machine
        .shell
        .ok(&["compile", "hf/hub/models--org--tiny", "-o", "out"]);
    assert_eq!(
        source_name(&machine.shell.path("out")),
        format!("org/tiny@{COMMIT}")
    );
    fs::create_dir(machine.folder(TINY).join("snapshots/other")).unwrap();
    machine.fails(
        &["compile", "hf/hub/models--org--tiny"],
        &[],
        &["several snapshots", "Name one"],
    );
}

#[test]
fn two_runs_at_once_download_once() {
    let machine = Machine::new();
    machine.server.meddle(|seen, reply| {
        if seen.elsewhere {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        reply
    });
    let runs = [
        machine.start(&["inspect", TINY]),
        machine.start(&["inspect", TINY]),
    ];
    for run in runs {
        let outcome = machine.shell.outcome(&[], &run.wait_with_output().unwrap());
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    }
    let seen = machine.server.seen();
    assert_eq!(seen.iter().filter(|seen| seen.elsewhere).count(), 1);
}
