//! Every key of every golden's configuration, deleted and null, is read as transformers and
//! diffusers read it: `fixtures/configurations.json`, which `make_configurations.py` recorded.

use std::fs;
use std::path::Path;

use dlc_errors::{Fault, Faulty};
use dlc_ir::ModelInfo;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::{ImportError, ImportOptions, import};
use super::{Folder, fixture, import_folder};
use crate::checkpoint::Checkpoint;

/// Keys that no graph depends on: null in them is the library's business alone.
const UNREAD: [&str; 30] = [
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "dropout_rate",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "initializer_cutoff_factor",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "mlp_dropout",
    "output_router_logits",
    "pooler_dropout",
    "qa_dropout",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "seq_classif_dropout",
    "summary_activation",
    "summary_first_dropout",
    "summary_last_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "use_cache",
];

/// What the library says of one configuration.
#[derive(Debug, Deserialize)]
struct Answer {
    golden: String,
    key: String,
    how: String,
    /// The keys that then have another value than in the golden.
    values: Option<Map<String, Value>>,
    error: Option<String>,
}

/// The graph and the facts, or the error.
fn read(folder: Folder, config: &Map<String, Value>) -> (Folder, Read) {
    let folder = folder.with(
        "config.json",
        Value::from(config.clone()).to_string().as_bytes(),
    );
    let module = import_folder(&folder)
        .map(|module| (module.graphs[0].to_text(&module.weights), module.model));
    (folder, module)
}

type Read = Result<(String, ModelInfo), ImportError>;

/// Every answer: of whole models, or of parts of pipelines, whose names have a slash.
fn answers(of_parts: bool) -> Vec<Answer> {
    let text = fs::read(fixture("configurations.json")).expect("fixture");
    let mut answers: Vec<Answer> = serde_json::from_slice(&text).expect("answers");
    answers.retain(|answer| answer.golden.contains('/') == of_parts);
    answers
}

impl Answer {
    /// The golden's configuration as the question has it, and as the library resolves it.
    fn asked(&self, config: &Map<String, Value>) -> [Map<String, Value>; 2] {
        let (mut changed, mut explicit) = (config.clone(), config.clone());
        changed.remove(&self.key);
        if self.how == "null" {
            changed.insert(self.key.clone(), Value::Null);
        }
        explicit.extend(self.values.clone().unwrap_or_default());
        [changed, explicit]
    }

    /// Where what was read of the two differs, if it does.
    fn differs(&self, found: Read, expected: Read) -> Option<String> {
        let fits = match (&found, &expected) {
            (Ok(found), Ok(expected)) => {
                found == expected && (self.error.is_none() || UNREAD.contains(&self.key.as_str()))
            }
            (Err(_), Err(_)) => true,
            (Err(error), Ok(_)) => self.error.is_some() && error.fault() == Fault::BadInput,
            (Ok(_), Err(_)) => false,
        };
        let [found, expected] = [found, expected]
            .map(|outcome| outcome.map_or_else(|error| error.to_string(), |(graph, _)| graph));
        let mut lines = found.lines().zip(expected.lines());
        (!fits).then(|| format!("{self:?}: {:?}", lines.find(|(a, b)| a != b)))
    }
}

fn none_differ(wrong: &[String], answers: &[Answer]) {
    let (some, all) = (wrong.len(), answers.len());
    assert!(wrong.is_empty(), "{some} of {all}:\n{}", wrong.join("\n"));
}

#[test]
fn every_key_deleted_and_null_is_read_as_the_library_reads_it() {
    let answers = answers(false);
    assert!(answers.len() > 1600, "{}", answers.len());
    let mut wrong = Vec::new();
    let (mut name, mut folder, mut config) = (String::new(), Folder::new(), Map::new());
    for answer in &answers {
        if answer.golden != name {
            name.clone_from(&answer.golden);
            // Beside generation_config.json the classes' own tokens don't count.
            folder = Folder::patched(&format!("goldens/{name}"), &json!({}))
                .with("generation_config.json", b"{}")
                .without("generation_config.json");
            config = serde_json::from_slice(
                &fs::read(folder.path().join("config.json")).expect("fixture"),
            )
            .expect("JSON");
        }
        let [changed, explicit] = answer.asked(&config);
        let (found, expected);
        (folder, found) = read(folder, &changed);
        (folder, expected) = read(folder, &explicit);
        wrong.extend(answer.differs(found, expected));
    }
    none_differ(&wrong, &answers);
}

