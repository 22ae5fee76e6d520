//! What the lowering of a graph's nodes shares: names of values, their forms, and things that are
//! made once.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dlc_ir::{Def, Dim, Graph, Node, NodeId, Operand, Shape, ValueId, ValueType, WeightId};
use dlc_onnx::proto::{DimensionValue, TypeProto, ValueInfoProto};

use super::super::builder::{Builder, Name};
use super::forms::{Form, dimension, dimensions, forms_of};
use super::optional::{KEPT, OPTIONAL_INPUTS, kept_values, takes_optional_inputs};
use super::parts::Part;
use super::queries::noise_levels;
use super::{LEVELS, Target, tensor_type};
use crate::error::ExportError;
use crate::weights::Stored;

/// The state of lowering one graph.
pub(super) struct Context<'a> {
    pub graph: &'a Graph,
    pub target: Target<'a>,
    pub b: Builder,
    full_names: HashMap<ValueId, Name>,
    places: HashMap<NodeId, String>,
    forms: BTreeMap<(ValueId, Form), Name>,
    weights: HashMap<WeightId, Name>,
    memo: HashMap<String, Name>,
    /// Inputs whose axis isn't what their type says, see [`noise_levels`].
    levels: Vec<ValueId>,
    /// Values whose rows are those of the tokens that are kept, see [`kept_values`].
    kept: HashSet<ValueId>,
}

impl<'a> Context<'a> {
    /// Fails if two values that must keep their names have the same.
    pub fn new(graph: &'a Graph, target: Target<'a>) -> Result<Self, ExportError> {
        let mut b = Builder::default();
        let clash =
            |name: &str| ExportError::module(&graph.name, format!("two tensors are named {name}"));
        let mut weights = HashMap::new();
        for id in graph.weights() {
            let name = Name::from(target.weights[id].name.as_str());
            if !b.reserve(&name) {
                return Err(clash(&name));
            }
            weights.insert(id, name);
        }
        if takes_optional_inputs(graph, target.profile) {
            for name in OPTIONAL_INPUTS {
                if !b.reserve(&Name::from(name)) {
                    return Err(clash(name));
                }
            }
        }
        let mut full_names = HashMap::new();
        for (value, name) in graph
            .inputs()
            .iter()
            .map(|i| (i.value, &i.name))
            .chain(graph.outputs().iter().map(|o| (o.value, &o.name)))
        {
            let name = Name::from(name.as_str());
            if !b.reserve(&name) {
                return Err(clash(&name));
            }
            full_names.entry(value).or_insert(name);
        }
        let mut places = HashMap::new();
        let names = graph.value_names();
        for (id, value) in graph.values() {
            let Def::Node(node, slot) = value.def else {
                continue;
            };
            let name = &names[id];
            if slot == 0 {
                places.insert(node, place(graph, node, name));
            }
            if let Entry::Vacant(free) = full_names.entry(id) {
                let name = Name::from(name);
                if !b.reserve(&name) {
                    return Err(clash(&name));
                }
                free.insert(name);
            }
        }
        let forms = graph
            .inputs()
            .iter()
            .map(|i| ((i.value, Form::Full), Name::from(i.name.as_str())))
            .collect();
        Ok(Self {
            graph,
            target,
            b,
            full_names,
            places,
            forms,
            weights,
            memo: HashMap::new(),
            levels: noise_levels(graph),
            kept: kept_values(graph, target.profile),
        })
    }

    /// Whether a value's rows are those of the tokens that are kept.
    pub fn keeps(&self, value: Option<&ValueId>) -> bool {
        value.is_some_and(|value| self.kept.contains(value))
    }

    /// Where a node stands: `layers.3.attn/5.linear`.
    pub fn place(&self, node: NodeId) -> String {
        self.places
            .get(&node)
            .cloned()
            .unwrap_or_else(|| node.to_string())
    }

    /// Names nodes after `node` from now on; returns the scope to go back to.
    pub fn enter_node(&mut self, node: NodeId) -> String {
        let place = self.place(node);
        self.b.enter(place)
    }

    /// Makes something once; `make` runs in the scope `key`.
    pub fn once(
        &mut self,
        key: &str,
        make: impl FnOnce(&mut Self) -> Result<Name, ExportError>,
    ) -> Result<Name, ExportError> {
        if let Some(known) = self.memo.get(key) {
            return Ok(known.clone());
        }
        let outer = self.b.enter(key.to_owned());
        let made = make(self);
        self.b.enter(outer);
        let made = made?;
        self.memo.insert(key.to_owned(), made.clone());
        Ok(made)
    }

