//! Collects the nodes and initializers of one ONNX graph. Names are unique and tell where in the
//! source graph a node comes from.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dlc_ir::DType;
use dlc_onnx::proto::{
    AttributeProto, AttributeType, DataLocation, NodeProto, TensorProto, UINT4, codes_name,
    data_type,
};

use crate::encode::encode;
use crate::weights::Stored;

/// The name of a value of the ONNX graph; empty for an optional input that is left out.
pub(crate) type Name = Arc<str>;

/// The domain of ONNX Runtime's own operators.
pub(crate) const MICROSOFT: &str = "com.microsoft";

/// The nodes and initializers collected so far.
#[derive(Default)]
pub(crate) struct Builder {
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
    /// What stands in the weight file, in order of first use.
    pub stored: Vec<Stored>,
    pub domains: BTreeSet<&'static str>,
    /// Names of what is in `stored`, and of the initializers that lie there.
    kept: HashSet<Name>,
    placed: HashSet<Name>,
    constants: HashMap<(i32, Vec<usize>, Vec<u8>), Name>,
    values: HashSet<Name>,
    node_names: HashSet<String>,
    scope: String,
}

impl Builder {
    /// Takes `name` out of circulation; false if it was taken before.
    pub fn reserve(&mut self, name: &Name) -> bool {
        self.values.insert(name.clone())
    }

    /// Nodes made from now on are named `{scope}/{operator}`.
    pub fn enter(&mut self, scope: String) -> String {
        std::mem::replace(&mut self.scope, scope)
    }

    /// Starts a node; it is added when its outputs are named.
    pub fn op(&mut self, op: &'static str, inputs: &[&Name]) -> Call<'_> {
        let inputs = inputs.iter().map(ToString::to_string).collect();
        Call {
            node: NodeProto {
                input: inputs,
                op_type: op.to_owned(),
                ..NodeProto::default()
            },
            builder: self,
        }
    }

    /// Like [`op`](Self::op), for an operator of ONNX Runtime's own domain.
    pub fn microsoft(&mut self, op: &'static str, inputs: &[&Name]) -> Call<'_> {
        self.domains.insert(MICROSOFT);
        let mut call = self.op(op, inputs);
        MICROSOFT.clone_into(&mut call.node.domain);
        call
    }

    /// A vector of integers.
    pub fn ints(&mut self, values: &[i64]) -> Name {
        let list: Vec<String> = values.iter().map(ToString::to_string).collect();
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(
            &format!("const.i64[{}]", list.join(",")),
            DType::I64,
            &[values.len()],
            bytes,
        )
    }

    /// A single integer without axes.
    pub fn int(&mut self, value: i64) -> Name {
        self.constant(
            &format!("const.i64.{value}"),
            DType::I64,
            &[],
            value.to_le_bytes().to_vec(),
        )
    }

    /// A single number without axes.
    pub fn float(&mut self, dtype: DType, value: f32) -> Name {
        let mut bytes = vec![0; dtype.size()];
        encode(dtype, value, &mut bytes);
        self.constant(&format!("const.{dtype}.{value:?}"), dtype, &[], bytes)
    }

    /// A vector that holds `value` at every place.
    pub fn filled(&mut self, dtype: DType, length: usize, value: f32) -> Name {
        let mut bytes = vec![0; dtype.size() * length];
        bytes
            .chunks_exact_mut(dtype.size())
            .for_each(|out| encode(dtype, value, out));
        self.constant(
            &format!("const.{dtype}.{value:?}x{length}"),
            dtype,
            &[length],
            bytes,
        )
    }

    /// A 0 without axes that an input of this name may override; the name is reserved already.
    pub fn default_input(&mut self, name: &Name, dtype: DType) {
        self.initializers.push(TensorProto {
            data_type: data_type(dtype),
            name: name.to_string(),
            raw_data: Some(vec![0; dtype.size()]),
            ..TensorProto::default()
        });
    }

    /// A constant inside the file; equal ones are one.
    pub fn constant(&mut self, name: &str, dtype: DType, dims: &[usize], bytes: Vec<u8>) -> Name {
        let key = (data_type(dtype), dims.to_vec(), bytes);
        if let Some(known) = self.constants.get(&key) {
            return known.clone();
        }
        let name = self.unique(name);
        let dims = dims.iter().map(|&d| d as i64).collect();
        self.initializers.push(TensorProto {
            dims,
            data_type: key.0,
            name: name.to_string(),
            raw_data: Some(key.2.clone()),
            ..TensorProto::default()
        });
        self.constants.insert(key, name.clone());
        name
    }

    /// A tensor of the weight file, named `name` there, as an initializer.
    pub fn stored(&mut self, stored: Stored, name: &Name, dtype: DType, dims: &[usize]) {
        self.keep(stored, name);
        self.place(name, data_type(dtype), dims);
    }

    /// The bytes of a tensor of the weight file as codes of 4 bits in this shape; none if its name
    /// is taken.
    pub fn stored_codes(&mut self, stored: Stored, name: &Name, dims: &[usize]) -> Option<Name> {
        let codes = Name::from(codes_name(name));
        if !self.placed.contains(&codes) && !self.reserve(&codes) {
            return None;
        }
        self.keep(stored, name);
        self.place(&codes, UINT4, dims);
        Some(codes)
    }

    fn keep(&mut self, stored: Stored, name: &Name) {
        if self.kept.insert(name.clone()) {
            self.stored.push(stored);
        }
    }

    fn place(&mut self, name: &Name, data_type: i32, dims: &[usize]) {
        if self.placed.insert(name.clone()) {
            self.initializers.push(TensorProto {
                dims: dims.iter().map(|&d| d as i64).collect(),
                data_type,
                name: name.to_string(),
                data_location: Some(DataLocation::External as i32),
                ..TensorProto::default()
            });
        }
    }

    fn unique(&mut self, wanted: &str) -> Name {
        let mut name = Name::from(wanted);
        let mut n = 1;
        while !self.values.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}_{n}").into();
        }
        name
    }

