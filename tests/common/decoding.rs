//! Plain against speculative decoding of the trained fixture, on a backend.

use std::path::{Path, PathBuf};

use dlc::pipeline::{CompileOutcome, CompileRequest, PipelineError, compile, parse_pass_flag};
use dlc_bundle::Profile;
use dlc_methods::speculation::{DecodeOptions, DraftLength, LogitsProcessors, SamplingOptions};
use dlc_runtime::{
    Backend, Bundle, DecoderOptions, DecoderSession, Equality, Provider, SharedWeights,
    TextTokenizer, Verification, decode, measure,
};

use super::fixture;

/// A request without passes, in f32, on one thread.
pub fn compile_request(model: PathBuf, profile: Profile, output: PathBuf) -> CompileRequest {
    CompileRequest {
        profile,
        threads: 1,
        ..CompileRequest::new(model, output)
    }
}

/// Compiles and shows nothing.
pub fn compile_quietly(request: &CompileRequest) -> Result<CompileOutcome, PipelineError> {
    compile(request, None, &())
}

/// Costs of a machine.
pub const HALF_AT_8_BITS: &str = "blocks: {attn: {whole: 0.03, int8: 0.015, int4: 0.012}, mlp: {whole: 0.04, int8: 0.02, int4: 0.015}}
head: {whole: 0.1, int8: 0.05, int4: 0.04}
fixed: 0.06
verify: [[1, 1.0], [4, 1.15], [8, 1.35], [16, 1.6]]
";

/// Target and draft of tiny-llama without 4 of its 12 layers.
pub struct Pair {
    pub target: DecoderSession,
    pub draft: DecoderSession,
    tokenizer: TextTokenizer,
}

impl Pair {
    /// The draft reads the target's cache if `shared`.
    pub fn compile(backend: &Backend, profile: Profile, folder: &Path, shared: bool) -> Self {
        Self::compile_with(
            &["fit-prune:drop=4,samples=2,length=32"],
            backend,
            profile,
            folder,
            shared,
        )
    }

    /// Target and draft of tiny-llama as these passes make it.
    pub fn compile_with(
        passes: &[&str],
        backend: &Backend,
        profile: Profile,
        folder: &Path,
        shared: bool,
    ) -> Self {
        let bundle = Self::bundle(passes, profile, folder);
        let weights = SharedWeights::open(&bundle, backend).unwrap();
        // Small, so that caches kept in place must grow.
        let verification = Verification::of(bundle.manifest(), "target", Provider::Cpu);
        let options = DecoderOptions {
            capacity: Some(16),
            fillers: verification.fillers(1),
            ..DecoderOptions::default()
        };
        let open = |name| {
            DecoderSession::open(backend, &bundle, name, weights.as_ref(), &options).unwrap()
        };
        let tokenizer = TextTokenizer::load(&bundle.side_file("tokenizer.json").unwrap()).unwrap();
        let (target, mut draft) = (open("target"), open("draft"));
        assert!(!shared || draft.share_cache(&target));
        Self {
            target,
            draft,
            tokenizer,
        }
    }

    /// tiny-llama after these passes.
    pub fn bundle(passes: &[&str], profile: Profile, folder: &Path) -> Bundle {
        let output = folder.join("bundle");
        let mut request = compile_request(fixture("tiny-llama"), profile, output.clone());
        request.passes = passes
            .iter()
            .map(|pass| parse_pass_flag(pass).unwrap())
            .collect();
        compile_quietly(&request).unwrap();
        Bundle::open(&output).unwrap()
    }

    /// Target and the draft that auto-draft chooses where a step of 8 bits costs half.
    pub fn choose(backend: &Backend, profile: Profile, folder: &Path) -> Self {
        let costs = folder.join("costs.yaml");
        std::fs::write(&costs, HALF_AT_8_BITS).unwrap();
        let pass = format!(
            "auto-draft:samples=4,length=32,candidates=2,costs={}",
            costs.display()
        );
        Self::compile_with(&[&pass], backend, profile, folder, true)
    }

    /// The first prompts of the fixture, as tokens.
    pub fn prompts(&self, count: usize) -> Vec<Vec<u32>> {
        let text = std::fs::read_to_string(fixture("prompts.txt")).unwrap();
        let prompts: Vec<Vec<u32>> = text
            .lines()
            .take(count)
            .map(|p| self.tokenizer.encode(p, true).unwrap())
            .collect();
        assert_eq!(prompts.len(), count);
        prompts
    }

    /// Greedy speculative text equals plain text token for token; a tie of two logits is reported,
    /// not hidden.
    pub fn check_greedy(&mut self, prompts: usize) -> Result<(), String> {
        self.check_greedy_with(prompts, &LogitsProcessors::default())
    }

    /// The same with penalties, bans and a least length.
    pub fn check_processed(&mut self, prompts: usize) -> Result<(), String> {
        let processors = LogitsProcessors {
            ends: vec![0],
            repetition_penalty: 1.2,
            no_repeat_ngram_size: 4,
            sequence_bias: vec![(vec![11], -2.0)],
            bad_words_ids: vec![vec![13]],
            min_new_tokens: Some(64),
            ..LogitsProcessors::default()
        };
        self.check_greedy_with(prompts, &processors)
    }

    fn check_greedy_with(
        &mut self,
        prompts: usize,
        processors: &LogitsProcessors,
    ) -> Result<(), String> {
        for (i, prompt) in self.prompts(prompts).iter().enumerate() {
            let options = DecodeOptions {
                max_tokens: 64,
                draft_length: if i % 3 == 2 {
                    DraftLength::Adaptive
                } else {
                    DraftLength::Fixed(1 + i % 6)
                },
                lookup: (i % 2 == 1).then_some(2),
                prefill_chunk: 3,
                processors: processors.clone(),
                ..DecodeOptions::default()
            };
            let measured = measure(&mut self.target, Some(&mut self.draft), prompt, &options, 1)
                .map_err(|e| e.to_string())?;
            if measured.tokens.len() != 64 || measured.stats.accepted() == 0 {
                return Err(format!(
                    "prompt {i}: {} tokens, {} accepted",
                    measured.tokens.len(),
                    measured.stats.accepted()
                ));
            }
            match measured.equality {
                Equality::Equal => {}
                Equality::Tie { at, gap } => {
                    eprintln!("prompt {i}: tie at token {at}, logits differ by {gap:e}");
                }
                Equality::Different { at, gap } => {
                    return Err(format!(
                        "prompt {i}: different from token {at} on, logits differ by {gap:e}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The same seed gives the same sampled text, another seed another one.
    pub fn check_seeds(&mut self) -> Result<(), String> {
        let prompt = self.prompts(1).remove(0);
        let mut sample = |seed| {
            let sampling = SamplingOptions {
                temperature: 0.8,
                top_k: 50,
                top_p: 0.95,
                seed,
                ..SamplingOptions::default()
            };
            let options = DecodeOptions {
                max_tokens: 48,
                sampling,
                ..DecodeOptions::default()
            };
            decode(&mut self.target, Some(&mut self.draft), &prompt, &options)
                .map(|g| g.tokens)
                .map_err(|e| e.to_string())
        };
        let (a, b, c) = (sample(1)?, sample(1)?, sample(2)?);
        if a == b && a != c {
            Ok(())
        } else {
            Err(format!("seed 1: {a:?}, again: {b:?}, seed 2: {c:?}"))
        }
    }
}
