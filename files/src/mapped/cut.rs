//! SIGBUS: a page of a mapped file is read that isn't there, since the file was cut short, or since
//! its disk is broken.
//!
//! The handler may only do what is safe in a signal handler: it reads atomics and
//! `/proc/self/maps`, writes to stderr and ends the process. Other causes are left to whatever
//! handled the signal before.
#![expect(unsafe_code, reason = "a signal handler")]

use std::path::Path;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use libc::{c_int, c_void, siginfo_t};

/// What a bus error by a page that a file doesn't have says: `BUS_ADRERR`.
const NO_SUCH_PAGE: c_int = 2;
const BEFORE: &[u8] = b"error: ";
const BEHIND: &[u8] =
    b" was cut short while it was read, or can't be read from its disk any more. Put the whole file there, and run the command again\n";
const EXIT_CODE: c_int = 2;

/// A mapped range of memory. Never freed, since the handler may look at it at any time.
#[derive(Debug)]
struct Region {
    start: usize,
    end: usize,
    is_mapped: AtomicBool,
    /// The file's name as it is printed.
    name: Box<[u8]>,
    next: *const Region,
}

/// The region that was added last.
static REGIONS: AtomicPtr<Region> = AtomicPtr::new(ptr::null_mut());
/// What handled the signal before.
static BEFORE_US: OnceLock<libc::sigaction> = OnceLock::new();

/// Keeps a range known for as long as it lives.
#[derive(Debug)]
pub(super) struct Registered(&'static Region);

// SAFETY: a region is never written after it was added, but for its atomic flag; `next` points to
// another one, which is never freed.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Registered {
    /// Makes the handler know that `bytes` are those of the file at `path`.
    pub fn new(bytes: &[u8], path: &Path) -> Self {
        let name: String = path
            .display()
            .to_string()
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        let start = bytes.as_ptr() as usize;
        let (is_mapped, name) = (AtomicBool::new(true), name.into_bytes().into_boxed_slice());
        let region: &'static mut Region = Box::leak(Box::new(Region {
            start,
            end: start + bytes.len(),
            is_mapped,
            name,
            next: ptr::null(),
        }));
        let this = ptr::from_mut(region);
        let mut last = REGIONS.load(Ordering::Acquire);
        loop {
            // SAFETY: nothing else knows the region before it is added.
            unsafe { (*this).next = last };
            match REGIONS.compare_exchange_weak(last, this, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: it is never freed, and only read from now on.
                Ok(_) => return Self(unsafe { &*this }),
                Err(newer) => last = newer,
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.is_mapped.store(false, Ordering::Release);
    }
}

/// From now on, a mapped file that is cut short ends the process with a message that names it, and
/// exit code 2.
pub fn name_cut_files() {
    // SAFETY: both structures are plain data for which zeros are valid, and live through the call;
    // the handler keeps to what handlers may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        // Threads whose stack is at its end have another one for handlers.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) == 0 {
            let _ = BEFORE_US.set(before);
        }
    }
}

extern "C" fn on_bus_error(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the system passes what it knows of the signal; the address is there for the code that
    // is looked for.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == NO_SUCH_PAGE {
        if let Some(name) = registered(address) {
            end(name);
        }
        #[cfg(target_os = "linux")]
        maps::with_name(address, end);
    }
    // SAFETY: the action was valid before, or is the system's own. The instruction that failed is
    // tried again, and fails under it.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(
            libc::SIGBUS,
            BEFORE_US.get().unwrap_or(&default),
            ptr::null_mut(),
        );
    }
}

fn registered(address: usize) -> Option<&'static [u8]> {
    let mut next: *const Region = REGIONS.load(Ordering::Acquire);
    // SAFETY: regions are never freed.
    while let Some(region) = unsafe { next.as_ref() } {
        if region.is_mapped.load(Ordering::Acquire) && (region.start..region.end).contains(&address)
        {
            return Some(&region.name);
        }
        next = region.next;
    }
    None
}

