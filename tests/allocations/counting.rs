//! An allocator that counts by thread, and decoding under it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::ControlFlow;

use dlc_methods::speculation::{
    DecodeOptions, Decoder, Generation, Stats, SuffixIndex, TokenModel,
};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

// SAFETY: the system's allocator does the work. What moves a block or fills it with zeros allocates
// by `alloc`, and so counts once.
#[expect(unsafe_code, reason = "an allocator")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: likewise.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Allocations of this thread so far.
pub fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

/// What the rounds of a text took.
#[derive(Debug)]
pub struct Rounds {
    /// Allocations of each.
    pub allocations: Vec<usize>,
    /// What was written.
    pub text: Vec<u32>,
    pub stats: Stats,
}

/// Writes the same text thrice, and counts at the third time: by then whatever grows with the text
/// has grown.
pub fn rounds<'m>(
    target: &'m mut dyn TokenModel,
    draft: Option<&'m mut dyn TokenModel>,
    prompt: &[u32],
    options: &DecodeOptions,
) -> Rounds {
    let mut decoder = Decoder::new(target, draft, options.clone()).unwrap();
    for _ in 0..2 {
        let mut watch = |_: &[u32]| ControlFlow::Continue(());
        decoder.generate(prompt, &mut watch).unwrap();
    }
    let mut counts = Vec::with_capacity(1 + options.max_tokens);
    counts.push(allocations());
    let mut watch = |_: &[u32]| {
        counts.push(allocations());
        ControlFlow::Continue(())
    };
    let Generation { tokens, stats, .. } = decoder.generate(prompt, &mut watch).unwrap();
    assert_eq!(counts.len(), 1 + stats.rounds);
    let allocations = counts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    Rounds {
        allocations,
        text: tokens,
        stats,
    }
}

/// What an index for lookups allocates by itself while it takes in a text: it grows with each token.
pub fn allocations_of_index(prompt: &[u32], text: &[u32]) -> usize {
    let before = allocations();
    let mut index = SuffixIndex::new(0);
    index.begin(prompt);
    index.extend(text);
    allocations() - before
}
