//! Every invariant is found broken, by its number, where it is broken.

use super::verify;
use crate::block::Block;
use crate::graph::{Def, Graph, Node, Operand, Output};
use crate::index::{BlockId, EntityId, NodeId, ValueId, WeightId};
use crate::op::Op;
use crate::parse::parse_graph;
use crate::types::DType;

const DECODER: &str = include_str!("../../tests/graphs/decoder.dlc");

fn node(graph: &Graph, name: &str) -> NodeId {
    let names = graph.value_names();
    let value = graph
        .values()
        .find(|(id, _)| &names[*id] == name)
        .expect("the decoder has it")
        .0;
    match graph.value(value).def {
        Def::Node(node, _) => node,
        Def::Input(_) => panic!("{name} is an input"),
    }
}

type Damage = fn(&mut Graph);

#[test]
fn every_invariant_is_found_broken_by_its_number() {
    let cases: &[(u8, &str, Damage)] = &[
        (1, "node0", |g| {
            g.nodes[NodeId::from_index(0)].inputs[1] = Operand::Value(ValueId::from_index(9999));
        }),
        (1, "node0", |g| {
            g.nodes[NodeId::from_index(0)].inputs[0] = Operand::Weight(WeightId::from_index(9999));
        }),
        (1, "node0", |g| {
            let later = g.nodes[NodeId::from_index(3)].outputs[0];
            g.nodes[NodeId::from_index(0)].inputs[1] = Operand::Value(later);
        }),
        (2, "%0", |g| g.inputs[0].value = ValueId::from_index(1)),
        (2, "target", |g| {
            let twice = g.nodes[NodeId::from_index(0)].outputs[0];
            g.nodes[NodeId::from_index(0)].outputs.push(twice);
        }),
        (3, "node0", |g| {
            let made = g.nodes[NodeId::from_index(0)].outputs[0];
            g.values[made].ty.dtype = DType::F16;
        }),
        (4, "input_ids", |g| g.inputs[1].name = "input_ids".into()),
        (4, "logits", |g| {
            let first = g.outputs[0].clone();
            g.outputs.push(first);
        }),
        (5, "logits", |g| {
            g.outputs[0].value = ValueId::from_index(9999);
        }),
        (6, "layers.0.mlp", |g| {
            let id = g.find_block("layers.0.mlp").expect("there");
            g.blocks[id].output = g.blocks[id].input;
        }),
        (6, "layers.0.mlp", |g| {
            let id = g.find_block("layers.0.mlp").expect("there");
            g.blocks[id].input = g.blocks[id].output;
        }),
        (7, "node", |g| {
            let inner = g.nodes[node(g, "layers.0.mlp.1")].outputs[0];
            let outside = node(g, "layers.1.attn.0");
            g.nodes[outside].inputs[0] = Operand::Value(inner);
        }),
        (7, "peek", |g| {
            let inner = g.nodes[node(g, "layers.0.mlp.1")].outputs[0];
            g.outputs.push(Output {
                name: "peek".into(),
                value: inner,
                cache: None,
            });
        }),
        (8, "cache layer=0 key", |g| g.inputs[3].cache = None),
        (8, "cache layer=1 key", |g| {
            let again = Output {
                name: "again".into(),
                ..g.outputs[3].clone()
            };
            g.outputs.push(again);
        }),
        (9, "layers.0.attn", |g| {
            g.blocks[BlockId::from_index(1)].name = "layers.0.attn".into();
        }),
        (9, "layers.0.attn", |g| {
            let inside = node(g, "layers.0.attn.5");
            g.nodes[inside].block = None;
        }),
        (9, "empty", |g| {
            let block = g.blocks[BlockId::from_index(0)].clone();
            g.blocks.push(Block {
                name: "empty".into(),
                ..block
            });
        }),
        (10, "%", |g| {
            let value = g.values.push(crate::graph::Value {
                ty: g.values[ValueId::from_index(0)].ty.clone(),
                def: Def::Input(g.inputs.len()),
            });
            g.inputs.push(crate::graph::Input {
                name: "late".into(),
                value,
                cache: None,
            });
        }),
    ];
    for (i, (invariant, place, damage)) in cases.iter().enumerate() {
        let (mut graph, weights) = parse_graph(DECODER).expect("the decoder parses");
        assert_eq!(verify(&graph, &weights), []);
        damage(&mut graph);
        let found = verify(&graph, &weights);
        let hit = found
            .iter()
            .any(|v| v.invariant == *invariant && v.place.starts_with(place));
        assert!(
            hit,
            "case {i}: V{invariant} at {place} is not among {found:?}"
        );
    }
}

#[test]
fn all_violations_are_reported_not_just_the_first() {
    let (mut graph, weights) = parse_graph(DECODER).expect("the decoder parses");
    for id in [0, 3] {
        graph.nodes[NodeId::from_index(id)] = Node {
            op: Op::Silu,
            ..graph.nodes[NodeId::from_index(id)].clone()
        };
    }
    assert_eq!(
        verify(&graph, &weights)
            .iter()
            .filter(|v| v.invariant == 3)
            .count(),
        2
    );
}
