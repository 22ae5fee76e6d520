//! Texts that passes calibrate on and judge by: those of a file, or text that the target writes
//! itself. Half of them is held back from whatever is fitted.

mod write;

use std::path::Path;

use dlc_ir::{Graph, Module, Task};

use crate::context::PassContext;
use crate::error::PassError;
use crate::kept::Kept;
use crate::sources::Calibration;
use write::{WriteOptions, write};

/// Tokens of the built-in text that each text of the target begins with.
const PROMPT: usize = 8;

/// Which texts are wanted.
pub(crate) struct TextRequest<'a> {
    /// The user's file, if there is one.
    pub file: Option<&'a Path>,
    /// How many texts, at least 2.
    pub samples: usize,
    /// Longest text in tokens; the model's context if that is shorter.
    pub length: usize,
    /// Seed of the text that the target writes.
    pub seed: u64,
    /// Temperature of the text that the target writes.
    pub temperature: f64,
}

/// Texts as tokens.
pub(crate) struct Texts {
    /// Those that something is fitted to.
    pub scored: Vec<Vec<u32>>,
    /// Those that it is judged by.
    pub held_back: Vec<Vec<u32>>,
    /// Tokens of each that the target didn't choose.
    pub prompt: usize,
    /// Whose they are.
    pub origin: &'static str,
}

/// The texts: a decoder without a file writes its own, and other models take the built-in text.
///
/// # Errors
/// [`PassError::Calibration`] for a file, or a built-in text, that doesn't hold two texts.
pub(crate) fn texts(
    wanted: &TextRequest<'_>,
    calibration: &dyn Calibration,
    module: &Module,
    target: &Graph,
    cx: &PassContext<'_>,
) -> Result<Texts, PassError> {
    let length = wanted.length.min(module.model.context_length);
    let writes = wanted.file.is_none() && module.model.task == Task::TextGeneration;
    let (all, prompt, origin) = if writes {
        let prompt = PROMPT.min(length / 2).max(1);
        let own = written(wanted, calibration, module, target, (prompt, length), cx)?;
        (own, prompt, "the target's own")
    } else {
        let all = calibration.samples(wanted.file, wanted.samples, length)?;
        let origin = if wanted.file.is_some() {
            "the calibration file"
        } else {
            "the built-in text"
        };
        (all, 1, origin)
    };
    let half = |odd: usize| all.iter().skip(odd).step_by(2).cloned().collect::<Vec<_>>();
    let texts = Texts {
        scored: half(0),
        held_back: half(1),
        prompt,
        origin,
    };
    if texts.held_back.is_empty() {
        let problem = "one text is too few: half of them are held back; give a file with more text";
        return Err(PassError::Calibration {
            problem: problem.into(),
        });
    }
    Ok(texts)
}

/// Texts of `length` tokens that the target writes after the first `prompt` tokens of built-in ones.
fn written(
    wanted: &TextRequest<'_>,
    calibration: &dyn Calibration,
    module: &Module,
    target: &Graph,
    (prompt, length): (usize, usize),
    cx: &PassContext<'_>,
) -> Result<Vec<Vec<u32>>, PassError> {
    let TextRequest {
        samples,
        seed,
        temperature,
        ..
    } = *wanted;
    let mut starts = calibration.samples(None, samples, prompt)?;
    starts.retain(|start| start.len() == prompt);
    if starts.is_empty() {
        let problem =
            format!("the built-in text holds no {prompt} tokens in a row; give calibration=FILE");
        return Err(PassError::Calibration { problem });
    }
    let starts: Vec<Vec<u32>> = starts.iter().cycle().take(samples).cloned().collect();
    let identity = format!("{} {seed} {temperature} {length} {starts:?}", cx.module_key);
    let so_far = format!("text so far 1 {identity}");
    let so_far = Kept::new(cx.cache, &so_far);
    let whole = |texts: &Vec<Vec<u32>>| {
        texts.len() == samples && texts.iter().all(|text| text.len() == length)
    };
    let (options, progress) = (
        WriteOptions {
            seed,
            temperature: temperature as f32,
            length,
        },
        cx.progress,
    );
    let texts = cx.cached(&format!("text 1 {identity}"), whole, || {
        cx.pool
            .install(|| write(module, target, &starts, &options, so_far, progress))
    });
    if !matches!(texts, Err(PassError::Interrupted)) {
        write::forget(so_far, length);
    }
    texts
}
