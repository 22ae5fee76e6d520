//! The names of a bundle's files: each is one of its own, and stays inside the folder.

use std::collections::BTreeSet;

use dlc_bundle::MANIFEST_FILE;
use dlc_ir::Module;

use crate::deploy::{Layout, TARGETS};
use crate::error::ExportError;

/// Every file of the bundle has a name of its own that stays inside the folder; graphs may be in
/// a folder of the layout, side files in any one folder.
pub(crate) fn check_names(module: &Module, layout: Layout) -> Result<(), ExportError> {
    if module.graphs.first().is_none_or(|g| g.name != "target") {
        return Err(ExportError::module(
            "module",
            "its first graph is not `target`",
        ));
    }
    let of_targets = TARGETS.iter().flat_map(|target| target.writes);
    let weights_files = module.graphs.iter().map(|g| layout.weights_file(&g.name));
    let mut taken: BTreeSet<String> = [MANIFEST_FILE]
        .iter()
        .chain(of_targets)
        .map(|name| (*name).to_owned())
        .chain(weights_files)
        .collect();
    let plain = |name: &str| {
        !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
    };
    let depth = usize::from(layout.components || !layout.folder.is_empty());
    let graphs = module.graphs.iter();
    let graphs = graphs.map(|g| (layout.graph_file(&g.name), depth));
    let side_files = module.side_files.iter();
    let side_files = side_files.map(|f| (layout.side_file(&f.name), 1));
    let mut folders = BTreeSet::new();
    for (name, depth) in graphs.chain(side_files) {
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() > depth + 1 || !parts.iter().all(|part| plain(part)) {
            return Err(ExportError::module(
                name,
                "is no file name that a bundle can hold",
            ));
        }
        if let [folder, _] = parts[..] {
            folders.insert(folder.to_lowercase());
        }
        if !taken.insert(name.to_lowercase()) {
            return Err(ExportError::module(
                name,
                "two files of the bundle would have this name",
            ));
        }
    }
    match taken.intersection(&folders).next() {
        Some(both) => Err(ExportError::module(
            both,
            "a file and a folder of the bundle would have this name",
        )),
        None => Ok(()),
    }
}
