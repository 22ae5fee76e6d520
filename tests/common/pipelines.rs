//! Goldens of whole pipelines: what diffusers made of prompts, part by part and from end to end.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::{module_of_bundle, parse_adapter_flag};
use dlc_bundle::Profile;
use dlc_eval::Array;
use dlc_ir::{DType, Diffusion, Module, TextEncoder};
use dlc_runtime::{
    Backend, Bundle, DiffusionSession, ImageDecoder, Negative, PromptEncoder, SampleRequest,
    SamplerWishes, SessionOptions, SharedWeights, choose_sampler,
};
use safetensors::SafeTensors;

use super::decoding::{compile_quietly, compile_request};
use super::golden::recorded as recorded_tensors;
use super::session::{Arrays, Engine, close, export};
use super::{fixture, folders};

/// How far pixels may be from the reference, of numbers from -1 to 1.
pub const PIXELS: f32 = 2.0 / 255.0;

/// A pipeline, and what diffusers made with it.
#[derive(Debug, Clone)]
pub struct PipelineGolden {
    pub name: String,
    pub folder: PathBuf,
    golden: PathBuf,
    /// Adapters that are merged into it, as flags.
    pub adapters: Vec<String>,
}

/// The graphs of a pipeline that are compared one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graph {
    TextEncoder,
    SecondTextEncoder,
    Denoiser,
    Decoder,
    Encoder,
}

impl Graph {
    const ALL: [Self; 5] = [
        Self::TextEncoder,
        Self::SecondTextEncoder,
        Self::Denoiser,
        Self::Decoder,
        Self::Encoder,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => Diffusion::TEXT_ENCODER,
            Self::SecondTextEncoder => Diffusion::SECOND_TEXT_ENCODER,
            Self::Denoiser => "target",
            Self::Decoder => Diffusion::IMAGE_DECODER,
            Self::Encoder => Diffusion::IMAGE_ENCODER,
        }
    }
}

/// A run of the pipeline that was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub scheduler: &'static str,
    pub negative: Option<String>,
    /// The pictures, all after one another.
    pub pictures: Vec<f32>,
}

/// What was recorded.
pub struct Recorded {
    tensors: BTreeMap<String, Array>,
    /// One for each picture, or none.
    pub prompts: Vec<String>,
    /// The texts whose tokens are recorded.
    pub texts: Vec<String>,
    pub classes: Vec<usize>,
    negative: Option<String>,
    pub steps: usize,
    pub guidance: f64,
    /// Latents of the picture that the images start from, and the share of the steps.
    pub image: Option<(Vec<f32>, f64)>,
}

impl PipelineGolden {
    /// Random ones, and the trained one.
    pub fn all() -> Vec<Self> {
        let mut names = folders("pipelines");
        names.sort();
        assert!(names.len() >= 2, "{names:?}");
        let random = names.into_iter().map(|name| {
            let folder = fixture(&format!("pipelines/{name}"));
            (name, folder)
        });
        let trained = ("fashion-sd".to_owned(), fixture("fashion-sd"));
        let golden = |(name, folder): (String, PathBuf)| Self {
            golden: folder.join("golden.safetensors"),
            name,
            folder,
            adapters: vec![],
        };
        random.chain([trained]).map(golden).collect()
    }

    /// A pipeline with the adapters of each trainer.
    pub fn adapted() -> Vec<Self> {
        let mut names = folders("pipeline-adapters");
        names.sort();
        assert_eq!(names, ["diffusers", "kohya", "peft"]);
        let of = |name: String| {
            let adapters = fixture(&format!("pipeline-adapters/{name}"));
            let golden = adapters.join("golden.safetensors");
            let weights: BTreeMap<String, f64> =
                serde_json::from_str(&texts(&golden)["adapters"]).unwrap();
            let flag = |(file, weight)| format!("{}={weight}", adapters.join(file).display());
            Self {
                name,
                folder: fixture("pipelines/sd15"),
                golden,
                adapters: weights.into_iter().map(flag).collect(),
            }
        };
        names.into_iter().map(of).collect()
    }

    /// The graphs that are recorded.
    pub fn graphs(&self) -> Vec<Graph> {
        let recorded = self.recorded();
        let mut graphs = Graph::ALL.to_vec();
        graphs.retain(|graph| !recorded.feeds(*graph).is_empty());
        assert!(graphs.len() >= 2, "{}: {graphs:?}", self.name);
        graphs
    }

