//! Files that break the format end in an error that says what is wrong, soon and without memory.

use dlc_gguf::{Gguf, Model};
use proptest::prelude::*;

use crate::builder::{Builder, Meta, fixture, open};

fn error(builder: &Builder) -> String {
    builder.open().unwrap_err().to_string()
}

fn one_tensor(axes: &[u64], kind: u32, data: &[u8]) -> Builder {
    Builder::default().tensor("t", axes, kind, data)
}

#[test]
fn broken_files_say_what_is_wrong() {
    let plain = || one_tensor(&[4], 0, &[0; 16]);
    let nested = (0..8).fold(vec![], |inner: Vec<u8>, _| {
        [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &inner].concat()
    });
    let cases: [(&str, Builder); 18] = [
        (
            "doesn't begin with GGUF",
            Builder {
                magic: b"GGML".into(),
                ..plain()
            },
        ),
        (
            "version 1",
            Builder {
                version: 1,
                ..plain()
            },
        ),
        (
            "version 9",
            Builder {
                version: 9,
                ..plain()
            },
        ),
        (
            "big-endian",
            Builder {
                version: 3u32.swap_bytes(),
                ..plain()
            },
        ),
        (
            "18446744073709551615 tensors",
            Builder {
                counts: [Some(u64::MAX), None],
                ..plain()
            },
        ),
        (
            "tensors, more than its size",
            Builder {
                counts: [Some(1 << 20), None],
                ..plain()
            },
        ),
        (
            "metadata entries",
            Builder {
                counts: [None, Some(u64::MAX)],
                ..plain()
            },
        ),
        (
            "is there twice",
            plain().with("a", &Meta::U32(1)).with("a", &Meta::U32(2)),
        ),
        ("type 77", plain().with("a", &Meta::Raw(77, vec![]))),
        (
            "entries in an array",
            plain().with(
                "a",
                &Meta::Raw(
                    9,
                    [&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat(),
                ),
            ),
        ),
        ("arrays in arrays", plain().with("a", &Meta::Raw(9, nested))),
        (
            "a text of",
            plain().with("a", &Meta::Raw(8, u64::MAX.to_le_bytes().into())),
        ),
        (
            "not a power of two",
            plain().with("general.alignment", &Meta::U32(24)),
        ),
        ("5 axes", one_tensor(&[1, 1, 1, 1, 1], 0, &[0; 4])),
        ("axis that is empty", one_tensor(&[0], 0, &[])),
        (
            "larger than any file",
            one_tensor(&[1 << 40, 1 << 40], 0, &[]),
        ),
        ("aren't blocks of 32", one_tensor(&[33], 8, &[0; 68])),
        ("past the end", one_tensor(&[1 << 30], 0, &[0; 16])),
    ];
    for (expected, builder) in cases {
        let error = error(&builder);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn tensors_neither_overlap_nor_share_a_name_nor_lie_askew() {
    let data = Builder {
        data: vec![0; 128],
        ..Builder::default()
    };
    let two = |a: (&str, u64), b: (&str, u64)| {
        error(
            &data
                .clone()
                .record(a.0, &[16], 0, a.1)
                .record(b.0, &[16], 0, b.1),
        )
    };
    assert!(two(("a", 0), ("b", 32)).contains("`a` and `b` overlap"));
    assert!(two(("a", 0), ("a", 64)).contains("`a`: is there twice"));
    assert!(two(("a", 0), ("b", 65)).contains("multiple of 32"));
    assert!(two(("a", 0), ("b", u64::MAX - 31)).contains("past the end"));
    let fits = data.record("a", &[16], 0, 0).record("b", &[16], 0, 64);
    assert_eq!(fits.open().unwrap().tensors().len(), 2);
}

#[test]
fn the_alignment_that_a_file_names_is_followed() {
    let numbers = [1.5f32, -2.0];
    let data = [0.0f32, 0.0].iter().chain(&numbers);
    let file = Builder {
        alignment: 8,
        data: data.flat_map(|x| x.to_le_bytes()).collect(),
        ..Builder::default()
    };
    let file = file
        .with("general.alignment", &Meta::U32(8))
        .record("a", &[2], 0, 8);
    assert!(!file.bytes().len().is_multiple_of(32));
    let gguf = file.open().unwrap();
    let mut read = [0.0; 2];
    gguf.expr(&gguf.tensors()[0])
        .unwrap()
        .read_f32(0, &mut read);
    assert_eq!(read.map(f32::to_bits), numbers.map(f32::to_bits));
}

#[test]
fn a_cut_file_is_refused_wherever_it_ends() {
    let whole = std::fs::read(fixture("gguf/llama3.gguf")).unwrap();
    for end in (0..4096).chain([whole.len() - 1, whole.len() / 2]) {
        assert!(open(whole[..end].to_vec()).is_err(), "{end}");
    }
    open(whole).unwrap();
}

fn read_all(gguf: &Gguf) {
    let _ = Model::of(gguf).map(|model| {
        for tensor in &model.tensors {
            let mut part = vec![0.0; tensor.data.elements().min(100)];
            tensor
                .data
                .read_f32(tensor.data.elements() - part.len(), &mut part);
        }
    });
}

proptest! {
    #[test]
    fn changed_files_end_in_an_error_or_a_model(at in 0..20_000usize, bytes in prop::collection::vec(any::<u8>(), 1..9)) {
        let mut file = std::fs::read(fixture("gguf/tokenizers/pieces.gguf")).unwrap();
        let at = at % (file.len() - bytes.len());
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        if let Ok(gguf) = open(file) {
            read_all(&gguf);
        }
    }

    #[test]
    fn any_bytes_after_the_magic_end_in_an_error_or_a_file(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(gguf) = open([b"GGUF\x03\0\0\0", bytes.as_slice()].concat()) {
            read_all(&gguf);
        }
    }
}
