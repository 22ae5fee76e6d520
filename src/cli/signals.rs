//! SIGINT, SIGTERM and SIGHUP: all three ask the command to stop.
//!
//! Work that looks at [`interruption`] ends by itself, at its next step. Where it doesn't soon, or
//! looks at nothing, this process is ended from the thread that waits for signals, once its
//! temporary folders are removed; so it is at the second signal.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, mpsc};
use std::time::Duration;

use dlc_files::temporary;

use super::failure::Result;

/// How long work may take to end by itself.
#[cfg(unix)]
const PATIENCE: Duration = Duration::from_millis(1500);

/// Milliseconds that work may take to end by itself beyond [`PATIENCE`].
static MORE_PATIENCE: AtomicU64 = AtomicU64::new(0);

/// The number of the signal that Ctrl-C sends.
const SIGINT: u8 = 2;

static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Whether something is under way that looks at [`STOP`].
static HEEDED: AtomicBool = AtomicBool::new(false);
/// Whether nothing is under way that a signal should let finish.
static IDLE: AtomicBool = AtomicBool::new(false);
/// Whether a person talks with the command, and sees by itself what Ctrl-C does.
static CONVERSES: AtomicBool = AtomicBool::new(false);
/// The signal that asked to stop; 0 for none.
static SIGNAL: AtomicU8 = AtomicU8::new(0);
/// Where work is kept that a later run goes on from.
static KEPT: Mutex<Option<PathBuf>> = Mutex::new(None);
/// Prints results that no reader has seen yet.
static COLLECTED: Mutex<Option<Print>> = Mutex::new(None);

type Print = Box<dyn FnOnce() -> Result<()> + Send>;

/// Set by a signal. Who asks for it looks at it often.
pub(super) fn interruption() -> Arc<AtomicBool> {
    HEEDED.store(true, Ordering::SeqCst);
    Arc::clone(&STOP)
}

/// Gives work so much more time to end by itself.
pub(super) fn give_time(more: Duration) {
    let more = u64::try_from(more.as_millis()).unwrap_or(u64::MAX);
    MORE_PATIENCE.store(more, Ordering::SeqCst);
}

/// Goes on after what was under way has stopped, if Ctrl-C stopped it; the other signals mean the
/// whole command.
pub(super) fn resume() -> bool {
    let resumes = SIGNAL.load(Ordering::SeqCst) == SIGINT;
    if resumes {
        STOP.store(false, Ordering::SeqCst);
    }
    resumes
}

/// While `idle`, the first signal ends the process at once.
pub(super) fn set_idle(idle: bool) {
    IDLE.store(idle, Ordering::SeqCst);
}

/// While the command `converses`, signals do what they do without a word.
pub(super) fn converses(converses: bool) {
    CONVERSES.store(converses, Ordering::SeqCst);
}

/// Notes that a later run can go on from what is kept in `folder`.
pub(super) fn keep(folder: &Path) {
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.to_owned());
}

/// Notes how what was collected so far is printed if this process is ended before [`settle`].
pub(super) fn print_at_end(print: impl FnOnce() -> Result<()> + Send + 'static) {
    *COLLECTED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(print));
}

/// Prints what was collected, once; false if there is nothing.
pub(super) fn settle() -> Result<bool> {
    // Held while it is printed: an end waits for it.
    let mut collected = COLLECTED.lock().unwrap_or_else(PoisonError::into_inner);
    collected
        .take()
        .map_or(Ok(false), |print| print().map(|()| true))
}

/// What shells show for a program that was ended by the signal that came: 130 after Ctrl-C.
pub(super) fn exit_code() -> u8 {
    let signal = SIGNAL.load(Ordering::SeqCst);
    128 + if signal == 0 { SIGINT } else { signal }
}

/// Says that the command was stopped, what it left behind and what it kept; once.
pub(super) fn say_farewell(left: &[PathBuf]) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::SeqCst) || CONVERSES.load(Ordering::SeqCst) {
        return;
    }
    let names: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
    let left = match names.as_slice() {
        [] => "nothing was left behind".to_owned(),
        names => format!(
            "left behind, and removed by the next run in that folder: {}",
            names.join(", ")
        ),
    };
    let kept = KEPT.try_lock().ok().and_then(|kept| kept.clone());
    let kept = kept.map(|folder| {
        format!(
            "; the work so far is kept in {}, and the same command goes on from there",
            folder.display()
        )
    });
    say(format!("interrupted; {left}{}\n", kept.unwrap_or_default()));
}

/// Writes to stderr, unless it takes nothing.
fn say(text: String) {
    attempt(Duration::from_millis(200), move || {
        let _ = io::stderr().lock().write_all(text.as_bytes());
    });
}

/// Does something that may block, and waits no longer than `patience`: an end must not wait for a
/// reader.
fn attempt(patience: Duration, work: impl FnOnce() + Send + 'static) {
    let (said, done) = mpsc::channel();
    let _ = std::thread::Builder::new().spawn(move || {
        work();
        let _ = said.send(());
    });
    let _ = done.recv_timeout(patience);
}

/// Begins to wait for signals. Where that fails, they end the process as they always do.
#[cfg(unix)]
pub(super) fn listen() {
    use signal_hook::consts::{SIGHUP, SIGTERM};

    // Under nohup, the end of the terminal isn't the end of the work.
    let heard = [i32::from(SIGINT), SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| *signal != SIGHUP || !is_ignored(SIGHUP));
    if let Ok(signals) = signal_hook::iterator::Signals::new(heard) {
        let _ = std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || wait(signals));
    }
}

#[cfg(not(unix))]
pub(super) fn listen() {}

#[cfg(unix)]
fn wait(mut signals: signal_hook::iterator::Signals) {
    loop {
        let Some(signal) = signals.wait().next() else {
            continue;
        };
        SIGNAL.store(signal as u8, Ordering::SeqCst);
        if IDLE.load(Ordering::SeqCst) {
            end();
        }
        if !CONVERSES.load(Ordering::SeqCst) {
            say("stopping\n".into());
        }
        if !HEEDED.load(Ordering::SeqCst) {
            end();
        }
        STOP.store(true, Ordering::SeqCst);
        let asked = std::time::Instant::now();
        let patience = PATIENCE + Duration::from_millis(MORE_PATIENCE.load(Ordering::SeqCst));
        // Whoever clears the flag has stopped what was under way, and goes on with something else.
        while STOP.load(Ordering::SeqCst) {
            if asked.elapsed() > patience || signals.pending().next().is_some() {
                end();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Ends the process from whatever it does.
#[cfg(unix)]
fn end() -> ! {
    attempt(PATIENCE, || _ = settle());
    say_farewell(&temporary::remove_all());
    signal_hook::low_level::exit(exit_code().into())
}

/// Whether this process was started to ignore a signal. Where that isn't known, it wasn't.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