    pub fn ty(&self, value: ValueId) -> &'a ValueType {
        &self.graph.value(value).ty
    }

    /// The value that a node reads at `at`.
    pub fn value_at(&self, node: &Node, at: usize) -> Result<ValueId, ExportError> {
        match node.inputs.get(at) {
            Some(Operand::Value(value)) => Ok(*value),
            Some(Operand::Weight(w)) => Err(ExportError::module(
                "",
                format!(
                    "input {at} is the weight {}, not a value",
                    self.target.weights[*w].name
                ),
            )),
            None => Err(ExportError::module("", format!("input {at} is missing"))),
        }
    }

    /// The value that a node makes at `at`.
    pub fn output_at(node: &Node, at: usize) -> Result<ValueId, ExportError> {
        node.outputs
            .get(at)
            .copied()
            .ok_or_else(|| ExportError::module("", format!("output {at} is missing")))
    }

    /// Whether what a node reads at `at` is a matrix that is stored transposed.
    pub fn is_transposed(&self, node: &Node, at: usize) -> bool {
        match node.inputs.get(at) {
            Some(Operand::Weight(id)) => self.target.transposed.contains_key(id),
            _ => false,
        }
    }

    /// What a node reads at `at`, a weight as well as a value, with its own shape.
    pub fn operand(&mut self, node: &Node, at: usize) -> Result<Name, ExportError> {
        match node.inputs.get(at) {
            Some(Operand::Value(value)) => self.full(*value),
            Some(Operand::Weight(weight)) => Ok(self.weight(*weight)),
            None => Err(ExportError::module("", format!("input {at} is missing"))),
        }
    }

    /// The weight that a node reads at `at`.
    pub fn part_at(&self, node: &Node, at: usize) -> Result<Part, ExportError> {
        match node.inputs.get(at) {
            Some(Operand::Weight(id)) => Ok(self.part(*id)),
            _ => Err(ExportError::module("", format!("input {at} is no weight"))),
        }
    }

    fn weight(&mut self, id: WeightId) -> Name {
        match self.target.transposed.get(&id) {
            Some(matrix) => {
                let (name, stored) = (self.weight_name(id), Stored::Transposed(Arc::clone(matrix)));
                self.b.stored(stored, &name, matrix.dtype, &matrix.shape);
                name
            }
            None => self.part(id).whole(&mut self.b),
        }
    }

    fn weight_name(&self, id: WeightId) -> Name {
        let known = self.weights.get(&id).cloned();
        known.unwrap_or_else(|| Name::from(self.target.weights[id].name.as_str()))
    }

    fn part(&self, id: WeightId) -> Part {
        let weight = &self.target.weights[id];
        Part {
            stored: Stored::Weight(id),
            name: self.weight_name(id),
            dtype: weight.dtype,
            shape: weight.shape.clone(),
        }
    }

    /// The name under which `value` stands with its own shape.
    pub fn full_name(&self, value: ValueId) -> Name {
        self.full_names
            .get(&value)
            .cloned()
            .unwrap_or_else(|| Name::from(value.to_string()))
    }

    /// Records that `value` stands in the graph in `form`.
    pub fn define(&mut self, value: ValueId, form: Form, name: Name) {
        self.forms.insert((value, form), name);
    }

    /// Lets `name`, with the value's own shape, stand for `value` from now on; returns the forms
    /// that it had.
    pub fn stand_in(&mut self, value: ValueId, name: Name) -> Vec<(Form, Name)> {
        let forms = self
            .forms
            .extract_if(forms_of(value), |_, _| true)
            .map(|((_, form), name)| (form, name))
            .collect();
        self.define(value, Form::Full, name);
        forms
    }

    /// Undoes [`stand_in`](Self::stand_in).
    pub fn put_back(&mut self, value: ValueId, forms: Vec<(Form, Name)>) {
        self.forms
            .extract_if(forms_of(value), |_, _| true)
            .for_each(drop);
        self.forms
            .extend(forms.into_iter().map(|(form, name)| ((value, form), name)));
    }

    pub fn has(&self, value: ValueId, form: Form) -> bool {
        self.forms.contains_key(&(value, form))
            || form == Form::Flat && self.ty(value).shape.rank() == 2
    }

    pub fn full(&mut self, value: ValueId) -> Result<Name, ExportError> {
        if let Some(name) = self.forms.get(&(value, Form::Full)) {
            return Ok(name.clone());
        }
        let (form, source) = self.any_form(value)?;
        let shape = match (form, self.width(value)) {
            (Form::Heads(_), Ok(width)) => self.b.ints(&[0, 0, width as i64]),
            _ if self.kept.contains(&value) => self.joined_shape(&self.ty(value).shape, Some(1))?,
            _ => self.shape_tensor(&self.ty(value).shape)?,
        };
        let name = self.full_name(value);
        self.b.op("Reshape", &[&source, &shape]).into(&[&name]);
        self.define(value, Form::Full, name.clone());
        Ok(name)
    }

    pub fn flat(&mut self, value: ValueId) -> Result<Name, ExportError> {
        if self.ty(value).shape.rank() == 2 {
            return self.full(value);
        }
        let width = self.width(value)?;
        self.reshaped(value, Form::Flat, |cx| Ok(cx.b.ints(&[-1, width as i64])))
    }

    /// `value`, `[batch, seq, heads * head_dim]`, as `[batch, seq, heads, head_dim]`.
    pub fn heads(&mut self, value: ValueId, heads: usize) -> Result<Name, ExportError> {
        let head_dim = self.width(value)? / heads;
        self.reshaped(value, Form::Heads(heads), |cx| {
            if cx.has(value, Form::Full) {
                return Ok(cx.b.ints(&[0, 0, heads as i64, head_dim as i64]));
            }
            let mut dims = cx.ty(value).shape.0.clone();
            dims.pop();
            dims.extend([Dim::from(heads), Dim::from(head_dim)]);
            cx.shape_tensor(&Shape(dims))
        })
    }

    /// `value` in `form`, by a `Reshape` to the shape that `shape` makes.
    fn reshaped(
        &mut self,
        value: ValueId,
        form: Form,
        shape: impl FnOnce(&mut Self) -> Result<Name, ExportError>,
    ) -> Result<Name, ExportError> {
        if let Some(name) = self.forms.get(&(value, form)) {
            return Ok(name.clone());
        }
        let shape = shape(self)?;
        let (_, source) = self.any_form(value)?;
        let name = self.b.op("Reshape", &[&source, &shape]).out();
        self.define(value, form, name.clone());
        Ok(name)
    }

    /// A form in which `value` stands already, its own shape if possible.
    fn any_form(&self, value: ValueId) -> Result<(Form, Name), ExportError> {
        let mut forms = self.forms.range(forms_of(value));
        let found = forms.next().map(|((_, form), name)| (*form, name.clone()));
        found.ok_or_else(|| ExportError::module("", format!("{value} is read before it is made")))
    }

    /// The known width of the last axis.
    pub fn width(&self, value: ValueId) -> Result<usize, ExportError> {
        let width = self.ty(value).shape.last().and_then(Dim::known);
        width.ok_or_else(|| {
            ExportError::module(
                "",
                format!("the last axis of {} is not a number", self.ty(value)),
            )
        })
    }

    /// A vector with the numbers of `shape` for a `Reshape`: a constant if at most one axis has a
    /// symbol, which is then -1. Of several axes the first product of symbols is.
    pub fn shape_tensor(&mut self, shape: &Shape) -> Result<Name, ExportError> {
        let symbolic = shape.0.iter().filter(|d| d.known().is_none()).count();
        if symbolic <= 1 {
            let numbers: Vec<i64> = shape
                .0
                .iter()
                .map(|d| d.known().map_or(-1, |n| n as i64))
                .collect();
            return Ok(self.b.ints(&numbers));
        }
        let is_product = |dim: &Dim| dim.factors().0.len() > 1;
        let open = shape.0.iter().position(is_product);
        self.joined_shape(shape, open)
    }

    /// A vector with the numbers of `shape`, put together from shapes of other values.
    pub fn exact_shape(&mut self, shape: &Shape) -> Result<Name, ExportError> {
        self.joined_shape(shape, None)
    }

    /// The numbers of `shape`, but -1 for the axis `open`.
    fn joined_shape(&mut self, shape: &Shape, open: Option<usize>) -> Result<Name, ExportError> {
        let key = open.map_or_else(String::new, |axis| format!("/{axis}"));
        self.once(&format!("shape/{shape}{key}"), |cx| {
            let mut parts = Vec::new();
            for (axis, dim) in shape.0.iter().enumerate() {
                parts.push(match dim.known() {
                    Some(n) => cx.b.ints(&[n as i64]),
                    None if open == Some(axis) => cx.b.ints(&[-1]),
                    None => cx.axis(dim)?,
                });
            }
            Ok(cx
                .b
                .op("Concat", &parts.iter().collect::<Vec<_>>())
                .int("axis", 0)
                .out())
        })
    }

    /// A vector with the one number that `dim` stands for, read off an input that has such an axis,
    /// else off a value that was made.
    pub fn axis(&mut self, dim: &Dim) -> Result<Name, ExportError> {
        self.once(&format!("shape/{dim}"), |cx| {
            let has_axis = |value: ValueId| {
                cx.graph
                    .value(value)
                    .ty
                    .shape
                    .0
                    .iter()
                    .position(|d| d == dim)
            };
            let inputs = cx.graph.inputs().iter();
            let given = inputs
                .filter(|i| !cx.levels.contains(&i.value))
                .map(|i| (i.value, Name::from(i.name.as_str())));
            let made = cx.forms.iter().filter(|((_, form), _)| *form == Form::Full);
            let made = made.map(|((value, _), name)| (*value, name.clone()));
            let found = given
                .chain(made)
                .find_map(|(value, name)| has_axis(value).map(|axis| (name, axis as i64)));
            let Some((value, axis)) = found else {
                return Err(ExportError::module(
                    "",
                    format!("no value has an axis {dim}, so its length isn't known at run time"),
                ));
            };
            Ok(cx
                .b
                .op("Shape", &[&value])
                .int("start", axis)
                .int("end", axis + 1)
                .out())
        })
    }

    /// Gives every output its name. Values that are inputs too, or stand for several outputs, are
    /// copied.
    pub fn finish_outputs(&mut self) -> Result<(), ExportError> {
        let outer = self.b.enter("outputs".to_owned());
        for output in self.graph.outputs() {
            let name = self.full(output.value)?;
            if *name != *output.name {
                self.b
                    .op("Identity", &[&name])
                    .into(&[&Name::from(output.name.as_str())]);
            }
        }
        self.b.enter(outer);
        Ok(())
    }

    /// Names of the inputs that the ONNX graph reads; folding may have made some superfluous.
    pub fn used_inputs(&self) -> BTreeSet<String> {
        self.b
            .nodes
            .iter()
            .flat_map(|n| n.input.iter().cloned())
            .collect()
    }

    /// The ONNX type of a boundary value.
    pub fn value_info(&self, value: ValueId) -> TypeProto {
        let ty = self.ty(value);
        let named = |name: &str| DimensionValue::Name(name.to_owned());
        let mut dims: Vec<_> = ty.shape.0.iter().map(dimension).collect();
        if self.levels.contains(&value) {
            dims.fill(named(LEVELS));
        } else if self.kept.contains(&value)
            && let Some(tokens) = dims.get_mut(1)
        {
            *tokens = named(KEPT);
        }
        tensor_type(ty.dtype, dims)
    }

    /// The ONNX types of values between the boundary's, for graphs without caches. ONNX Runtime
    /// loses a symbolic axis at every `Reshape`, and its memory planner compares each value of an
    /// unknown size with all that came before: a sampler of 50 steps took a minute to load.
    pub fn inner_types(&self) -> Vec<ValueInfoProto> {
        if self
            .graph
            .inputs()
            .iter()
            .any(|input| input.cache.is_some())
        {
            return vec![];
        }
        let boundary = self
            .graph
            .inputs()
            .iter()
            .map(|i| i.name.as_str())
            .chain(self.graph.outputs().iter().map(|o| o.name.as_str()));
        let mut known: HashSet<&str> = boundary.collect();
        let mut types = Vec::new();
        for (&(value, form), name) in self.forms.iter().filter(|(_, name)| !name.is_empty()) {
            if known.insert(name) {
                let ty = self.ty(value);
                types.push(ValueInfoProto {
                    name: name.to_string(),
                    r#type: Some(tensor_type(ty.dtype, dimensions(&ty.shape, form))),
                });
            }
        }
        types
    }
}

/// The place of a node whose first value is named `value`.
fn place(graph: &Graph, node: NodeId, value: &str) -> String {
    let node = graph.node(node);
    match (
        node.block.map(|b| &graph.block(b).name),
        value.rsplit_once('.'),
    ) {
        (Some(block), Some((_, number))) => format!("{block}/{number}.{}", node.op.name()),
        _ => format!("{value}.{}", node.op.name()),
    }
}