    /// What was made from noise.
    pub fn recorded(&self) -> Recorded {
        let mut recorded = Self::recorded_in(&self.golden);
        if self.image_file().is_file() {
            let mut of_image = recorded_tensors(&self.image_file());
            of_image.retain(|name, _| name.starts_with(Diffusion::IMAGE_ENCODER));
            recorded.tensors.extend(of_image);
        }
        recorded
    }

    /// What was made from a picture, if something was.
    pub fn recorded_of_image(&self) -> Option<Recorded> {
        let file =
            Some(self.image_file()).filter(|file| file.is_file() && self.adapters.is_empty())?;
        let mut recorded = Self::recorded_in(&file);
        let noise = recorded.tensors.remove("noise")?;
        recorded.tensors.insert("latents".to_owned(), noise);
        let latents = recorded.tensors["vae_encoder>latents"].as_f32().unwrap();
        let first = latents[..latents.len() / 2].to_vec();
        recorded.image = Some((first, texts(&file)["strength"].parse().unwrap()));
        Some(recorded)
    }

    fn image_file(&self) -> PathBuf {
        self.folder.join("image.safetensors")
    }

    fn recorded_in(file: &Path) -> Recorded {
        let texts = texts(file);
        let prompts: Vec<String> = list(texts.get("prompts"));
        Recorded {
            tensors: recorded_tensors(file),
            image: None,
            texts: match texts.get("texts") {
                None => [prompts.clone(), vec![String::new()]].concat(),
                recorded => list(recorded),
            },
            prompts,
            classes: list(texts.get("classes")),
            negative: texts.get("negative").cloned(),
            steps: texts["steps"].parse().unwrap(),
            guidance: texts["guidance"].parse().unwrap(),
        }
    }

    /// The module, and what was made while it was opened, which goes with the second.
    pub fn module(&self, dtype: DType) -> (Module, (Checkpoint, tempfile::TempDir)) {
        let place = tempfile::tempdir().unwrap();
        let mut checkpoint = Checkpoint::open(&self.folder).unwrap();
        checkpoint.write_derived(place.path()).unwrap();
        let options = ImportOptions {
            dtype: Some(dtype),
            ..ImportOptions::default()
        };
        let mut module = import(&checkpoint, &options).unwrap();
        if !self.adapters.is_empty() {
            let bundle = self.merged(dtype, place.path());
            module = Module {
                side_files: module.side_files,
                ..module_of_bundle(&bundle).unwrap()
            };
        }
        (module, (checkpoint, place))
    }

    /// A bundle in `folder` of the pipeline with its adapters.
    fn merged(&self, dtype: DType, folder: &Path) -> Bundle {
        let output = folder.join("merged");
        let mut request = compile_request(self.folder.clone(), Profile::Portable, output);
        request.dtype = Some(dtype);
        let adapters = self.adapters.iter();
        request.adapters = adapters.map(|a| parse_adapter_flag(a).unwrap()).collect();
        compile_quietly(&request).unwrap();
        Bundle::open(&request.output).unwrap()
    }

    /// Compares one graph with what is recorded of it.
    pub fn check_graph(
        &self,
        engine: &Engine,
        graph: Graph,
        dtype: DType,
        tolerance: f32,
    ) -> Result<(), String> {
        let (module, _place) = self.module(dtype);
        let recorded = self.recorded();
        let mut runner = engine.load_graph(module, graph.name())?;
        for (inputs, output, expected) in recorded.feeds(graph) {
            let outputs = runner.run(&inputs)?;
            let found = outputs.get(output).ok_or("the output is missing")?;
            let what = format!("{} {output}", self.name);
            let expected = expected.as_f32().unwrap();
            // Before the last norm states have any size, to which half precision is relative.
            let is_free = dtype == DType::F16 && output == TextEncoder::PENULTIMATE;
            let sizes = expected.iter().filter(|_| is_free);
            let peak = sizes.fold(1f32, |peak, x| peak.max(x.abs()));
            close(&what, found.as_f32().unwrap(), expected, tolerance * peak)?;
        }
        Ok(())
    }

