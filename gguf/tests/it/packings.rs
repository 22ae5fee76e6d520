//! Blocks against `gguf.quants.dequantize` of PyPI's gguf, bit by bit.

use std::fs;

use safetensors::SafeTensors;

use crate::builder::{Builder, fixture};

const NUMBERS: [(&str, u32); 8] = [
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q5_0", 6),
    ("Q5_1", 7),
    ("Q8_0", 8),
    ("Q4_K", 12),
    ("Q5_K", 13),
    ("Q6_K", 14),
];

#[test]
fn every_packed_type_has_the_elements_that_gguf_py_says() {
    let bytes = fs::read(fixture("gguf/packings.safetensors")).unwrap();
    let recorded = SafeTensors::deserialize(&bytes).unwrap();
    for (name, number) in NUMBERS {
        let packed = recorded.tensor(&format!("{name}.packed")).unwrap();
        let elements = recorded.tensor(&format!("{name}.elements")).unwrap();
        let expected: Vec<u32> = elements
            .data()
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let rows = packed.shape()[0] as u64;
        let columns = expected.len() as u64 / rows;
        let gguf = Builder::default()
            .tensor("t", &[columns, rows], number, packed.data())
            .open()
            .unwrap();
        let tensor = &gguf.tensors()[0];
        assert_eq!(tensor.kind.to_string(), name);
        let mut read = vec![0.0; expected.len()];
        gguf.expr(tensor).unwrap().read_f32(0, &mut read);
        let read: Vec<u32> = read.iter().map(|x| x.to_bits()).collect();
        assert_eq!(read, expected, "{name}");
    }
}
