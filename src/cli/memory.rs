//! The most memory that a process held: this one, and one of its own for a part of a benchmark,
//! which other parts leave nothing in.

use std::process::{Command, Stdio};
use std::{env, fs};

use super::failure::{Context, Result};

/// The physical memory that this process held at most, mapped files included, in bytes; none where
/// the system doesn't say so, as only Linux does.
pub(super) fn peak() -> Option<u64> {
    peak_in(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Lets [`peak`] count anew from what the process holds now, where the system can, as only Linux
/// does.
pub(super) fn reset_peak() {
    // `5` resets the peak resident set size, see proc(5).
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn peak_in(status: &str) -> Option<u64> {
    bytes_of("VmHWM:", status)
}

/// The memory that is free, in bytes; none where the system doesn't say so, as only Linux does.
pub(super) fn free() -> Option<u64> {
    bytes_of("MemAvailable:", &fs::read_to_string("/proc/meminfo").ok()?)
}

/// The number of bytes in the line that begins with `name`, which has it in kilobytes.
fn bytes_of(name: &str, lines: &str) -> Option<u64> {
    let kilobytes = lines
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .trim()
        .strip_suffix(" kB")?;
    kilobytes.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Runs this process's subcommand once more with further `flags`, with which it prints its own
/// [`peak`]; none where the system doesn't say so, or the run fails.
pub(super) fn peak_of_rerun(flags: &[&str]) -> Result<Option<u64>> {
    if peak().is_none() {
        return Ok(None);
    }
    let mut own = env::args_os().skip(1);
    let mut command =
        Command::new(env::current_exe().context("can't find this program to run it again")?);
    command
        .args(own.next())
        .args(flags)
        .args(own)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = command.output().context("can't run this program again")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .ok()
        .filter(|_| output.status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes_or_not_at_all() {
        assert_eq!(
            peak_in("VmPeak:\t  9 kB\nVmHWM:\t   1532 kB\nVmRSS:\t 3 kB\n"),
            Some(1532 * 1024)
        );
        for status in [
            "",
            "VmRSS:\t 3 kB\n",
            "VmHWM:\t 3 MB\n",
            "VmHWM:\t -3 kB\n",
            "VmHWM:\t 18446744073709551615 kB\n",
        ] {
            assert_eq!(peak_in(status), None, "{status}");
        }
    }
}
