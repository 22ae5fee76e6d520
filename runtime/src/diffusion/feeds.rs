//! What the network is fed: the images, and what they should show. With guidance every image stands
//! there twice: with its class or text, and without.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dlc_ir::{DType, Diffusion};
use dlc_methods::diffusion::inputs;
use ort::session::SessionInputValue;
use ort::value::DynValue;

use super::SampleRequest;
use super::memory::Memory;
use super::ports::{Feed, StepInput, StepPorts};
use super::tensors::{FloatTensor, read_tensors};
use crate::session::float_value;
use crate::{HostTensor, Result, RuntimeError};

/// What stands before the name of a tensor for images without a text.
pub(super) const NEGATIVE: &str = "negative_";

/// The most numbers of one image: those of a gigabyte.
const LARGEST_IMAGE: usize = 1 << 28;

/// What images are conditioned on beside a class, by the graph's input: `encoder_hidden_states`,
/// `text_embeds` ...; and after `negative_`, what stands in their place for images without a text.
/// One row for each image, or one for all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conditions {
    /// Where they are from.
    file: PathBuf,
    tensors: BTreeMap<String, FloatTensor>,
}

impl Conditions {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// As [`read_tensors`].
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self {
            file: path.to_owned(),
            tensors: read_tensors(path)?,
        })
    }

    /// Hidden states that the bundle's own text encoder made, by the graph's inputs.
    pub(super) fn of_texts(tensors: Vec<(String, FloatTensor)>) -> Self {
        Self {
            file: PathBuf::from("the text encoder"),
            tensors: tensors.into_iter().collect(),
        }
    }

    /// What several texts say, in turn, each for so many images. What only the first one has, as
    /// what guidance leads away from, is for all.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for tensors of different shapes.
    pub fn of_each(texts: &[Self], images: usize) -> Result<Self> {
        let Some(first) = texts.first() else {
            return Ok(Self::default());
        };
        let join = |(name, tensor): (&String, &FloatTensor)| {
            let rows: Vec<&FloatTensor> = texts
                .iter()
                .filter_map(|text| text.tensors.get(name))
                .collect();
            if rows.len() < texts.len() || texts.len() * images == 1 {
                return Ok((name.clone(), tensor.clone()));
            }
            if rows.iter().any(|row| row.shape != tensor.shape) {
                return Err(first.bad(format!("`{name}` has another shape for each text")));
            }
            let data = rows
                .iter()
                .flat_map(|row| row.data.repeat(images))
                .collect();
            let mut shape = tensor.shape.clone();
            if let Some(count) = shape.first_mut() {
                *count *= texts.len() * images;
            }
            Ok((name.clone(), FloatTensor { shape, data }))
        };
        Ok(Self {
            file: first.file.clone(),
            tensors: first.tensors.iter().map(join).collect::<Result<_>>()?,
        })
    }

    /// The rows of some of `total` images.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a tensor with neither one row nor one for each image.
    pub fn of(&self, images: Range<usize>, total: usize) -> Result<Self> {
        let part = |(name, tensor): (&String, &FloatTensor)| {
            let rows = tensor.shape.first().copied().unwrap_or(0);
            if rows == 1 {
                return Ok((name.clone(), tensor.clone()));
            }
            if rows != total {
                return Err(self.bad(format!(
                    "`{name}` has {rows} rows for {total} images: give it one, or one for each image"
                )));
            }
            let row = tensor.data.len() / total.max(1);
            let shape = [&[images.len()], tensor.shape.get(1..).unwrap_or_default()].concat();
            let data = tensor.data.get(images.start * row..images.end * row);
            let outside =
                || RuntimeError::Bug(format!("images {images:?} of {total} were asked for"));
            Ok((
                name.clone(),
                FloatTensor {
                    shape,
                    data: data.ok_or_else(outside)?.to_vec(),
                },
            ))
        };
        Ok(Self {
            file: self.file.clone(),
            tensors: self.tensors.iter().map(part).collect::<Result<_>>()?,
        })
    }

    fn bad(&self, problem: impl Into<String>) -> RuntimeError {
        RuntimeError::file(&self.file, problem)
    }

    /// Refuses what has other axes than `input`.
    fn check(&self, tensor: &FloatTensor, input: &StepInput) -> Result<()> {
        let fixed = |(n, dim): (&usize, &String)| dim.parse().is_ok_and(|dim: usize| dim != *n);
        let mut axes = tensor.shape.iter().zip(&input.shape);
        if tensor.shape.len() == input.shape.len() && !axes.any(fixed) {
            return Ok(());
        }
        let wanted = input.shape.join(", ");
        Err(self.bad(format!(
            "`{}` has the shape {:?}, and the model takes [{wanted}]",
            input.name, tensor.shape
        )))
    }

    /// How many images it is for, unless for any number.
    pub fn images(&self) -> usize {
        self.tensors
            .values()
            .filter_map(|tensor| tensor.shape.first().copied())
            .max()
            .unwrap_or(0)
    }

    /// The rows for the input `name` of the graph `graph`, of `images` images and, if `guided`, of
    /// as many without a text.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] where there is nothing, [`RuntimeError::File`] for what the
    /// file lacks and what doesn't fit.
    pub fn rows(
        &self,
        graph: &str,
        name: &str,
        images: usize,
        guided: bool,
    ) -> Result<FloatTensor> {
        let given = self.tensors.get(name);
        let all_tokens = || {
            let text = self
                .tensors
                .get(inputs::TEXT)
                .filter(|_| name == inputs::TEXT_MASK)?;
            let shape = text.shape.get(..2)?.to_vec();
            Some(FloatTensor {
                data: vec![1.0; shape.iter().product()],
                shape,
            })
        };
        let with = given.cloned().or_else(all_tokens).ok_or_else(|| {
            if !self.tensors.is_empty() {
                return self.bad(format!("holds no `{name}`, which graph `{graph}` takes"));
            }
            let fix = "Give a safetensors file that holds it with `--embeddings FILE`, or `--prompt TEXT` to a bundle of a whole pipeline";
            RuntimeError::unsupported(
                format!("graph `{graph}`, input `{name}`"),
                "nothing says what it should be",
                fix,
            )
        })?;
        let mut halves = vec![with];
        if guided {
            let negative = self.tensors.get(&format!("{NEGATIVE}{name}"));
            // What isn't the text itself is the same for images without one, as diffusers has it.
            let negative = negative
                .or_else(|| halves.first().filter(|_| name != inputs::TEXT))
                .cloned();
            let missing = || {
                self.bad(format!(
                    "guidance needs `{NEGATIVE}{name}` beside `{name}`: add it to the file, or take guidance 1, which is none"
                ))
            };
            halves.push(negative.ok_or_else(missing)?);
        }
        let tail = halves[0].shape.get(1..).unwrap_or_default().to_vec();
        let mut data = Vec::new();
        for half in &halves {
            let rows = half.shape.first().copied().unwrap_or(0);
            if half.shape.get(1..) != Some(tail.as_slice()) || (rows != 1 && rows != images) {
                return Err(self.bad(format!(
                    "`{name}` has the shape {:?} for {images} images, with rows of {tail:?}",
                    half.shape
                )));
            }
            (0..images / rows).for_each(|_| data.extend_from_slice(&half.data));
        }
        Ok(FloatTensor {
            shape: [&[images * halves.len()], tail.as_slice()].concat(),
            data,
        })
    }
}

