//! What is said of the options of all passes is what holds for them.

use std::collections::BTreeSet;

use dlc_errors::{Fault, Faulty};
use dlc_passes::auto_draft::{AutoDraft, AutoDraftOptions};
use dlc_passes::dip_go::{DipGo, DipGoOptions};
use dlc_passes::fit_prune::{FitPrune, FitPruneOptions};
use dlc_passes::merge_adapter::{MergeAdapter, MergeAdapterOptions};
use dlc_passes::quantize_draft::{QuantizeDraft, QuantizeDraftOptions};
use dlc_passes::skip::{SamplerOptions, Skip, SkipOptions};
use dlc_passes::trim_head::{TrimHead, TrimHeadOptions};
use dlc_passes::{OptionInfo, PassError, Range, Sources, registry};
use serde_json::Value;

/// Every option of every pass.
fn all() -> impl Iterator<Item = (&'static str, OptionInfo)> {
    registry::PASSES
        .iter()
        .flat_map(|pass| (pass.options)().into_iter().map(|info| (pass.name, info)))
}

fn refusal(pass: &str, options: &str) -> String {
    let given = serde_yaml::from_str(&format!("{{{options}}}")).unwrap();
    let error = registry::build(pass, &given, Sources::NONE).expect_err(options);
    assert_eq!(error.fault(), Fault::BadInput);
    error.to_string()
}

#[test]
fn options_have_a_name_of_their_own_and_a_meaning() {
    let mut seen = BTreeSet::new();
    for (pass, info) in all() {
        assert!(seen.insert((pass, info.name)), "{pass}: {}", info.name);
        assert!(!info.meaning.is_empty(), "{pass}: {}", info.name);
    }
}

#[test]
fn defaults_are_those_of_the_pass_and_in_range() {
    for pass in registry::PASSES {
        let built = registry::build(pass.name, &serde_yaml::Mapping::new(), Sources::NONE).unwrap();
        let options = built[0].options();
        let infos = (pass.options)();
        let names: Vec<&str> = infos.iter().map(|info| info.name).collect();
        let keys: Vec<&String> = options.as_object().unwrap().keys().collect();
        assert_eq!(keys, names, "{}", pass.name);
        for info in infos {
            let told = info.default.as_ref();
            let held = &options[info.name];
            match held {
                // What happens then is the meaning's to say, or a number that the pass takes.
                Value::Null => assert!(told.is_none_or(serde_yaml::Value::is_f64)),
                value => assert_eq!(Some(&serde_yaml::to_value(value).unwrap()), told),
            }
            let plain = match held {
                Value::Null => continue,
                Value::String(word) => word.clone(),
                Value::Number(number) => number.as_f64().unwrap().to_string(),
                other => other.to_string(),
            };
            let printed = info.to_string();
            assert!(printed.ends_with(&format!("default {plain})")), "{printed}");
            let fits = |range: &Range| range.contains(told.unwrap());
            assert!(info.range.as_ref().is_none_or(fits), "{printed}");
            assert!(info.range.is_some() || !held.is_f64(), "{printed}");
        }
    }
}

#[test]
fn numbers_that_an_option_takes_while_it_is_absent_are_told() {
    for (pass, name, told) in [
        ("dip-go", "macs", "default 0.35)"),
        ("skip", "interval", "default 2)"),
        (
            "skip",
            "guidance",
            "1.5 for models of classes, none for others (0 or more)",
        ),
        ("fit-prune", "drop", "decides over `keep`"),
    ] {
        let printed = all()
            .find(|(of, info)| *of == pass && info.name == name)
            .unwrap()
            .1
            .to_string();
        assert!(printed.ends_with(told), "{printed}");
    }
}

