//! A typed reader of `scheduler_config.json` that collects what is wrong instead of stopping.
//!
//! After a problem a reader returns a stand-in, so callers read everything and then
//! [`finish`](ConfigReader::finish) before they use anything. Keys that only other schedulers of
//! diffusers have are left aside, as diffusers' `from_config` does; unknown ones are refused.

use std::collections::BTreeSet;

use dlc_errors::Fault;
use dlc_errors::printable::shown;
use serde_json::{Map, Value};

use super::error::{SchedulerError, SchedulerProblem};
use super::kind::nearest;

/// Keys that some scheduler of diffusers has, and keys of older versions that never changed what one
/// computes.
const KNOWN: &[&str] = &[
    "algorithm_type",
    "base_image_seq_len",
    "base_shift",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "invert_sigmas",
    "lambda_min_clipped",
    "lower_order_final",
    "max_image_seq_len",
    "max_shift",
    "noise_sampler_seed",
    "original_inference_steps",
    "predict_x0",
    "prediction_type",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "set_alpha_to_one",
    "shift",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "stochastic_sampling",
    "tensor_format",
    "thresholding",
    "time_shift_type",
    "timestep_scaling",
    "timestep_spacing",
    "timestep_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

/// Reads one JSON object.
pub(super) struct ConfigReader<'a> {
    values: &'a Map<String, Value>,
    defaulted: BTreeSet<&'a str>,
    asked: BTreeSet<&'static str>,
    problems: Vec<SchedulerProblem>,
}

impl<'a> ConfigReader<'a> {
    pub(super) fn new(values: &'a Map<String, Value>) -> Self {
        // Keys that held a default of another scheduler when the file was written: this one's own
        // default counts.
        let list = values.get("_use_default_values").and_then(Value::as_array);
        let defaulted = list
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        Self {
            values,
            defaulted,
            asked: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// The value of a key, unless it is absent, null or marked as a default.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.insert(key);
        self.values
            .get(key)
            .filter(|value| !value.is_null() && !self.defaulted.contains(key))
    }

    /// A boolean, or `default` where the key is absent.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.get(key) else {
            return default;
        };
        if !value.is_boolean() {
            self.bad(key, format!("is {}; it must be true or false", show(value)));
        }
        value.as_bool().unwrap_or(default)
    }

    /// A whole number from `least` to `most`, or `default` where the key is absent.
    pub(super) fn count(
        &mut self,
        key: &'static str,
        least: usize,
        most: usize,
        default: usize,
    ) -> usize {
        let Some(value) = self.get(key) else {
            return default;
        };
        let count = value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (least..=most).contains(n));
        if count.is_none() {
            self.bad(
                key,
                format!(
                    "is {}; it must be a whole number from {least} to {most}",
                    show(value)
                ),
            );
        }
        count.unwrap_or(default)
    }

    /// A number for which `fits` holds, if the key is there; `range` says what fits.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Option<f64> {
        let value = self.get(key)?;
        let number = value
            .as_f64()
            .filter(|x| (*x as f32).is_finite() && fits(*x));
        if number.is_none() {
            self.bad(
                key,
                format!("is {}; it must be a number {range}", show(value)),
            );
        }
        number
    }

    /// What one of several words stands for, or `default` where the key is absent.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
        default: T,
    ) -> T {
        let Some(value) = self.get(key) else {
            return default;
        };
        let names: Vec<&'static str> = choices.iter().map(|choice| choice.0).collect();
        let Some(word) = value.as_str() else {
            self.bad(
                key,
                format!("is {}; it must be one of {}", show(value), names.join(", ")),
            );
            return default;
        };
        if let Some(choice) = choices.iter().find(|choice| choice.0 == word) {
            return choice.1;
        }
        let near = nearest(word, names.iter().copied())
            .map(|name| format!(" (did you mean {name}?)"))
            .unwrap_or_default();
        self.unsupported(
            key,
            format!("is {}{near}; dlc can do {}", show(value), names.join(", ")),
        );
        default
    }

    /// Refuses a flag that is set; `what` goes on from "is true, which ...".
    pub(super) fn refuse(&mut self, key: &'static str, what: &str) {
        if self.flag(key, false) {
            self.unsupported(key, format!("is true, which {what}; dlc can't do that"));
        }
    }

    /// Refuses a key that holds anything; `what` goes on from "is ..., which ...".
    pub(super) fn refuse_value(&mut self, key: &'static str, what: &str) {
        if let Some(value) = self.get(key) {
            let value = show(value);
            self.unsupported(key, format!("is {value}, which {what}; dlc can't do that"));
        }
    }

    /// A list of whole numbers, empty where the key is absent.
    pub(super) fn counts(&mut self, key: &'static str) -> Vec<usize> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let count = |x: &Value| x.as_u64().and_then(|n| usize::try_from(n).ok());
        let counts = value
            .as_array()
            .and_then(|list| list.iter().map(count).collect());
        counts.unwrap_or_else(|| {
            self.bad(
                key,
                format!("is {}; it must be a list of whole numbers", show(value)),
            );
            Vec::new()
        })
    }

    /// Whether nothing was reported so far. Comparing values with each other makes sense only then,
    /// as some may be stand-ins.
    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Reports a value that is wrong.
    pub(super) fn bad(&mut self, key: &str, problem: String) {
        self.problems.push(SchedulerProblem {
            key: shown(key),
            fault: Fault::BadInput,
            problem,
        });
    }

    /// Reports a value that asks for something dlc can't do.
    pub(super) fn unsupported(&mut self, key: &str, problem: String) {
        self.problems.push(SchedulerProblem {
            key: shown(key),
            fault: Fault::Unsupported,
            problem,
        });
    }

    /// An error if anything was wrong, or if there is a key that no scheduler has.
    pub(super) fn finish(mut self, class: &'static str) -> Result<(), SchedulerError> {
        for (key, value) in self.values {
            let idle = value.is_null() || *value == Value::Bool(false) || key.starts_with('_');
            if !idle && !self.asked.contains(key.as_str()) && !KNOWN.contains(&key.as_str()) {
                let unknown =
                    "dlc doesn't know whether it changes the sampler. If it doesn't, remove it";
                self.unsupported(key, format!("is {}; {unknown}", show(value)));
            }
        }
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(SchedulerError::Config {
                class,
                problems: self.problems,
            })
        }
    }
}

/// A value as messages show it.
pub(super) fn show(value: &Value) -> String {
    shown(&value.to_string())
}
