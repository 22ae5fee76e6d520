//! merge-adapter: the merged matrix does what base and adapter do apart, for any shape, rank and
//! type.

use std::sync::Arc;

use dlc_errors::{Fault, Faulty};
use dlc_ir::{Blob, DType, Expr, Module, Storage, WeightTable};
use dlc_passes::merge_adapter::{MergeAdapter, MergeAdapterOptions};
use dlc_passes::{Adapter, AdapterTensor, Pass, PassContext, PassError, Sources};
use proptest::prelude::*;
use serde_json::json;

use super::model::Model;

/// A matrix product with shapes, types and numbers to choose.
#[derive(Debug, Clone)]
struct Case {
    kind: &'static str,
    shape: [usize; 2],
    ranks: [usize; 2],
    base: DType,
    adapter: DType,
    transposed: bool,
    strength: f64,
    numbers: Vec<f32>,
}

fn cases() -> impl Strategy<Value = Case> {
    let floats = || prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::Bf16)];
    let kind = prop_oneof![Just("lora"), Just("rslora"), Just("dora"), Just("dual")];
    let sizes = ([1usize..9, 1usize..9], [1usize..5, 1usize..5]);
    let case = |(kind, sizes, base, adapter, transposed, strength): (
        _,
        ([usize; 2], [usize; 2]),
        _,
        _,
        _,
        f64,
    )| {
        let numbers = proptest::collection::vec(-2f32..2.0, 400);
        let strength = if kind == "dora" { 1.0 } else { strength };
        let (shape, ranks) = sizes;
        numbers.prop_map(move |numbers| Case {
            kind,
            shape,
            ranks,
            base,
            adapter,
            transposed,
            strength,
            numbers,
        })
    };
    (kind, sizes, floats(), floats(), any::<bool>(), -2.0..2.0).prop_flat_map(case)
}

/// A file's bytes.
fn mapped(bytes: Vec<u8>, dtype: DType) -> Expr {
    let length = bytes.len();
    Expr::Mapped {
        blob: Blob::new(Arc::new(bytes), 0..length).unwrap(),
        dtype,
    }
}

/// Numbers in a file of type `dtype`, and what they are there.
fn stored(numbers: &[f32], dtype: DType) -> (Expr, Vec<f64>) {
    let wide = mapped(
        numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F32,
    );
    let mut table = WeightTable::default();
    let id = table
        .add("numbers", &[numbers.len()], wide.cast(dtype))
        .unwrap();
    let mut bytes = vec![0; table[id].bytes()];
    table[id].write_bytes(0, &mut bytes).unwrap();
    (
        mapped(bytes, dtype),
        table[id]
            .to_f32()
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect(),
    )
}

impl Case {
    /// The next numbers, as a tensor and as what it holds.
    fn tensor(&self, at: &mut usize, shape: [usize; 2]) -> (AdapterTensor, Vec<f64>) {
        let n = shape[0] * shape[1];
        let (data, numbers) = stored(&self.numbers[*at..*at + n], self.adapter);
        *at += n;
        (
            AdapterTensor {
                shape: shape.to_vec(),
                data,
            },
            numbers,
        )
    }

    fn config(&self) -> serde_json::Map<String, serde_json::Value> {
        let config = match self.kind {
            "dual" => {
                json!({"peft_type": "DUAL_LORA", "r_magnitude": self.ranks[0], "r_direction": self.ranks[1], "lora_alpha": 3})
            }
            kind => {
                json!({"peft_type": "LORA", "r": self.ranks[0], "lora_alpha": 3, "use_rslora": kind == "rslora", "use_dora": kind == "dora"})
            }
        };
        config.as_object().unwrap().clone()
    }

    /// The matrices A, B, C, D and DoRA's norms.
    fn parts(&self) -> [(AdapterTensor, Vec<f64>); 5] {
        let ([out, inner], [r1, r2], mut at) = (self.shape, self.ranks, 100);
        [[r1, inner], [out, r1], [r2, inner], [out, r2], [out, 1]]
            .map(|shape| self.tensor(&mut at, shape))
    }

    fn adapter(&self) -> Adapter {
        let [a, b, c, d, m] = self.parts().map(|(tensor, _)| tensor);
        let names: Vec<(&str, AdapterTensor)> = match self.kind {
            "dual" => {
                vec![
                    ("lora_magnitude_A.weight", a),
                    ("lora_magnitude_B.weight", b),
                    ("lora_direction_A.weight", c),
                    ("lora_direction_B.weight", d),
                ]
            }
            "dora" => vec![
                ("lora_A.weight", a),
                ("lora_B.weight", b),
                ("lora_magnitude_vector", m),
            ],
            _ => vec![("lora_A.weight", a), ("lora_B.weight", b)],
        };
        let tensors = names
            .into_iter()
            .map(|(n, t)| (format!("base_model.model.proj.{n}"), t))
            .collect();
        Adapter {
            name: "tuned".into(),
            config_file: "tuned/adapter_config.json".into(),
            tensors_file: "tuned/adapter_model.safetensors".into(),
            weight: self.strength,
            config: self.config(),
            alphas: None,
            tensors,
            part: None,
        }
    }

    /// s, the adapter's strength in it.
    fn factor(&self) -> f64 {
        let [r1, r2] = self.ranks.map(|r| r as f64);
        let rank = match self.kind {
            "dual" => (r1 * r2).sqrt(),
            "rslora" => r1.sqrt(),
            _ => r1,
        };
        self.strength * 3.0 / rank
    }

