//! How a checkpoint wants its texts written: what goes into `genai_config.json`, and what isn't
//! heeded.

use dlc_exporters::SearchDefaults;
use dlc_ir::{ModelInfo, Task};
use dlc_methods::speculation::{LogitsProcessors, SamplingOptions};
use dlc_runtime::GenerationConfig;

use super::error::PipelineError;
use crate::checkpoint::Checkpoint;

/// What a checkpoint's `generation_config.json` says.
#[derive(Debug, Default)]
pub(super) struct Generation {
    pub search: SearchDefaults,
    /// What a user should know of it, one sentence each.
    pub warnings: Vec<String>,
}

/// Reads the file, if there is one and the model writes texts. Refuses values out of range.
/// `drafts` says whether the bundle has a draft.
pub(super) fn generation(
    checkpoint: &Checkpoint,
    model: &ModelInfo,
    drafts: bool,
) -> Result<Generation, PipelineError> {
    if model.task != Task::TextGeneration {
        return Ok(Generation::default());
    }
    let path = checkpoint.folder().join("generation_config.json");
    let config = if path.is_file() {
        GenerationConfig::read(&path, model.vocab_size)?
    } else {
        GenerationConfig::default()
    };
    let mut warnings = Vec::new();
    if !config.unheeded.is_empty() {
        warnings.push(format!(
            "generation_config.json: dlc doesn't heed {}",
            config.unheeded.join(", ")
        ));
    }
    warnings.extend(foreign_tokens(model));
    let unsaid = unsaid(&config);
    if !unsaid.is_empty() {
        warnings
            .push(format!("genai_config.json can't express {} of generation_config.json: onnxruntime-genai decodes without them", unsaid.join(", ")));
    }
    let search = search(&config);
    if drafts && !search.allows_speculation() {
        warnings.push("onnxruntime-genai takes no draft beside no_repeat_ngram_size: genai_config.json leaves the draft out".to_owned());
    }
    Ok(Generation { search, warnings })
}

fn search(config: &GenerationConfig) -> SearchDefaults {
    let GenerationConfig {
        processors,
        sampling,
        ..
    } = config;
    SearchDefaults {
        do_sample: sampling.do_sample,
        temperature: sampling.options.temperature,
        top_k: sampling.options.top_k,
        top_p: sampling.options.top_p,
        repetition_penalty: processors.repetition_penalty,
        no_repeat_ngram_size: processors.no_repeat_ngram_size,
        min_length: if processors.min_new_tokens.is_some() {
            0
        } else {
            processors.min_length
        },
    }
}

/// Tokens that the model is said to begin, end or pad texts with and can't write.
fn foreign_tokens(model: &ModelInfo) -> Option<String> {
    let named = model
        .bos_token_id
        .iter()
        .chain(&model.eos_token_ids)
        .chain(&model.pad_token_id);
    let mut foreign: Vec<u32> = named
        .copied()
        .filter(|&id| id as usize >= model.vocab_size)
        .collect();
    foreign.sort_unstable();
    foreign.dedup();
    let ids: Vec<String> = foreign.iter().map(u32::to_string).collect();
    let (ids, vocab) = (ids.join(", "), model.vocab_size);
    (!foreign.is_empty())
        .then(|| format!("tokens that begin, end or pad texts aren't among the model's {vocab}: {ids}; genai_config.json leaves them out"))
}

/// The keys in force that `genai_config.json` can't carry.
fn unsaid(config: &GenerationConfig) -> Vec<&'static str> {
    let (p, neutral) = (&config.processors, LogitsProcessors::default());
    let (s, all) = (&config.sampling.options, SamplingOptions::default());
    let draws = config.sampling.do_sample;
    let differs = |a: f32, b: f32| (a - b).abs() > 0.0;
    let keys = [
        ("sequence_bias", !p.sequence_bias.is_empty()),
        (
            "encoder_repetition_penalty",
            differs(
                p.encoder_repetition_penalty,
                neutral.encoder_repetition_penalty,
            ),
        ),
        (
            "encoder_no_repeat_ngram_size",
            p.encoder_no_repeat_ngram_size > 0,
        ),
        ("bad_words_ids", !p.bad_words_ids.is_empty()),
        ("min_new_tokens", p.min_new_tokens.is_some_and(|n| n > 0)),
        ("forced_bos_token_id", p.forced_bos_token_id.is_some()),
        ("forced_eos_token_id", !p.forced_eos_token_id.is_empty()),
        ("remove_invalid_values", p.remove_invalid_values),
        (
            "exponential_decay_length_penalty",
            p.exponential_decay_length_penalty.is_some(),
        ),
        ("suppress_tokens", !p.suppress_tokens.is_empty()),
        ("begin_suppress_tokens", !p.begin_suppress_tokens.is_empty()),
        ("stop_strings", !config.stop_strings.is_empty()),
        ("top_h", draws && s.top_h.is_some()),
        ("min_p", draws && differs(s.min_p, all.min_p)),
        ("typical_p", draws && differs(s.typical_p, all.typical_p)),
        (
            "epsilon_cutoff",
            draws && differs(s.epsilon_cutoff, all.epsilon_cutoff),
        ),
        ("eta_cutoff", draws && differs(s.eta_cutoff, all.eta_cutoff)),
    ];
    keys.into_iter()
        .filter(|(_, in_force)| *in_force)
        .map(|(key, _)| key)
        .collect()
}
