//! A boundary for panics inside other people's parsers: what an input made them do becomes an error
//! of that input.
//!
//! Contains panics only: a stack that overflows and memory that runs out end the process all the
//! same, so inputs are measured before.

mod thread_time;

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use self::thread_time::ThreadTime;

thread_local! {
    /// How many boundaries this thread is inside of.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// The longest part of a panic's message that is quoted.
const QUOTED: usize = 160;
/// The least time between two looks at how long work has taken.
const LOOK: Duration = Duration::from_millis(10);
/// Work is given up after this many times its limit, even if the processor did something else.
const MOST_WAITS: u32 = 30;

/// Runs `work`, which hands an untrusted input to code that isn't dlc's. What `work` was building
/// is dropped if it panics, so it must change nothing that is used afterwards.
///
/// # Errors
/// What to say of the input if `work` panics: `what`, such as "the tokenizer", and the panic's
/// message.
pub fn contain_panics<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    DEPTH.set(DEPTH.get() + 1);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(|panic| {
        format!(
            "breaks {what}, so it is damaged or made to do harm ({})",
            message(&*panic)
        )
    })
}

/// As [`contain_panics`], in a thread with a stack of so many bytes, and for no longer than `limit`
/// of processor time, so that a busy machine refuses nothing: work that takes longer is left alone
/// and given up.
///
/// # Errors
/// As there; and that it takes too long, or that no thread can be started.
pub fn contain_within<T: Send + 'static>(
    what: &'static str,
    limit: Duration,
    stack: usize,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = channel();
    let contained = move || drop(sender.send(contain_panics(what, work).flatten()));
    let asked = Instant::now();
    let started = std::thread::Builder::new()
        .name("contained".to_owned())
        .stack_size(stack)
        .spawn(contained);
    let thread =
        started.map_err(|error| format!("can't be read: no thread can be started ({error})"))?;
    let time = ThreadTime::of(&thread);
    let mut left = limit;
    loop {
        match receiver.recv_timeout(left.max(LOOK)) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => return Err(format!("breaks {what}")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let waited = asked.elapsed();
        left = limit.saturating_sub(time.spent().unwrap_or(waited));
        if left.is_zero() || waited > limit * MOST_WAITS {
            return Err("takes too long".to_owned());
        }
    }
}

/// Keeps panics that [`contain_panics`] turns into errors off stderr; all others print as before.
/// For the command, once.
pub fn hush_contained_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
            print(info);
        }
    }));
}

/// The first line of what a panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.and_then(|text| text.lines().next())
        .unwrap_or("no reason given")
        .chars()
        .filter(|c| !c.is_control())
        .take(QUOTED)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_first_line() {
        let index = std::hint::black_box(7);
        let error = contain_panics("the parser", || [1, 2, 3][index]).unwrap_err();
        assert!(
            error.starts_with("breaks the parser") && error.contains("index out of bounds"),
            "{error}"
        );
        let error = contain_panics("the parser", || panic!("one\ntwo")).unwrap_err();
        assert!(error.ends_with("(one)"), "{error}");
        let error = contain_panics("the parser", || panic::panic_any(7)).unwrap_err();
        assert!(error.ends_with("(no reason given)"), "{error}");
    }

    #[test]
    fn work_is_given_up_after_so_much_processor_time() {
        let limit = Duration::from_millis(50);
        let enough = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&enough);
        let spin = move || {
            while !seen.load(Ordering::Relaxed) {}
            Ok(())
        };
        let error = contain_within("the parser", limit, 1 << 20, spin).unwrap_err();
        enough.store(true, Ordering::Relaxed);
        assert_eq!(error, "takes too long");
        let gone = contain_within("the parser", limit, 1 << 20, || -> Result<(), String> {
            panic!("gone")
        });
        assert!(gone.unwrap_err().starts_with("breaks the parser"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn time_in_which_the_processor_does_something_else_does_not_count() {
        let limit = Duration::from_millis(50);
        let waits = move || {
            std::thread::sleep(3 * limit);
            Ok(7)
        };
        assert_eq!(contain_within("the parser", limit, 1 << 20, waits), Ok(7));
    }

    #[test]
    fn boundaries_nest_and_leave_results_alone() {
        let inner = contain_panics("the outer", || {
            contain_panics("the inner", || panic!("gone"))
        });
        assert!(inner.unwrap().unwrap_err().contains("the inner"));
        assert_eq!(contain_panics("the parser", || 7), Ok(7));
        assert_eq!(DEPTH.get(), 0);
    }
}