/// What stays the same over all evaluations of a run.
#[derive(Debug)]
pub(super) struct Feeds<'r> {
    request: &'r SampleRequest<'r>,
    /// The shape of the network's image input: with guidance twice as many as images.
    shape: [usize; 4],
    /// The class of each row.
    classes: Vec<i64>,
}

impl<'r> Feeds<'r> {
    /// Checks classes and guidance against the model.
    pub fn new(request: &'r SampleRequest<'r>, model: &Diffusion) -> Result<Self> {
        let (images, guided) = (request.seeds.len(), request.is_guided());
        if images == 0 {
            return Err(RuntimeError::Input("no image is asked for".to_owned()));
        }
        if !request.guidance.is_finite() {
            return Err(RuntimeError::Input(format!(
                "guidance {} isn't a number to guide by",
                request.guidance
            )));
        }
        let [height, width] = size(request, model)?;
        let classes = classes(request, model, guided)?;
        if guided && model.classes.is_none() && model.text_width.is_none() {
            let problem = "is conditioned on neither class nor text, so there is nothing to guide it to: take `--guidance 1`";
            return Err(RuntimeError::Input(format!("the model {problem}")));
        }
        let rows = if guided { 2 * images } else { images };
        Ok(Self {
            request,
            shape: [rows, model.channels, height, width],
            classes,
        })
    }

    /// Height and width of the images.
    pub fn size(&self) -> [usize; 2] {
        [self.shape[2], self.shape[3]]
    }

