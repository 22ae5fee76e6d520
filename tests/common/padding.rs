//! Batches of unequal sequences, padded on either side and then continued, as other people's
//! runtimes run them.

use dlc_ir::DType;

use super::golden::{Feed, Golden, TOLERANCE};
use super::session::{Arrays, Engine, within, worst_error};

/// Tokens of the first sequence before it is continued; of the others.
const LENGTHS: [usize; 3] = [9, 6, 6];
/// How many tokens come after, one by one.
const STEPS: usize = 3;

/// A row: its tokens so far, and the places that it takes, of which 1 is a token and 0 padding.
struct Row {
    tokens: Vec<i64>,
    mask: Vec<i64>,
}

impl Row {
    /// Positions count tokens; padding gets any.
    fn positions(&self) -> Vec<i64> {
        let counts = self.mask.iter().scan(0, |count, &m| {
            *count += m;
            Some((*count - 1).max(0))
        });
        counts.collect()
    }

    fn alone(&self) -> Feed {
        let n = self.tokens.len();
        Feed {
            shape: [1, n],
            ids: self.tokens.clone(),
            mask: vec![1; n],
            positions: (0..n as i64).collect(),
        }
    }
}

/// Fails unless each row of a batch says what it says alone: a whole one, one padded on the left,
/// one on the right.
pub fn check_padding(engine: &Engine, name: &'static str) -> Result<(), String> {
    let golden = Golden::read(name);
    let mut runner = engine.load(golden.module(DType::F32))?;
    let mut run = |feed: &Feed, caches: &Arrays| runner.run(&feed.arrays(&runner, caches));
    let padding = LENGTHS[0] - LENGTHS[1];
    let mut rows = [(0, 0), (padding, 0), (0, padding)].map(|(before, after)| {
        let tokens = golden.ids[before + after..LENGTHS[0]].to_vec();
        Row {
            mask: [vec![0; before], vec![1; tokens.len()], vec![0; after]].concat(),
            tokens,
        }
    });
    let mut caches = Arrays::new();
    for step in 0..=STEPS {
        let fresh = if step == 0 { LENGTHS[0] } else { 1 };
        for row in rows.iter_mut().filter(|_| step > 0) {
            row.tokens.push(golden.ids[LENGTHS[0] + step]);
            row.mask.push(1);
        }
        caches = run(&batch(&rows, fresh), &caches)?;
        let logits = caches["logits"].as_f32().unwrap();
        let vocab = logits.len() / (rows.len() * fresh);
        for (r, row) in rows.iter().enumerate() {
            let alone = run(&row.alone(), &Arrays::new())?;
            let alone = alone["logits"].as_f32().unwrap();
            let places = (row.mask.len() - fresh..row.mask.len()).filter(|&at| row.mask[at] == 1);
            for at in places {
                let here = (r * fresh + at + fresh - row.mask.len()) * vocab;
                let there = row.positions()[at] as usize * vocab;
                let pairs = logits[here..][..vocab].iter().zip(&alone[there..][..vocab]);
                let what = format!("{name}, step {step}, row {r}, place {at}");
                within(&what, worst_error(pairs), TOLERANCE)?;
            }
        }
    }
    Ok(())
}

/// The last `fresh` places of every row. A place of padding gets a token that the row doesn't have
/// there.
fn batch(rows: &[Row], fresh: usize) -> Feed {
    let mut feed = Feed {
        shape: [rows.len(), fresh],
        ids: vec![],
        mask: vec![],
        positions: vec![],
    };
    for row in rows {
        let positions = row.positions();
        let places = row.mask.iter().zip(&positions).skip(row.mask.len() - fresh);
        for (&live, &position) in places {
            feed.ids.push(if live == 1 {
                row.tokens[position as usize]
            } else {
                1
            });
            feed.positions.push(position);
        }
        feed.mask.extend(&row.mask);
    }
    feed
}
