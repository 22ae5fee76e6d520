//! Graph against graph: which blocks went, came, changed or stayed, what that saves, and the text
//! line by line.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::Serialize;
use similar::TextDiff;

use crate::cost::{Cost, cost, macs_per_image};
use crate::graph::Graph;
use crate::module::Diffusion;
use crate::weight::WeightTable;

/// What differs between two graphs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphDiff {
    /// Name of the first graph.
    pub before: String,
    /// Name of the second graph.
    pub after: String,
    /// Blocks of the first graph that the second lacks, in order.
    pub removed: Vec<String>,
    /// Blocks that only the second graph has, in order.
    pub added: Vec<String>,
    /// Blocks of both whose nodes differ, where they come from aside.
    pub changed: Vec<String>,
    /// Blocks of both that are alike.
    pub kept: Vec<String>,
    /// Cost of the first graph.
    pub cost_before: Cost,
    /// Cost of the second graph.
    pub cost_after: Cost,
    /// Multiply-adds for an image before and after, of graphs that work on images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs: Option<(u64, u64)>,
    /// Unified diff of the text forms, empty for equal graphs.
    pub text: String,
}

impl GraphDiff {
    /// Whether the graphs are the same but for their names.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

/// Compares two graphs, each over its own weights; weights are compared by name and type.
pub fn diff(before: (&Graph, &WeightTable), after: (&Graph, &WeightTable)) -> GraphDiff {
    diff_of_images(before, after, None)
}

/// As [`diff`], of graphs that work on images of the size of `model`.
pub fn diff_of_images(
    before: (&Graph, &WeightTable),
    after: (&Graph, &WeightTable),
    model: Option<&Diffusion>,
) -> GraphDiff {
    let (a, b) = (
        block_texts(before.0, before.1),
        block_texts(after.0, after.1),
    );
    let names = |graph: &Graph, keep: &dyn Fn(&str) -> bool| -> Vec<String> {
        graph
            .blocks()
            .map(|(_, block)| block.name.clone())
            .filter(|name| keep(name))
            .collect()
    };
    let same_interface = [before, after].map(|(graph, weights)| {
        let text = graph.to_text(weights);
        text.split_once('\n')
            .map(|(_, rest)| rest.to_owned())
            .unwrap_or_default()
    });
    let [old, new] = &same_interface;
    let text = if old == new {
        String::new()
    } else {
        unified(old, new, &before.0.name, &after.0.name)
    };
    GraphDiff {
        before: before.0.name.clone(),
        after: after.0.name.clone(),
        removed: names(before.0, &|n| !b.contains_key(n)),
        added: names(after.0, &|n| !a.contains_key(n)),
        changed: names(before.0, &|n| {
            b.get(n).is_some_and(|text| Some(text) != a.get(n))
        }),
        kept: names(before.0, &|n| {
            b.get(n).is_some_and(|text| Some(text) == a.get(n))
        }),
        cost_before: cost(before.0, before.1),
        cost_after: cost(after.0, after.1),
        macs: macs_per_image(before.0, before.1, model)
            .zip(macs_per_image(after.0, after.1, model)),
        text,
    }
}

fn unified(old: &str, new: &str, before: &str, after: &str) -> String {
    TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(2)
        .header(before, after)
        .to_string()
}

/// The text of each block, with its residual input called `%input` and its caches called after
/// their layer, so that a block whose predecessor went is still the same block.
fn block_texts(graph: &Graph, weights: &WeightTable) -> BTreeMap<String, String> {
    let text = graph.body_text(weights);
    let caches: BTreeMap<String, String> = graph
        .inputs()
        .iter()
        .filter_map(|i| i.cache.map(|c| (format!("%{}", i.name), format!("%{c}"))))
        .collect();
    let mut blocks = BTreeMap::new();
    let mut open: Option<(&str, String, String)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("  block ") {
            let name = rest.split(' ').next().unwrap_or_default();
            let input = rest
                .rsplit(" from ")
                .next()
                .unwrap_or_default()
                .trim_end_matches(" {");
            open = Some((name, input.to_owned(), String::new()));
        } else if line.starts_with("  } to ") {
            if let Some((name, _, body)) = open.take() {
                blocks.insert(name.to_owned(), body);
            }
        } else if let Some((_, input, body)) = &mut open {
            let words = line.split_inclusive([' ', ',']).map(|word| {
                let bare = word.trim_end_matches([' ', ',']);
                match caches.get(bare) {
                    _ if bare == input => word.replace(bare, "%input"),
                    Some(cache) => word.replace(bare, cache),
                    None => word.to_owned(),
                }
            });
            body.extend(words);
            body.push('\n');
        }
    }
    blocks
}

impl GraphDiff {
    /// The diff without the text: blocks and costs.
    pub fn summary(&self) -> String {
        let mut text = format!("{} -> {}, blocks\n", self.before, self.after);
        for (what, blocks) in [
            ("removed", &self.removed),
            ("added", &self.added),
            ("changed", &self.changed),
        ] {
            if !blocks.is_empty() {
                let _ = writeln!(
                    text,
                    "  {what:<8} {:>3}  {}",
                    blocks.len(),
                    blocks.join(" ")
                );
            }
        }
        let _ = writeln!(text, "  {:<8} {:>3}", "kept", self.kept.len());
        let (a, b) = (&self.cost_before, &self.cost_after);
        let mut rows = vec![("parameters", a.parameters, b.parameters)];
        match self.macs {
            Some((before, after)) => rows.push(("MACs/image", before, after)),
            None => rows.extend([
                ("FLOPs/token", a.flops_per_token, b.flops_per_token),
                (
                    "cache bytes/token",
                    a.cache_bytes_per_token,
                    b.cache_bytes_per_token,
                ),
            ]),
        }
        let proportional = u128::from(a.weight_bytes) * u128::from(b.parameters)
            == u128::from(b.weight_bytes) * u128::from(a.parameters);
        if !proportional {
            rows.insert(1, ("weight bytes", a.weight_bytes, b.weight_bytes));
        }
        for (what, a, b) in rows {
            let change = if a == 0 {
                0.0
            } else {
                100.0 * (b as f64 - a as f64) / a as f64
            };
            let _ = writeln!(text, "  {what:<18} {a:>13} -> {b:>13}  {change:>+6.1}%");
        }
        text
    }
}

impl fmt::Display for GraphDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(
                f,
                "{} -> {}: the graphs are the same",
                self.before, self.after
            );
        }
        write!(f, "{}\n{}", self.summary(), self.text)
    }
}
