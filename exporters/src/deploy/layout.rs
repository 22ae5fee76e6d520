//! Where the ONNX files of a bundle and its weights lie.

use dlc_bundle::WEIGHTS_FILE;

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
}

impl Layout {
    /// Everything in the bundle's own folder.
    pub const FLAT: Self = Self {
        folder: "",
        suffix: ".onnx",
        weights: WEIGHTS_FILE,
    };

    /// The ONNX file of a graph, as a path in the bundle: `model.onnx` for the target, else the
    /// graph's name.
    pub fn graph_file(self, graph: &str) -> String {
        let name = if graph == "target" { "model" } else { graph };
        [self.folder, name, self.suffix].concat()
    }

    /// The weight file, as a path in the bundle.
    pub fn weights_file(self) -> String {
        [self.folder, self.weights].concat()
    }
}
