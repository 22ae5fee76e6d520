//! Flags that say how tokens are chosen, over what the model's `generation_config.json` says.

use dlc_methods::speculation::{DecodeOptions, SamplingOptions};
use dlc_runtime::{Bundle, GenerationConfig};

use super::failure::{Result, bail};

/// Tokens written unless flags or the file say how many.
const MAX_TOKENS: usize = 256;

/// How tokens are chosen.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct GenerationArgs {
    /// Most tokens to write [default: what `generation_config.json` says, else 256]
    #[arg(long, value_name = "N", help_heading = "Choosing tokens")]
    max_tokens: Option<usize>,
    /// Draw tokens as the model's `generation_config.json` says
    #[arg(long, help_heading = "Choosing tokens")]
    sample: bool,
    /// Randomness; 0, the default, takes the most likely token
    #[arg(
        long,
        value_name = "T",
        allow_negative_numbers = true,
        help_heading = "Choosing tokens"
    )]
    temperature: Option<f32>,
    /// Draw from the K most likely tokens; 0 is all
    #[arg(long, value_name = "K", help_heading = "Choosing tokens")]
    top_k: Option<usize>,
    /// Draw from the most likely tokens that make up this probability
    #[arg(long, value_name = "P", help_heading = "Choosing tokens")]
    top_p: Option<f32>,
    /// Draw from tokens this share as likely as the likeliest
    #[arg(long, value_name = "P", help_heading = "Choosing tokens")]
    min_p: Option<f32>,
    /// Seed of the draws [default: 0]
    #[arg(long, value_name = "N", help_heading = "Choosing tokens")]
    seed: Option<u64>,
    /// Make tokens that stand in the text less likely; 1 doesn't
    #[arg(long, value_name = "R", help_heading = "Choosing tokens")]
    repetition_penalty: Option<f32>,
    /// Make tokens that are written already less likely, once for all times
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = penalty, help_heading = "Choosing tokens")]
    presence_penalty: Option<f32>,
    /// Make tokens less likely with each time that they are written
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = penalty, help_heading = "Choosing tokens")]
    frequency_penalty: Option<f32>,
    /// Never repeat N tokens in a row; 0 may
    #[arg(long, value_name = "N", help_heading = "Choosing tokens")]
    no_repeat_ngram: Option<usize>,
    /// Fewest tokens to write
    #[arg(long, value_name = "N", help_heading = "Choosing tokens")]
    min_tokens: Option<usize>,
    /// Add to the logit of a token, by its id; may be given several times
    #[arg(long, value_name = "ID=BIAS", value_parser = bias, help_heading = "Choosing tokens")]
    logit_bias: Vec<(u32, f32)>,
    /// Never write these tokens, by their ids
    #[arg(
        long,
        value_name = "ID,...",
        value_delimiter = ',',
        help_heading = "Choosing tokens"
    )]
    suppress_tokens: Vec<u32>,
    /// Leave the model's `generation_config.json` alone
    #[arg(long, conflicts_with = "sample", help_heading = "Choosing tokens")]
    no_generation_config: bool,
}

fn penalty(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|penalty: &f32| penalty.is_finite())
        .ok_or_else(|| "it must be a number; 0 is none".into())
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once('=').and_then(|(token, bias)| {
        let bias: f32 = bias.parse().ok()?;
        Some((token.parse().ok()?, bias)).filter(|_| bias.is_finite())
    });
    parts.ok_or_else(|| "it must be a token's id and a number, such as 42=-1.5".into())
}

/// How a bundle's texts are written.
#[derive(Debug)]
pub(super) struct Rules {
    /// How long texts are, what ends them and how tokens are chosen.
    pub options: DecodeOptions,
    /// Texts that end a text.
    pub stop_strings: Vec<String>,
    /// What the user may want to know.
    pub note: Option<String>,
}

impl GenerationArgs {
    /// Only the file leaves tokens to choose, or not even that.
    pub fn file_alone(no_generation_config: bool) -> Self {
        Self {
            no_generation_config,
            ..Self::default()
        }
    }

