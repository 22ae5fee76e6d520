//! What files say, what is refused, and what is named.

use serde_json::json;

use super::*;

fn parse(values: &Value) -> Result<GenerationConfig> {
    GenerationConfig::parse(
        Path::new("generation_config.json"),
        values.as_object().unwrap(),
        100,
    )
}

#[test]
fn null_and_absent_are_what_transformers_does_without_a_value() {
    let keys = keys_read();
    let nulls: Map<String, Value> = keys
        .iter()
        .map(|key| ((*key).to_owned(), Value::Null))
        .collect();
    assert_eq!(parse(&nulls.into()).unwrap(), GenerationConfig::default());
    assert_eq!(parse(&json!({})).unwrap(), GenerationConfig::default());
    let sampling = GenerationConfig::default().sampling.options;
    assert_eq!(
        (sampling.top_k, sampling.temperature, sampling.top_p),
        (50, 1.0, 1.0)
    );
}

fn keys_read() -> Vec<&'static str> {
    super::keys::READ.to_vec()
}

#[test]
fn values_are_read() {
    let config = parse(&json!({
        "repetition_penalty": 1.5, "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [7, 8]], "suppress_tokens": [-1, 4], "begin_suppress_tokens": 9,
        "min_length": 3, "min_new_tokens": 2, "forced_bos_token_id": 1, "forced_eos_token_id": [2, 3], "sequence_bias": [[[1, 2], -2.5], [[1, 2], 3]],
        "exponential_decay_length_penalty": [4, 1.5], "max_length": 60, "max_new_tokens": 30, "do_sample": true, "temperature": 0.5, "top_k": 0,
        "top_p": 0.75, "min_p": 0.125, "typical_p": 0.5, "epsilon_cutoff": 0.25, "eta_cutoff": 0.5, "top_h": 0.5, "stop_strings": "END",
        "renormalize_logits": true, "remove_invalid_values": true, "encoder_repetition_penalty": 2, "encoder_no_repeat_ngram_size": 4
    }));
    let config = config.unwrap();
    let expected = LogitsProcessors {
        ends: vec![],
        sequence_bias: vec![(vec![1, 2], 3.0)],
        encoder_repetition_penalty: 2.0,
        repetition_penalty: 1.5,
        no_repeat_ngram_size: 3,
        encoder_no_repeat_ngram_size: 4,
        bad_words_ids: vec![vec![5], vec![7, 8]],
        min_length: 3,
        min_new_tokens: Some(2),
        forced_bos_token_id: Some(1),
        forced_eos_token_id: vec![2, 3],
        remove_invalid_values: true,
        exponential_decay_length_penalty: Some((4, 1.5)),
        suppress_tokens: vec![4],
        begin_suppress_tokens: vec![9],
        ..LogitsProcessors::default()
    };
    assert_eq!(config.processors, expected);
    assert_eq!(
        (
            config.max_length,
            config.max_new_tokens,
            config.stop_strings,
            config.unheeded
        ),
        (Some(60), Some(30), vec!["END".into()], vec![])
    );
    let options = SamplingOptions {
        temperature: 0.5,
        top_h: Some(0.5),
        top_k: 0,
        top_p: 0.75,
        min_p: 0.125,
        typical_p: 0.5,
        epsilon_cutoff: 0.25,
        eta_cutoff: 0.5,
        seed: 0,
    };
    assert_eq!(
        config.sampling,
        SamplingDefaults {
            do_sample: true,
            options
        }
    );
}

#[test]
fn what_is_out_of_range_is_refused_with_file_and_key() {
    let long: Vec<u32> = vec![1; (1 << 16) + 1];
    for (key, value) in [
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(-1.5)),
        ("repetition_penalty", json!(1e300)),
        ("repetition_penalty", json!("1.1")),
        ("no_repeat_ngram_size", json!(-1)),
        ("no_repeat_ngram_size", json!(2.5)),
        ("bad_words_ids", json!([5])),
        ("bad_words_ids", json!([[]])),
        ("bad_words_ids", json!([[-5]])),
        (
            "bad_words_ids",
            json!(long.iter().map(|&id| [id]).collect::<Vec<_>>()),
        ),
        ("suppress_tokens", json!(long)),
        ("suppress_tokens", json!([1.5])),
        ("suppress_tokens", json!([5_000_000_000u64])),
        ("sequence_bias", json!([[[1], "a"]])),
        ("sequence_bias", json!({"a": 1})),
        ("min_length", json!(true)),
        ("max_length", json!(0)),
        ("max_new_tokens", json!(1e12)),
        ("forced_bos_token_id", json!(100)),
        ("forced_eos_token_id", json!([2, 100])),
        ("exponential_decay_length_penalty", json!([1])),
        ("exponential_decay_length_penalty", json!([1, -1])),
        ("do_sample", json!("yes")),
        ("temperature", json!(-0.1)),
        ("top_p", json!(1.5)),
        ("min_p", json!(2)),
        ("stop_strings", json!([""])),
    ] {
        let error = parse(&json!({key: value}))
            .map(|_| key)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("generation_config.json: `{key}` is ")) && error.len() < 300,
            "{error}"
        );
    }
}

#[test]
fn what_is_not_heeded_is_named_and_nothing_else() {
    let named = |values: Value| parse(&values).unwrap().unheeded;
    assert_eq!(
        named(json!({"num_beams": 4, "penalty_alpha": 0.6})),
        [
            "`num_beams` (beam search)",
            "`penalty_alpha` (contrastive search)"
        ]
    );
    assert_eq!(
        named(json!({"chat_format": "chatml\u{1b}", "\u{1b}[2J": 1})),
        [
            "`chat_format` (unknown to dlc)",
            "`\\u{1b}[2J` (unknown to dlc)"
        ]
    );
    let neutral = json!({
        "num_beams": 1, "guidance_scale": 1.0, "penalty_alpha": 0.0, "use_cache": true, "transformers_version": "5", "length_penalty": 2.0,
        "watermarking_config": null, "bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0, "renormalize_logits": true
    });
    assert_eq!(named(neutral), Vec::<String>::new());
    let foreign = parse(&json!({"bad_words_ids": [[100], [7]], "suppress_tokens": [100]})).unwrap();
    assert_eq!(foreign.processors.bad_words_ids, [[7]]);
    assert!(
        foreign.unheeded.len() == 1
            && foreign.unheeded[0].starts_with("1 of the sequences of bad_words_ids"),
        "{:?}",
        foreign.unheeded
    );
}
