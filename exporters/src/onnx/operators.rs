//! The operators that dlc writes, as their schemas define them from opset to opset, and the kernels
//! that ONNX Runtime's CUDA provider has for them: `operators.txt`, which `scripts/cuda_kernels.py`
//! makes.
//!
//! Never looks at a graph's meaning: an operator is a name, a number of inputs, and element types.

use std::collections::{BTreeMap, HashMap};

use dlc_onnx::proto::{GraphProto, NodeProto, data_type_name};

/// The opsets of ai.onnx that graphs may declare.
pub(super) const OPSETS: std::ops::RangeInclusive<i64> = 17..=23;

/// The table.
#[derive(Debug)]
pub(super) struct Operators {
    /// By operator, after its domain unless that is ai.onnx; the oldest first.
    versions: HashMap<&'static str, Vec<Version>>,
}

/// An operator from one opset to the next that changes it.
#[derive(Debug)]
pub(super) struct Version {
    /// The opset that it has this form since.
    pub since: i64,
    inputs: Slots,
    outputs: Slots,
    attributes: Vec<&'static str>,
    types: BTreeMap<&'static str, Vec<&'static str>>,
    /// Element types that go together, by the slots' words; one of each list.
    kernels: Vec<BTreeMap<&'static str, Vec<&'static str>>>,
}

/// What stands for the element type at each place: a word, or the type itself; `-` for nothing.
#[derive(Debug, Default)]
struct Slots {
    words: Vec<&'static str>,
    /// Whether the last stands for any number of places.
    endless: bool,
}

/// The element type that each word of a version stands for.
pub(super) type Binding = BTreeMap<&'static str, &'static str>;

/// A node of an ONNX graph with the element types of its inputs and outputs; none for one left out,
/// or of a type that isn't known.
#[derive(Debug)]
pub(super) struct TypedNode<'g> {
    pub node: &'g NodeProto,
    inputs: Vec<Option<&'static str>>,
    outputs: Vec<Option<&'static str>>,
}

impl Operators {
    /// Reads the table.
    pub fn table() -> Self {
        let mut versions: HashMap<_, Vec<Version>> = HashMap::new();
        let mut name = "";
        for line in include_str!("operators.txt").lines() {
            let (kind, rest) = line.trim().split_once(' ').unwrap_or_default();
            if kind == "operator" {
                let mut parts = rest.splitn(3, ' ');
                name = parts.next().unwrap_or_default();
                let since = parts.next().and_then(|n| n.parse().ok());
                let (inputs, outputs) = parts
                    .next()
                    .and_then(|form| form.split_once(" -> "))
                    .unwrap_or_default();
                versions.entry(name).or_default().push(Version {
                    since: since.unwrap_or_default(),
                    inputs: Slots::read(inputs),
                    outputs: Slots::read(outputs),
                    attributes: vec![],
                    types: BTreeMap::new(),
                    kernels: vec![],
                });
                continue;
            }
            let Some(version) = versions.get_mut(name).and_then(|all| all.last_mut()) else {
                continue;
            };
            match kind {
                "attributes" => version.attributes = rest.split(' ').collect(),
                "types" => version.types = lists(rest),
                "cuda" => version.kernels.push(lists(rest)),
                _ => {}
            }
        }
        Self { versions }
    }

    /// The version of a node's operator that a graph of this opset means.
    pub fn version(&self, node: &NodeProto, opset: i64) -> Option<&Version> {
        let versions = self.versions.get(full_name(node).as_str())?;
        versions.iter().rev().find(|v| v.since <= opset)
    }

    /// The nodes of a graph with their element types.
    pub fn typed<'g>(&self, graph: &'g GraphProto) -> Vec<TypedNode<'g>> {
        let mut types = boundary_types(graph);
        let mut nodes = Vec::with_capacity(graph.node.len());
        for node in &graph.node {
            let of = |types: &HashMap<&str, &'static str>, names: &[String]| {
                names
                    .iter()
                    .map(|n| types.get(n.as_str()).copied())
                    .collect()
            };
            let inputs: Vec<_> = of(&types, &node.input);
            // A later version only has more types.
            if let Some(version) = self.version(node, *OPSETS.end()) {
                for (at, name) in node
                    .output
                    .iter()
                    .enumerate()
                    .filter(|(_, n)| !n.is_empty())
                {
                    let made = version.made(node, &inputs, at);
                    types.extend(made.map(|made| (name.as_str(), made)));
                }
            }
            nodes.push(TypedNode {
                node,
                outputs: of(&types, &node.output),
                inputs,
            });
        }
        nodes
    }

    /// The lowest opset in which every node has the inputs, attributes and element types that it
    /// has here. Operators that dlc writes mean the same in all of them.
    pub fn lowest_opset(&self, nodes: &[TypedNode<'_>]) -> Option<i64> {
        let takes = |opset, node: &TypedNode<'_>| {
            self.version(node.node, opset)
                .is_some_and(|version| version.binding(node).is_some())
        };
        OPSETS
            .into_iter()
            .find(|opset| nodes.iter().all(|node| takes(*opset, node)))
    }
}

