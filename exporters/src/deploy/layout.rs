//! Where the files of a bundle lie.

use dlc_bundle::WEIGHTS_FILE;
use dlc_ir::Diffusion;

/// The component with the first tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer";
/// The component that the denoiser is.
const DENOISER: &str = "unet";
/// The graphs beside the denoiser: each is a component by itself.
const PARTS: [&str; 4] = [
    Diffusion::TEXT_ENCODER,
    Diffusion::SECOND_TEXT_ENCODER,
    Diffusion::IMAGE_DECODER,
    Diffusion::IMAGE_ENCODER,
];

/// Places in a bundle. The ONNX files lie beside the weight file: ONNX lets a file name no other
/// external data than what is in its own folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The folder of the ONNX files and the weights, with a slash after it; empty for the bundle's
    /// own.
    pub folder: &'static str,
    /// What follows the name of a graph, with the ending.
    pub suffix: &'static str,
    /// The name of the weight file.
    pub weights: &'static str,
    /// Whether files lie as in the folder of a pipeline of diffusers: each component has a folder
    /// with its graph, its weights and its configuration.
    pub components: bool,
}

impl Layout {
    /// Everything in the bundle's own folder.
    pub const FLAT: Self = Self {
        folder: "",
        suffix: ".onnx",
        weights: WEIGHTS_FILE,
        components: false,
    };

    /// The ONNX file of a graph, as a path in the bundle: `model.onnx` for the target and for a
    /// component by itself, else the graph's name.
    pub fn graph_file(self, graph: &str) -> String {
        let alone = graph == "target" || self.components && PARTS.contains(&graph);
        let name = if alone { "model" } else { graph };
        [&self.folder_of(graph), name, self.suffix].concat()
    }

    /// The file with the weights of a graph, as a path in the bundle.
    pub fn weights_file(self, graph: &str) -> String {
        [&self.folder_of(graph), self.weights].concat()
    }

    /// Where a side file lies, as a path in the bundle.
    pub fn side_file(self, name: &str) -> String {
        match name {
            _ if !self.components => name.to_owned(),
            "model_index.json" => name.to_owned(),
            "config.json" => format!("{DENOISER}/{name}"),
            "scheduler_config.json" => format!("scheduler/{name}"),
            _ if name.contains('/') => name.to_owned(),
            _ => format!("{TOKENIZER}/{name}"),
        }
    }

    fn folder_of(self, graph: &str) -> String {
        if !self.components {
            return self.folder.to_owned();
        }
        let part = PARTS.contains(&graph);
        format!("{}/", if part { graph } else { DENOISER })
    }
}
