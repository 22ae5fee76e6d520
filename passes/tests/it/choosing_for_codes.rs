//! auto-draft and fit-prune on targets that are quantised already.

use dlc_ir::Module;

use super::choosing::{ByBytes, QUICK, choose, lazy};
use super::fakes::{run_all, table};
use super::quantizing_targets::bits;

/// The lazy decoder with its matrices in codes.
fn quantized(options: &str) -> Module {
    let mut module = lazy();
    run_all(&[("quantize", options)], &mut module).unwrap();
    module
}

#[test]
fn drafts_of_quantised_targets_drop_layers_and_have_fewer_bits_than_they() {
    for method in ["rtn", "gptq"] {
        let mut module = quantized(&format!("bits: 8, method: {method}, compare: false"));
        let runs = choose(QUICK, &mut module, &ByBytes::new(0.3)).unwrap();
        let candidates = &runs[0].report.candidates;
        assert!(candidates.iter().any(|c| c.draft.contains("4 bits")));
        assert!(candidates.iter().any(|c| c.draft.contains("dropped")));
        for candidate in candidates {
            assert!(!candidate.draft.contains("8 bits"), "{}", candidate.draft);
            assert!(candidate.cost < 0.3, "{candidate:?}");
        }
        assert!(candidates[0].speedup > 1.2, "{:?}", candidates[0]);
        let bits = bits(module.graph("draft").unwrap());
        assert!(bits.contains(&4) || bits.len() < 15, "{bits:?}");
    }
    let mut module = quantized("bits: 4, method: rtn, compare: false");
    let runs = choose(QUICK, &mut module, &ByBytes::new(0.3)).unwrap();
    for candidate in &runs[0].report.candidates {
        let in_bits = candidate.draft.contains("in 4") || candidate.draft.contains("in 8");
        assert!(!in_bits, "{}", candidate.draft);
    }
}

#[test]
fn layers_of_quantised_targets_score_nearly_as_those_of_whole_ones() {
    let options = "drop: 1, granularity: branch, score: fit";
    let whole = table(options, &lazy());
    for quantize in ["bits: 8, method: rtn", "bits: 8, method: gptq"] {
        let coded = table(options, &quantized(&format!("{quantize}, compare: false")));
        assert_eq!(whole.units, coded.units);
        for (a, b) in whole.columns[0].values.iter().zip(&coded.columns[0].values) {
            assert!((a - b).abs() < 0.1 * a, "{quantize}: {a} and {b}");
        }
    }
}