/// `domain.Operator`; ai.onnx has no domain.
pub(super) fn full_name(node: &NodeProto) -> String {
    if node.domain.is_empty() {
        node.op_type.clone()
    } else {
        format!("{}.{}", node.domain, node.op_type)
    }
}

/// Element types of inputs and initializers.
fn boundary_types(graph: &GraphProto) -> HashMap<&str, &'static str> {
    let inputs = graph.input.iter().filter_map(|input| {
        let tensor = input.r#type.as_ref()?.tensor_type.as_ref()?;
        Some((input.name.as_str(), data_type_name(tensor.elem_type).0))
    });
    let initializers = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name.as_str(), data_type_name(tensor.data_type).0));
    inputs.chain(initializers).collect()
}

/// `T=f16,f32 U=bool`.
fn lists(text: &'static str) -> BTreeMap<&'static str, Vec<&'static str>> {
    text.split(' ')
        .filter_map(|part| part.split_once('='))
        .map(|(word, types)| (word, types.split(',').collect()))
        .collect()
}

impl Slots {
    /// `(T, -, i64...)`.
    fn read(text: &'static str) -> Self {
        let text = text.trim_start_matches('(').trim_end_matches(')');
        let endless = text.ends_with("...");
        let words = text.trim_end_matches("...").split(", ").collect();
        Self { words, endless }
    }

    /// What stands at a place; none past the end.
    fn at(&self, place: usize) -> Option<&'static str> {
        let last = self.words.last().filter(|_| self.endless);
        self.words.get(place).or(last).copied()
    }
}

impl Version {
    /// What the words stand for in a node; none if it isn't of this form.
    pub fn binding(&self, node: &TypedNode<'_>) -> Option<Binding> {
        let known = |name: &str| self.attributes.contains(&name);
        if !node.node.attribute.iter().all(|a| known(&a.name)) {
            return None;
        }
        let mut binding = Binding::new();
        let sides = [
            (&self.inputs, &node.node.input, &node.inputs),
            (&self.outputs, &node.node.output, &node.outputs),
        ];
        for (slots, names, types) in sides {
            for (at, ty) in types.iter().enumerate() {
                if !names.get(at).is_none_or(String::is_empty) {
                    self.bind(slots.at(at)?, (*ty)?, &mut binding)?;
                }
            }
        }
        Some(binding)
    }

    /// Lets `word` stand for `ty`; none if it can't.
    fn bind(&self, word: &'static str, ty: &'static str, binding: &mut Binding) -> Option<()> {
        let Some(allowed) = self.types.get(word) else {
            return (word == ty).then_some(());
        };
        let bound = *binding.entry(word).or_insert(ty);
        (bound == ty && allowed.contains(&ty)).then_some(())
    }

    /// The element type of a node's output.
    fn made(
        &self,
        node: &NodeProto,
        inputs: &[Option<&'static str>],
        at: usize,
    ) -> Option<&'static str> {
        let word = self.outputs.at(at)?;
        let Some(allowed) = self.types.get(word) else {
            return Some(word);
        };
        let given = inputs
            .iter()
            .enumerate()
            .find_map(|(place, ty)| ty.filter(|_| self.inputs.at(place) == Some(word)));
        let only = match allowed.as_slice() {
            [only] => Some(*only),
            _ => None,
        };
        let wanted = || {
            let to = node.attribute.iter().find(|a| a.name == "to")?.i?;
            Some(data_type_name(i32::try_from(to).ok()?).0)
        };
        given.or(only).or_else(wanted)
    }

    /// Whether ONNX Runtime's CUDA provider has a kernel for these element types.
    pub fn has_kernel(&self, binding: &Binding) -> bool {
        self.kernels.iter().any(|kernel| {
            binding
                .iter()
                .all(|(word, ty)| kernel.get(word).is_none_or(|types| types.contains(ty)))
        })
    }
}

impl TypedNode<'_> {
    /// The same node where numbers of other float types are f16, but for those that the operator
    /// has in f32 always.
    pub fn in_f16(&self, version: &Version) -> Self {
        let half = |slots: &Slots, types: &[Option<&'static str>]| {
            let turned = |(at, ty): (usize, Option<&'static str>)| match ty {
                Some("f32" | "bf16")
                    if slots.at(at).is_some_and(|w| version.types.contains_key(w)) =>
                {
                    Some("f16")
                }
                other => other,
            };
            types.iter().copied().enumerate().map(turned).collect()
        };
        Self {
            node: self.node,
            inputs: half(&version.inputs, &self.inputs),
            outputs: half(&version.outputs, &self.outputs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        let lines = || include_str!("operators.txt").lines().map(str::trim);
        let table = Operators::table();
        let versions = || table.versions.values().flatten();
        let count = |kind: &str| lines().filter(|line| line.starts_with(kind)).count();
        assert_eq!(versions().count(), count("operator "));
        assert_eq!(
            versions().map(|v| v.kernels.len()).sum::<usize>(),
            count("cuda ")
        );
        assert!(
            versions().all(|v| v.since > 0 && !v.types.is_empty() && !v.inputs.words.is_empty())
        );
        let words = |v: &Version| v.types.keys().copied().collect::<Vec<_>>();
        assert!(versions().all(|v| v.kernels.iter().all(|k| k.keys().copied().eq(words(v)))));
    }
}
