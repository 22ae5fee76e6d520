//! Every target returns on its seeds, whole and changed at random, and on what once broke it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use dlc_fuzz::{TARGETS, seeds};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Changed inputs per target.
const CHANGED: usize = 300;

/// Pieces that parsers trip over.
const PIECES: [&[u8]; 12] = [
    b"[",
    b"{",
    b"\"",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"null",
    b"\n",
    b"\x00",
    b"\xff",
    b": ",
    b"%",
];

/// Overwrites, removes, repeats or inserts a few times.
fn change(seed: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..64)).min(bytes.len());
        match random.random_range(0..4) {
            0 => bytes[at..end]
                .iter_mut()
                .for_each(|byte| *byte = random.random()),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => drop(bytes.splice(at..at, PIECES.choose(random).unwrap().iter().copied())),
        }
    }
    bytes
}

#[test]
fn every_target_returns_on_its_seeds_whole_and_changed() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for target in TARGETS {
        let seeds = seeds(target.name);
        assert!(!seeds.is_empty(), "{} has no seed", target.name);
        for seed in &seeds {
            (target.run)(seed);
        }
        for _ in 0..CHANGED {
            let changed = change(seeds.choose(&mut random).unwrap(), &mut random);
            (target.run)(&changed);
        }
    }
}

/// `regressions/TARGET/*`: inputs on which a target once panicked, crashed or hung.
#[test]
fn what_once_broke_a_target_no_longer_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for target in TARGETS {
        for file in std::fs::read_dir(root.join(target.name))
            .into_iter()
            .flatten()
        {
            (target.run)(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }
}