/// Says which file it was, and ends the process.
fn end(name: &[u8]) {
    static ENDING: AtomicBool = AtomicBool::new(false);
    if ENDING.swap(true, Ordering::AcqRel) {
        loop {
            // SAFETY: waits for the end, which another thread brings.
            unsafe { libc::pause() };
        }
    }
    for part in [BEFORE, name, BEHIND] {
        // SAFETY: the bytes live through the call.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(EXIT_CODE) }
}

/// Files that libraries map by themselves.
#[cfg(target_os = "linux")]
mod maps {
    /// Longest line that is read whole; of a longer one the name is cut.
    const LINE: usize = 640;

    /// Calls `found` with the name of the file that is mapped, not to be written, at an address.
    pub fn with_name(address: usize, found: fn(&[u8])) {
        // SAFETY: the path ends with a zero; only this function has the descriptor; reads stay
        // inside of the buffer.
        unsafe {
            let maps = libc::open(
                c"/proc/self/maps".as_ptr(),
                libc::O_RDONLY | libc::O_CLOEXEC,
            );
            if maps < 0 {
                return;
            }
            let (mut piece, mut line, mut length) = ([0u8; 256], [0u8; LINE], 0);
            loop {
                let n = libc::read(maps, piece.as_mut_ptr().cast(), piece.len());
                let Some(read) = usize::try_from(n)
                    .ok()
                    .filter(|n| *n > 0)
                    .and_then(|n| piece.get(..n))
                else {
                    break;
                };
                for &byte in read {
                    if byte != b'\n' {
                        if let Some(place) = line.get_mut(length) {
                            *place = if byte.is_ascii_control() { b'?' } else { byte };
                            length += 1;
                        }
                        continue;
                    }
                    if let Some(name) = line.get(..length).and_then(|line| file_at(line, address)) {
                        found(name);
                    }
                    length = 0;
                }
            }
            libc::close(maps);
        }
    }

    /// The file's name in a line `start-end rwxp offset device inode   name` whose range holds the
    /// address.
    pub fn file_at(line: &[u8], address: usize) -> Option<&[u8]> {
        let (start, rest) = number(line)?;
        let (end, rest) = number(rest.strip_prefix(b"-")?)?;
        // ONNX Runtime maps files that it only reads as private memory that may be written.
        let is_written = rest.get(2).is_none_or(|flag| *flag == b'w') && rest.get(4) != Some(&b'p');
        let name = rest
            .iter()
            .position(|byte| *byte == b'/')
            .and_then(|at| rest.get(at..));
        name.filter(|_| (start..end).contains(&address) && !is_written)
    }

    /// The hexadecimal number that a text begins with, and what stands after it.
    fn number(text: &[u8]) -> Option<(usize, &[u8])> {
        let digits = text
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let value = text.get(..digits)?.iter().try_fold(0usize, |value, byte| {
            value
                .checked_mul(16)?
                .checked_add((*byte as char).to_digit(16)? as usize)
        });
        value.filter(|_| digits > 0).zip(text.get(digits..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_for_as_long_as_its_file_is_mapped() {
        let bytes = vec![0u8; 64];
        let address = bytes.as_ptr() as usize;
        let region = Registered::new(&bytes, Path::new("a\nb/weights.bin"));
        assert_eq!(registered(address + 63), Some(&b"a?b/weights.bin"[..]));
        assert_eq!(registered(address + 64), None);
        drop(region);
        assert_eq!(registered(address), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn lines_of_the_system_name_files_that_are_only_read() {
        let line = b"7f10-7f30 r--p 00000000 08:01 1234                       /home/me/a model/weights.bin";
        assert_eq!(
            maps::file_at(line, 0x7f10),
            Some(&b"/home/me/a model/weights.bin"[..])
        );
        assert_eq!(maps::file_at(line, 0x7f30), None);
        assert_eq!(
            maps::file_at(
                b"7f10-7f30 rw-s 00000000 08:01 1234  /home/me/database",
                0x7f10
            ),
            None
        );
        assert_eq!(
            maps::file_at(b"7f10-7f30 rw-p 00000000 08:01 1234  /weights.bin", 0x7f10),
            Some(&b"/weights.bin"[..])
        );
        assert_eq!(
            maps::file_at(b"7f10-7f30 r--p 00000000 00:00 0 ", 0x7f10),
            None
        );
        assert_eq!(maps::file_at(b"", 0), None);
    }
}