#[test]
fn every_key_of_parts_deleted_and_null_is_read_as_the_library_reads_it() {
    let answers = answers(true);
    assert!(answers.len() > 120, "{}", answers.len());
    let mut wrong = Vec::new();
    let place = tempfile::tempdir().expect("a temporary folder");
    for answer in &answers {
        let (pipeline, part) = answer.golden.split_once('/').expect("a slash");
        let folder = place.path().join(pipeline);
        if !folder.exists() {
            copy(&fixture(&format!("pipelines/{pipeline}")), &folder);
        }
        let path = folder.join(part).join("config.json");
        let own = fs::read(&path).expect("fixture");
        let config: Map<String, Value> = serde_json::from_slice(&own).expect("JSON");
        let [found, expected] = answer.asked(&config).map(|config| {
            let text = Value::from(config).to_string();
            fs::write(&path, text).expect("the temporary folder is writable");
            let checkpoint = Checkpoint::open(&folder).expect("the pipeline opens");
            let module = import(&checkpoint, &ImportOptions::default())?;
            let graphs = module.graphs.iter();
            let texts: Vec<String> = graphs.map(|g| g.to_text(&module.weights)).collect();
            Ok((texts.concat(), module.model))
        });
        fs::write(&path, own).expect("the temporary folder is writable");
        wrong.extend(answer.differs(found, expected));
    }
    none_differ(&wrong, &answers);
}

/// Copies a folder, and those in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the temporary folder is writable");
    for entry in fs::read_dir(from).expect("fixture") {
        let path = entry.expect("fixture").path();
        let place = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &place);
        } else {
            fs::copy(&path, &place).expect("the temporary folder is writable");
        }
    }
}

/// As the first checkpoints on the hub have it, `rope_parameters` and `layer_types` unsaid.
#[test]
fn older_configurations_of_modernbert_say_the_same_in_other_keys() {
    let older = json!({
        "layer_types": null, "rope_parameters": null, "global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0, "position_embedding_type": "absolute", "layer_norm_eps": 1e-5, "reference_compile": true,
        "repad_logits_with_grad": false,
    });
    let read = |patch: &Value| {
        import_folder(&Folder::patched("goldens/modernbert", patch))
            .expect("imports")
            .graphs
            .remove(0)
    };
    let plain = read(&json!({}));
    assert_eq!(read(&older), plain);
    for (key, value) in [
        ("global_attn_every_n_layers", json!(2)),
        ("global_rope_theta", json!(500.0)),
        ("local_rope_theta", json!(500.0)),
    ] {
        let mut other = older.clone();
        other[key] = value;
        assert_ne!(read(&other), plain, "{key}");
    }
    let scaled =
        json!({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}});
    super::refuses(
        "a scaling",
        &Folder::patched("goldens/modernbert", &scaled),
        Fault::Unsupported,
        &["`rope_parameters.full_attention.rope_type`", "yarn"],
    );
}

#[test]
fn other_names_of_keys_are_read_as_transformers_reads_them() {
    let config =
        json!({"n_embd": null, "hidden_size": 48, "n_head": null, "num_attention_heads": 4});
    let [plain, other] = [json!({}), config].map(|patch| {
        import_folder(&Folder::patched("goldens/gpt2", &patch))
            .expect("imports")
            .graphs
            .remove(0)
    });
    assert_eq!(plain, other);
    let clash = Folder::patched("goldens/gpt2", &json!({"hidden_size": 64}));
    super::refuses(
        "two widths",
        &clash,
        Fault::BadInput,
        &["`hidden_size` is 64, but `n_embd`, which it stands for, is 48"],
    );
}