    /// `W x + dW x` without a merged matrix, from W and x.
    fn apart(&self, w: &[f64], x: &[f64]) -> Vec<f64> {
        let ([out, inner], [r1, r2], s) = (self.shape, self.ranks, self.factor());
        let [a, b, c, d, m] = self.parts().map(|(_, numbers)| numbers);
        let plain = product(w, [out, inner], x);
        let entry = |u: &[f64], v: &[f64], r: usize, i: usize, j: usize| -> f64 {
            (0..r).map(|k| u[i * r + k] * v[k * inner + j]).sum()
        };
        if self.kind == "dual" {
            let sign = |i, j| {
                if entry(&d, &c, r2, i, j) > 0.0 {
                    1.0
                } else {
                    -1.0
                }
            };
            let change = |i, j| s * entry(&b, &a, r1, i, j).max(0.0) * sign(i, j);
            return (0..out)
                .map(|i| plain[i] + (0..inner).map(|j| change(i, j) * x[j]).sum::<f64>())
                .collect();
        }
        // Two thin products, as PEFT computes an adapter that isn't merged.
        let thin = product(&b, [out, r1], &product(&a, [r1, inner], x));
        let norm = |i: usize| {
            (0..inner)
                .map(|j| (w[i * inner + j] + s * entry(&b, &a, r1, i, j)).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        (0..out)
            .map(|i| {
                (plain[i] + s * thin[i])
                    * if self.kind == "dora" {
                        m[i] / norm(i)
                    } else {
                        1.0
                    }
            })
            .collect()
    }
}

fn product(matrix: &[f64], [rows, columns]: [usize; 2], x: &[f64]) -> Vec<f64> {
    (0..rows)
        .map(|i| (0..columns).map(|j| matrix[i * columns + j] * x[j]).sum())
        .collect()
}

/// A module with one weight `proj.weight`.
fn module(case: &Case) -> (Module, Vec<f64>) {
    let [out, inner] = case.shape;
    let (data, numbers) = stored(&case.numbers[..out * inner], case.base);
    let mut module = Model::decoder().module();
    let storage = if case.transposed {
        Storage::Transposed
    } else {
        Storage::Plain
    };
    module
        .weights
        .add_stored("proj.weight", &case.shape, case.base, data, storage)
        .unwrap();
    let seen = (0..out * inner).map(|at| {
        if case.transposed {
            numbers[at % inner * out + at / inner]
        } else {
            numbers[at]
        }
    });
    (module, seen.collect())
}

fn merge(module: &mut Module, adapter: Adapter) {
    try_merge(module, adapter, MergeAdapterOptions::default()).unwrap();
}

fn try_merge(
    module: &mut Module,
    adapter: Adapter,
    options: MergeAdapterOptions,
) -> Result<(), PassError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let sources = Sources {
        adapters: &[adapter],
        ..Sources::NONE
    };
    let mut cx = PassContext {
        progress: &(),
        cache: None,
        module_key: String::new(),
        pool: &pool,
    };
    MergeAdapter::new(options, &sources)
        .unwrap()
        .run(module, &mut cx)
        .map(|_| ())
}

#[test]
fn merged_weights_that_no_number_can_stand_for_are_refused_unless_they_are_asked_for() {
    let mut messages = Vec::new();
    for (kind, number, base) in [
        ("lora", 150.0, DType::F16),
        ("dual", 150.0, DType::F16),
        ("lora", 1e25, DType::F32),
        ("lora", 1.1e19, DType::Bf16),
        ("dora", 0.0, DType::F32),
    ] {
        for transposed in [false, true] {
            let numbers = vec![number; 400];
            let (shape, ranks, adapter) = ([3, 2], [1, 1], DType::F32);
            let case = Case {
                kind,
                shape,
                ranks,
                base,
                adapter,
                transposed,
                strength: 1.0,
                numbers,
            };
            let error = try_merge(
                &mut module(&case).0,
                case.adapter(),
                MergeAdapterOptions::default(),
            )
            .unwrap_err();
            assert_eq!(error.fault(), Fault::BadInput);
            if !transposed {
                messages.push(error.to_string());
            }
            try_merge(
                &mut module(&case).0,
                case.adapter(),
                MergeAdapterOptions {
                    allow_nan: true,
                    ..MergeAdapterOptions::default()
                },
            )
            .unwrap();
        }
    }
    insta::assert_snapshot!(messages.join("\n"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_merged_matrix_does_what_base_and_adapter_do_apart(case in cases()) {
        let [out, inner] = case.shape;
        let (mut module, w) = module(&case);
        let x: Vec<f64> = case.numbers[390 - inner..390].iter().map(|x| f64::from(*x)).collect();
        let expected = case.apart(&w, &x);
        merge(&mut module, case.adapter());
        let merged: Vec<f64> = module.weights[module.weights.find("proj.weight").unwrap()].to_f32().unwrap().into_iter().map(f64::from).collect();
        let together = product(&merged, [out, inner], &x);
        // Merged entries are rounded once, to half a unit of the base's type.
        let unit = match case.base { DType::F32 => 1e-6, DType::F16 => 0.5f64.powi(11), _ => 0.5f64.powi(8) };
        for i in 0..out {
            let allowed = 1e-5 + (unit + 1e-5) * (0..inner).map(|j| (merged[i * inner + j] * x[j]).abs()).sum::<f64>();
            // Dual LoRA jumps where D C passes 0, and DoRA where a row vanishes: single precision
            // may fall on the other side.
            let error = (together[i] - expected[i]).abs();
            prop_assert!(error <= allowed, "row {i}: {} merged, {} apart, {error:e} > {allowed:e}", together[i], expected[i]);
        }
    }
}