    /// Makes every recorded picture from its noise and its prompt, on a backend.
    pub fn check_pictures(&self, engine: &Engine) -> Result<(), String> {
        let Engine::Backend(backend, profile) = engine else {
            return Err("pictures are made on backends".into());
        };
        let (module, _place) = self.module(DType::F32);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("bundle");
        export(&module, *profile, &out);
        let bundle = Bundle::open(&out).map_err(|e| e.to_string())?;
        for recorded in [Some(self.recorded()), self.recorded_of_image()]
            .iter()
            .flatten()
        {
            for run in recorded.runs() {
                let found =
                    pictures(backend, &bundle, recorded, &run).map_err(|e| e.to_string())?;
                let from = recorded.image.as_ref().map(|(_, strength)| strength);
                let what = format!(
                    "{} {} {:?} {from:?}",
                    self.name, run.scheduler, run.negative
                );
                close(&what, &found, &run.pictures, PIXELS)?;
            }
        }
        Ok(())
    }
}

/// What a file of tensors says of itself.
fn texts(file: &Path) -> HashMap<String, String> {
    let bytes = std::fs::read(file).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().clone().unwrap()
}

/// A list of the metadata, empty where it isn't there.
fn list<T: serde::de::DeserializeOwned>(text: Option<&String>) -> Vec<T> {
    text.map_or_else(Vec::new, |text| serde_json::from_str(text).unwrap())
}

impl Recorded {
    /// How many pictures each run has.
    pub fn pictures(&self) -> usize {
        self.tensors["latents"].shape()[0]
    }

    pub fn tensor(&self, name: &str) -> &Array {
        &self.tensors[name]
    }

    /// The noise of one of the pictures.
    pub fn noise(&self, picture: usize) -> &[f32] {
        let noise = self.tensors["latents"].as_f32().unwrap();
        let numbers = noise.len() / self.pictures();
        &noise[picture * numbers..][..numbers]
    }

    /// The tokens of the prompts and of the empty text, by the graph that they are for.
    pub fn tokens(&self) -> Vec<(&'static str, Vec<&Array>)> {
        let named = |name: &str| self.tensors.get(name);
        if let Some(first) = named("token_ids") {
            let ids = [Some(first), named("token_ids_empty")];
            return vec![(Diffusion::TEXT_ENCODER, ids.into_iter().flatten().collect())];
        }
        let graphs = [Diffusion::TEXT_ENCODER, Diffusion::SECOND_TEXT_ENCODER];
        let of = |graph| Some((graph, vec![named(&format!("{graph}<input_ids"))?]));
        graphs.into_iter().filter_map(of).collect()
    }

    /// Inputs of a graph, its output, and what it was.
    fn feeds(&self, graph: Graph) -> Vec<(Arrays, &str, &Array)> {
        if graph == Graph::Encoder || !self.tensors.contains_key("token_ids") {
            return self.named_feeds(graph.name());
        }
        self.old_feeds(graph)
    }

