//! How long a thread has been computing, apart from the time in which it waited for a processor.

use std::thread::JoinHandle;
use std::time::Duration;

#[cfg(target_os = "linux")]
mod clock {
    #![expect(unsafe_code, reason = "the system's clock of a thread")]

    use std::mem::MaybeUninit;
    use std::os::unix::thread::JoinHandleExt;
    use std::thread::JoinHandle;
    use std::time::Duration;

    /// The clock of a thread.
    pub fn of<T>(thread: &JoinHandle<T>) -> Option<libc::clockid_t> {
        let mut clock = MaybeUninit::uninit();
        // SAFETY: the handle is neither joined nor detached, so the thread's number is valid.
        let failed =
            unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), clock.as_mut_ptr()) };
        // SAFETY: it was written, since the call succeeded.
        (failed == 0).then(|| unsafe { clock.assume_init() })
    }

    /// What a clock shows; None once its thread has ended.
    pub fn read(clock: libc::clockid_t) -> Option<Duration> {
        let mut time = MaybeUninit::<libc::timespec>::uninit();
        // SAFETY: the place is of the type that is written.
        let failed = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
        // SAFETY: it was written, since the call succeeded.
        let time = (failed == 0).then(|| unsafe { time.assume_init() })?;
        let seconds = u64::try_from(time.tv_sec).ok()?;
        Some(Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?))
    }
}

/// The clock of a thread, where the system has one.
#[derive(Debug)]
pub struct ThreadTime {
    #[cfg(target_os = "linux")]
    clock: Option<libc::clockid_t>,
}

impl ThreadTime {
    #[cfg(target_os = "linux")]
    pub fn of<T>(thread: &JoinHandle<T>) -> Self {
        Self {
            clock: clock::of(thread),
        }
    }

    #[cfg(target_os = "linux")]
    pub fn spent(&self) -> Option<Duration> {
        clock::read(self.clock?)
    }

    #[cfg(not(target_os = "linux"))]
    pub fn of<T>(_: &JoinHandle<T>) -> Self {
        Self {}
    }

    #[cfg(not(target_os = "linux"))]
    pub fn spent(&self) -> Option<Duration> {
        None
    }
}