    /// The inputs of one evaluation: `images` is what
    /// [`model_input`](crate::SamplerState::model_input) filled.
    pub fn inputs(
        &self,
        ports: &StepPorts,
        images: &[f32],
        timestep: f64,
        forecast: &[f64],
        memory: &Memory,
    ) -> Result<Vec<(Cow<'static, str>, SessionInputValue<'static>)>> {
        let rows = self.shape[0];
        let value = |input: &StepInput| -> Result<DynValue> {
            let floats = |shape: Vec<usize>, data: &[f32]| {
                float_value(input.dtype, shape, data)
                    .map_err(|problem| RuntimeError::port(&ports.graph, &input.name, problem))
            };
            match &input.feed {
                Feed::Image if self.request.is_guided() => {
                    floats(self.shape.to_vec(), &[images, images].concat())
                }
                Feed::Image => floats(self.shape.to_vec(), images),
                Feed::Noise => floats(
                    [&[self.request.seeds.len()], &self.shape[1..]].concat(),
                    images,
                ),
                Feed::Timestep => floats(vec![rows], &vec![timestep as f32; rows]),
                Feed::Class => {
                    integers(ports, input, &HostTensor::i64([rows], self.classes.clone()))
                }
                Feed::Memory { block, age } => memory.recall(block, *age),
                Feed::Forecast => floats(
                    vec![forecast.len()],
                    &forecast.iter().map(|&w| w as f32).collect::<Vec<_>>(),
                ),
                Feed::Condition => {
                    let none = Conditions::default();
                    let conditions = self.request.conditions.unwrap_or(&none);
                    let tensor = conditions.rows(
                        &ports.graph,
                        &input.name,
                        self.request.seeds.len(),
                        self.request.is_guided(),
                    )?;
                    conditions.check(&tensor, input)?;
                    if input.dtype == DType::I64 {
                        return integers(
                            ports,
                            input,
                            &HostTensor::i64(
                                tensor.shape,
                                tensor.data.iter().map(|&x| x as i64).collect(),
                            ),
                        );
                    }
                    floats(tensor.shape, &tensor.data)
                }
            }
        };
        ports
            .inputs
            .iter()
            .map(|input| Ok((Cow::Owned(input.name.clone()), value(input)?.into())))
            .collect()
    }
}

fn integers(ports: &StepPorts, input: &StepInput, tensor: &HostTensor) -> Result<DynValue> {
    tensor
        .to_value()
        .map_err(|problem| RuntimeError::port(&ports.graph, &input.name, problem))
}

/// Height and width of the images.
fn size(request: &SampleRequest<'_>, model: &Diffusion) -> Result<[usize; 2]> {
    let own = [model.height, model.width];
    let size @ [height, width] = request.size.unwrap_or(own);
    if model.takes(size) {
        let numbers = height.checked_mul(width);
        return match numbers.and_then(|n| n.checked_mul(model.channels)) {
            Some(numbers) if numbers <= LARGEST_IMAGE => Ok(size),
            _ => Err(RuntimeError::Input(format!(
                "an image of {height} x {width} has more than {LARGEST_IMAGE} numbers: ask for a smaller one"
            ))),
        };
    }
    let wanted = match model.size_step {
        Some(step) => {
            format!("the model's stages halve images, so both must be multiples of {step}")
        }
        None => format!(
            "the bundle's graphs take {} x {} alone: its model has a table of positions for that size, or it was compiled by an older dlc",
            own[0], own[1]
        ),
    };
    Err(RuntimeError::Input(format!(
        "there are no images of {height} x {width}: {wanted}"
    )))
}

/// The class of each row: of each image, and with guidance as many times "no class".
fn classes(request: &SampleRequest<'_>, model: &Diffusion, guided: bool) -> Result<Vec<i64>> {
    let fail = |problem: String| Err(RuntimeError::Input(problem));
    let Some(known) = model.classes else {
        let given = !request.classes.is_empty();
        return if given {
            fail("the model takes no class: leave --class out".to_owned())
        } else {
            Ok(vec![])
        };
    };
    if let Some(class) = request.classes.iter().find(|class| **class >= known.count) {
        return fail(format!(
            "there is no class {class}: the model's are 0 to {}",
            known.count.saturating_sub(1)
        ));
    }
    let (images, given) = (request.seeds.len(), request.classes.len());
    if images != given {
        return fail(format!(
            "{given} classes for {images} images: the model takes one for each"
        ));
    }
    let without = match (guided, known.unconditional) {
        (false, _) => vec![],
        (true, Some(id)) => vec![id as i64; images],
        (true, None) => return fail(
            "the model wasn't trained without a class, which guidance needs: take `--guidance 1`"
                .to_owned(),
        ),
    };
    Ok(request
        .classes
        .iter()
        .map(|class| *class as i64)
        .chain(without)
        .collect())
}