    /// As [`feeds`](Self::feeds), of tensors called `GRAPH<INPUT` and `GRAPH>OUTPUT`.
    fn named_feeds(&self, graph: &str) -> Vec<(Arrays, &str, &Array)> {
        let part = |name: &'_ str, mark: char| -> Option<usize> {
            let rest = name.strip_prefix(graph)?;
            rest.starts_with(mark).then_some(graph.len() + 1)
        };
        let tensors = self.tensors.iter();
        let inputs = tensors
            .clone()
            .filter_map(|(name, array)| Some((name[part(name, '<')?..].to_owned(), array.clone())));
        let inputs: Arrays = inputs.collect();
        let outputs = tensors
            .filter_map(|(name, array)| Some((inputs.clone(), &name[part(name, '>')?..], array)));
        outputs.collect()
    }

    /// As [`feeds`](Self::feeds), by the names of the older files.
    fn old_feeds(&self, graph: Graph) -> Vec<(Arrays, &str, &Array)> {
        let of = |name: &str| self.tensors[name].clone();
        let arrays = |list: &[(&str, Array)]| -> Arrays {
            let named = list.iter();
            named.map(|(n, a)| ((*n).to_owned(), a.clone())).collect()
        };
        match graph {
            Graph::TextEncoder => ["", "_empty"]
                .map(|end| {
                    let ids = of(&format!("token_ids{end}"));
                    let ones = vec![1; ids.shape().iter().product()];
                    let mask = Array::i64(ids.shape().to_vec(), ones).unwrap();
                    let inputs = arrays(&[("input_ids", ids), ("attention_mask", mask)]);
                    let states = &self.tensors[&format!("text_hidden{end}")];
                    (inputs, "last_hidden_state", states)
                })
                .into(),
            Graph::SecondTextEncoder | Graph::Encoder => vec![],
            Graph::Denoiser => {
                let level = self.tensors["timestep"].as_i64().unwrap()[0] as f32;
                let images = self.prompts.len();
                let levels = Array::f32([images], vec![level; images]).unwrap();
                let inputs = arrays(&[
                    ("sample", of("latents")),
                    ("timestep", levels),
                    ("encoder_hidden_states", of("text_hidden")),
                ]);
                vec![(inputs, "out_sample", &self.tensors["unet_output"])]
            }
            Graph::Decoder => {
                let inputs = arrays(&[(Diffusion::LATENTS, of("decoder_latents"))]);
                let images = &self.tensors["decoder_image"];
                vec![(inputs, Diffusion::IMAGES, images)]
            }
        }
    }

    /// Every run that was recorded.
    pub fn runs(&self) -> Vec<Run> {
        let ends = [("", None), ("_negative", self.negative.clone())];
        let all = ["ddim", "pndm"].into_iter().flat_map(|scheduler| {
            let run = move |(end, negative): &(&str, Option<String>)| {
                let pictures = self.tensors.get(&format!("{scheduler}_image{end}"))?;
                Some(Run {
                    scheduler,
                    negative: negative.clone(),
                    pictures: pictures.as_f32().unwrap().to_vec(),
                })
            };
            ends.iter().filter_map(run).collect::<Vec<_>>()
        });
        let runs: Vec<Run> = all.collect();
        assert!(!runs.is_empty());
        runs
    }
}

/// The pictures of one run, as `dlc sample` makes them.
fn pictures(
    backend: &Backend,
    bundle: &Bundle,
    recorded: &Recorded,
    run: &Run,
) -> dlc_runtime::Result<Vec<f32>> {
    let options = SessionOptions::default();
    let weights = SharedWeights::open(bundle, backend)?;
    let weights = weights.as_ref();
    let open = || PromptEncoder::open(backend, bundle, weights, &options);
    let prompts = !recorded.prompts.is_empty();
    let mut encoder = prompts.then(open).transpose()?;
    let mut denoiser = DiffusionSession::open(backend, bundle, weights, &options)?;
    let mut decoder = ImageDecoder::open(backend, bundle, weights, &options)?.unwrap();
    let wishes = SamplerWishes {
        steps: Some(recorded.steps),
        scheduler: Some(run.scheduler.into()),
        guidance: Some(recorded.guidance),
        no_prune: true,
        strength: recorded.image.as_ref().map(|(_, strength)| *strength),
    };
    let choice = choose_sampler(bundle, &wishes)?;
    let negative = run.negative.as_deref();
    let negative = negative.map_or(Negative::Usual, Negative::Text);
    let mut pictures = Vec::new();
    for picture in 0..recorded.pictures() {
        let encode = |encoder: &mut PromptEncoder| {
            encoder.encode(&recorded.prompts[picture..=picture], negative, None)
        };
        let encoded = encoder.as_mut().map(encode).transpose()?;
        let encoded = encoded.and_then(|mut prompts| prompts.pop());
        let request = SampleRequest {
            plan: &choice.plan,
            image: recorded.image.as_ref().map(|(image, _)| image.as_slice()),
            guidance: choice.guidance,
            seeds: &[0],
            noise: Some(recorded.noise(picture)),
            classes: recorded.classes.get(picture..=picture).unwrap_or_default(),
            size: None,
            conditions: encoded.as_ref().map(|encoded| &encoded.conditions),
            prune: false,
        };
        let latents = denoiser.sample(&request, &mut |_| ControlFlow::Continue(()))?;
        let latents = latents.unwrap();
        let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
        pictures.extend(decoder.decode(&latents, go_on)?.unwrap().data);
    }
    Ok(pictures)
}