    /// What flags and the bundle's file say. Refuses flags without effect.
    pub fn rules(&self, bundle: &Bundle) -> Result<Rules> {
        self.check(bundle.manifest().model.vocab_size)?;
        let config = if self.no_generation_config {
            GenerationConfig::default()
        } else {
            GenerationConfig::of_bundle(bundle)?
        };
        let mut processors = config.processors;
        let stop_tokens = bundle.manifest().model.eos_token_ids.clone();
        processors.ends.clone_from(&stop_tokens);
        processors.repetition_penalty = self
            .repetition_penalty
            .unwrap_or(processors.repetition_penalty);
        processors.presence_penalty = self.presence_penalty.unwrap_or(0.0);
        processors.frequency_penalty = self.frequency_penalty.unwrap_or(0.0);
        processors.no_repeat_ngram_size = self
            .no_repeat_ngram
            .unwrap_or(processors.no_repeat_ngram_size);
        processors.min_new_tokens = self.min_tokens.or(processors.min_new_tokens);
        let biases = self.logit_bias.iter();
        let biases = biases.map(|&(token, bias)| (vec![token], bias));
        processors.sequence_bias.extend(biases);
        processors.suppress_tokens.extend(&self.suppress_tokens);
        let file = config.sampling.options;
        let note = (config.sampling.do_sample && !self.samples() && self.temperature.is_none())
            .then(|| suggestion(&file));
        let max_tokens = self.max_tokens.or(config.max_new_tokens);
        let max_length = config.max_length.filter(|_| max_tokens.is_none());
        let max_tokens = max_tokens.unwrap_or(if max_length.is_some() {
            usize::MAX
        } else {
            MAX_TOKENS
        });
        if let Some(least) = self.min_tokens.filter(|least| *least > max_tokens) {
            bail!(
                "--min-tokens {least} is more than the {max_tokens} tokens that are written at most; add --max-tokens {least} or more"
            );
        }
        let options = DecodeOptions {
            max_tokens,
            max_length,
            stop_tokens,
            processors,
            sampling: if self.samples() {
                self.sampling(&file)
            } else {
                SamplingOptions::default()
            },
            ..DecodeOptions::default()
        };
        Ok(Rules {
            options,
            stop_strings: config.stop_strings,
            note,
        })
    }

    fn samples(&self) -> bool {
        self.sample || self.temperature.is_some_and(|t| t != 0.0)
    }

    fn sampling(&self, file: &SamplingOptions) -> SamplingOptions {
        // Without the file all tokens may be drawn.
        let top_k = if self.no_generation_config {
            0
        } else {
            file.top_k
        };
        SamplingOptions {
            temperature: self.temperature.unwrap_or(file.temperature),
            top_k: self.top_k.unwrap_or(top_k),
            top_p: self.top_p.unwrap_or(file.top_p),
            min_p: self.min_p.unwrap_or(file.min_p),
            seed: self.seed.unwrap_or(file.seed),
            ..file.clone()
        }
    }

    /// Refuses flags that contradict each other, or a model that writes `vocab` tokens.
    fn check(&self, vocab: usize) -> Result<()> {
        let biased = self.logit_bias.iter().map(|(token, _)| *token);
        let named = biased.chain(self.suppress_tokens.iter().copied());
        if let Some(token) = named.into_iter().find(|&token| token as usize >= vocab) {
            bail!("token {token} isn't among the {vocab} that the model writes");
        }
        if self.sample && self.temperature == Some(0.0) {
            bail!(
                "--sample draws tokens, and --temperature 0 takes the most likely one; give one of them"
            );
        }
        let draws = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        if let Some((flag, _)) = draws.iter().find(|(_, given)| *given && !self.samples()) {
            bail!(
                "{flag} has no effect while the most likely token is taken; draw tokens with --temperature T above 0, or --sample"
            );
        }
        if let Some(penalty) = self
            .repetition_penalty
            .filter(|p| !(p.is_finite() && *p > 0.0))
        {
            bail!("repetition penalty {penalty} must be a number above 0 (1 is none)");
        }
        Ok(())
    }
}

/// How the file wants tokens drawn.
fn suggestion(file: &SamplingOptions) -> String {
    let neutral = SamplingOptions::default();
    let mut settings = vec![format!("temperature {}", file.temperature)];
    settings.extend((file.top_k != neutral.top_k).then(|| format!("top-k {}", file.top_k)));
    for (name, value, neutral) in [
        ("top-p", file.top_p, neutral.top_p),
        ("min-p", file.min_p, neutral.min_p),
        ("typical-p", file.typical_p, neutral.typical_p),
        (
            "epsilon cutoff",
            file.epsilon_cutoff,
            neutral.epsilon_cutoff,
        ),
        ("eta cutoff", file.eta_cutoff, neutral.eta_cutoff),
        ("top-h", file.top_h.unwrap_or(0.0), 0.0),
    ] {
        settings.extend(((value - neutral).abs() > 0.0).then(|| format!("{name} {value}")));
    }
    format!(
        "the model suggests drawing tokens ({}): --sample does; without it the most likely one is taken",
        settings.join(", ")
    )
}
