//! The keys that dlc doesn't read: those that change no text, and those that would.

use serde_json::{Map, Value};

/// Keys that are read, here or by the importer.
pub(super) const READ: [&str; 29] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "do_sample",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "pad_token_id",
    "remove_invalid_values",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "typical_p",
];

/// Keys that change no text of a decoder whatever they say: bookkeeping, caches, outputs, how
/// drafts guess, settings of searches that are named by other keys, and logits scaled after the
/// last decision.
const HARMLESS: [&str; 33] = [
    "_commit_hash",
    "_from_model_config",
    "_name_or_path",
    "assistant_confidence_threshold",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "diversity_penalty",
    "early_stopping",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "renormalize_logits",
    "return_dict_in_generate",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
];

/// Keys that change texts, the values that don't, and what they ask for.
const UNHEEDED: [(&str, &[&str], &str); 13] = [
    ("assistant_early_exit", &[], "assisted generation"),
    ("constraints", &["[]"], "constrained beam search"),
    ("dola_layers", &[], "DoLa decoding"),
    ("force_words_ids", &["[]"], "constrained beam search"),
    ("guidance_scale", &["1", "1.0"], "classifier-free guidance"),
    ("max_time", &[], "a time limit"),
    ("num_beams", &["1"], "beam search"),
    ("num_return_sequences", &["1"], "several texts for a prompt"),
    ("penalty_alpha", &["0", "0.0"], "contrastive search"),
    ("speculation_type", &[], "assisted generation"),
    ("token_healing", &["false"], "token healing"),
    ("use_mtp", &["false"], "assisted generation"),
    ("watermarking_config", &[], "watermarks"),
];

/// What a file asks for and dlc doesn't do, a phrase for each key.
pub(super) fn unheeded(values: &Map<String, Value>) -> Vec<String> {
    let mut phrases = Vec::new();
    for (key, value) in values.iter().filter(|(key, value)| {
        !value.is_null() && !READ.contains(&key.as_str()) && !HARMLESS.contains(&key.as_str())
    }) {
        match UNHEEDED.iter().find(|(name, ..)| name == key) {
            Some((_, neutral, _)) if neutral.contains(&value.to_string().as_str()) => {}
            Some((_, _, what)) => phrases.push(format!("`{key}` ({what})")),
            None => phrases.push(format!(
                "`{}` (unknown to dlc)",
                key.escape_debug().take(60).collect::<String>()
            )),
        }
    }
    phrases
}
