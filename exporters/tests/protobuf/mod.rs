//! Protobuf as files have it, by hand.

/// A field of bytes.
pub fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = varint(usize::from(tag) << 3 | 2);
    field.extend(varint(bytes.len()));
    field.extend(bytes);
    field
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = vec![];
    while number > 127 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