#[test]
fn values_out_of_range_are_refused_in_the_same_words() {
    for (pass, options, refused) in [
        (
            "fit-prune",
            "samples: 0",
            "`samples`: 0 doesn't fit; ask for 1 or more",
        ),
        (
            "fit-prune",
            "samples: -1",
            "`samples`: -1 doesn't fit; ask for 1 or more",
        ),
        (
            "auto-draft",
            "memory: 1.0",
            "`memory`: 1 doesn't fit; ask for more than 1",
        ),
        (
            "skip",
            "interval: 0.5",
            "`interval`: 0.5 doesn't fit; ask for 1 to 10000",
        ),
        (
            "skip",
            "steps: 10001",
            "`steps`: 10001 doesn't fit; ask for 1 to 10000",
        ),
        (
            "fit-prune",
            "keep: 1.5",
            "`keep`: 1.5 doesn't fit; ask for more than 0 and at most 1",
        ),
        (
            "fit-prune",
            "granularity: stage",
            "`granularity`: stage doesn't fit; ask for layer or branch",
        ),
        (
            "dip-go",
            "macs: 0",
            "`macs`: 0 doesn't fit; ask for more than 0 and at most 1",
        ),
        (
            "dip-go",
            "rate: .inf",
            "`rate`: .inf doesn't fit; ask for more than 0",
        ),
        (
            "quantize-draft",
            "group_size: 16",
            "`group_size`: 16 doesn't fit; ask for 32, 64 or 128",
        ),
        (
            "auto-draft",
            "group_size: 48",
            "`group_size`: 48 doesn't fit; ask for 32, 64 or 128",
        ),
        (
            "merge-adapter",
            "scale: .nan",
            "`scale`: .nan doesn't fit; ask for a finite number",
        ),
        (
            "skip",
            "reuse: cubic",
            "`reuse`: cubic doesn't fit; ask for hold, linear or quadratic",
        ),
        (
            "dip-go",
            "distance: l1",
            "`distance`: l1 doesn't fit; ask for mse or ssim",
        ),
    ] {
        assert_eq!(
            refusal(pass, options),
            format!("pass {pass}: option {refused}")
        );
    }
}

#[test]
fn every_range_is_checked() {
    let numbers = ["-1", "0", "0.5", "1", "3", "20000", ".nan", ".inf"];
    for (pass, info) in all() {
        let Some(range) = &info.range else { continue };
        for number in numbers {
            let value = serde_yaml::from_str(number).unwrap();
            if !range.contains(&value) {
                let message = refusal(pass, &format!("{}: {number}", info.name));
                assert!(
                    message.ends_with(&format!("{number} doesn't fit; ask for {range}")),
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn passes_made_from_a_struct_check_it_as_well() {
    let sources = Sources::NONE;
    let sampler = SamplerOptions {
        steps: 0,
        ..SamplerOptions::default()
    };
    let refused: [Result<(), PassError>; 7] = [
        FitPrune::new(
            FitPruneOptions {
                keep: 2.0,
                ..FitPruneOptions::default()
            },
            sources,
        )
        .map(drop),
        AutoDraft::new(
            AutoDraftOptions {
                group_size: 0,
                ..AutoDraftOptions::default()
            },
            sources,
        )
        .map(drop),
        QuantizeDraft::new(
            QuantizeDraftOptions {
                group_size: Some(0),
                ..QuantizeDraftOptions::default()
            },
            sources,
        )
        .map(drop),
        TrimHead::new(
            TrimHeadOptions {
                tokens: 0,
                ..TrimHeadOptions::default()
            },
            sources,
        )
        .map(drop),
        MergeAdapter::new(
            MergeAdapterOptions {
                scale: f64::NAN,
                ..MergeAdapterOptions::default()
            },
            &sources,
        )
        .map(drop),
        DipGo::new(
            DipGoOptions {
                sampler: sampler.clone(),
                ..DipGoOptions::default()
            },
            sources,
        )
        .map(drop),
        Skip::new(
            SkipOptions {
                sampler,
                ..SkipOptions::default()
            },
            sources,
        )
        .map(drop),
    ];
    for result in refused {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("doesn't fit; ask for"), "{message}");
    }
}
