//! What a compilation needs, without compiling; refuses what compiling would refuse by options
//! and shapes alone.

use dlc_bundle::Profile;
use dlc_passes::{Needs, Sources, rehearse_passes};

use super::adapters::{self, Adapted};
use super::codes::as_written;
use super::compile::{adapted, located, needs_of, passes, samplers, steps_of, unfed};
use super::error::PipelineError;
use super::request::CompileRequest;

/// What compiling needs on disk and in memory, about, by the shapes of the checkpoint's weights
/// alone.
///
/// # Errors
/// What [`compile`](super::compile::compile) says of the output, of the checkpoint and of the
/// passes' options.
pub fn needs(request: &CompileRequest) -> Result<Needs, PipelineError> {
    let unfed = unfed(request)?;
    let Adapted {
        checkpoint,
        adapters: opened,
        imported,
        ..
    } = adapted(request)?;
    let (mut module, mut sources) = (imported.module, imported.sources);
    let written = as_written(&module, request.codes_become_numbers())?;
    let needs = needs_of([&module, &written], &unfed, request.threads);
    if !request.adapters.is_empty() {
        adapters::add_unread(&checkpoint, &mut module, &mut sources)?;
    }
    let names = request.adapter_names.as_deref();
    let (adapters, _) = adapters::read(&request.adapters, opened, names, &module)?;
    let samplers = samplers(&checkpoint, &module);
    let sources = Sources {
        adapters: &adapters,
        allow_nan: request.allow_nan,
        samplers: steps_of(&module, &samplers),
        keeps_codes: request.codes_become_numbers().is_none(),
        multiplies_f16_codes: request.profile == Profile::Ort,
        ..Sources::NONE
    };
    rehearse_passes(&module, &passes(request, sources)?).map_err(|e| located(request, e))?;
    Ok(needs)
}