    fn node_name(&mut self, op: &str) -> String {
        let wanted = format!("{}/{op}", self.scope);
        let mut name = wanted.clone();
        let mut n = 1;
        while !self.node_names.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        name
    }
}

/// A node on its way into the graph.
pub(crate) struct Call<'b> {
    node: NodeProto,
    builder: &'b mut Builder,
}

impl Call<'_> {
    pub fn int(mut self, name: &str, value: i64) -> Self {
        let attribute = AttributeProto {
            name: name.to_owned(),
            i: Some(value),
            r#type: AttributeType::Int as i32,
            ..Default::default()
        };
        self.node.attribute.push(attribute);
        self
    }

    pub fn ints(mut self, name: &str, values: &[i64]) -> Self {
        let attribute = AttributeProto {
            name: name.to_owned(),
            ints: values.to_vec(),
            r#type: AttributeType::Ints as i32,
            ..Default::default()
        };
        self.node.attribute.push(attribute);
        self
    }

    pub fn float(mut self, name: &str, value: f32) -> Self {
        let attribute = AttributeProto {
            name: name.to_owned(),
            f: Some(value),
            r#type: AttributeType::Float as i32,
            ..Default::default()
        };
        self.node.attribute.push(attribute);
        self
    }

    pub fn text(mut self, name: &str, value: &str) -> Self {
        let attribute = AttributeProto {
            name: name.to_owned(),
            s: Some(value.into()),
            r#type: AttributeType::String as i32,
            ..Default::default()
        };
        self.node.attribute.push(attribute);
        self
    }

    /// Adds the node; its one output is named as the node is.
    pub fn out(mut self) -> Name {
        let name = self.builder.node_name(&self.node.op_type);
        let output = self.builder.unique(&name);
        self.node.name = name;
        self.node.output = vec![output.to_string()];
        self.builder.nodes.push(self.node);
        output
    }

    /// Adds the node with outputs whose names are reserved already.
    pub fn into(mut self, outputs: &[&Name]) {
        self.node.name = self.builder.node_name(&self.node.op_type);
        self.node.output = outputs.iter().map(ToString::to_string).collect();
        self.builder.nodes.push(self.node);
    }

    /// Adds the node with `N` outputs, named as the node is.
    pub fn outs<const N: usize>(mut self) -> [Name; N] {
        let name = self.builder.node_name(&self.node.op_type);
        let outputs: [Name; N] =
            std::array::from_fn(|i| self.builder.unique(&format!("{name}.{i}")));
        self.node.name = name;
        self.node.output = outputs.iter().map(ToString::to_string).collect();
        self.builder.nodes.push(self.node);
        outputs
    }
}
