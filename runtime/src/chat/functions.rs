//! What templates call beside Jinja's own functions: `raise_exception` and `strftime_now`.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::{Error, ErrorKind, Value};

use super::limits::too_much;

/// The longest format of a date.
const MOST_DIRECTIVES: usize = 1024;

/// A template's way of refusing a conversation.
pub(super) fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Directives whose meaning depends on the locale, as Python writes them in C's, and microseconds.
const PYTHON: [(&str, &str); 4] = [
    ("%c", "%a %b %e %H:%M:%S %Y"),
    ("%x", "%m/%d/%y"),
    ("%X", "%H:%M:%S"),
    ("%f", "%6f"),
];

/// Python's `strftime` in UTC; `%-d` leaves out leading zeros.
pub(super) fn strftime(format: &str, time: SystemTime) -> Result<String, Error> {
    if format.len() > MOST_DIRECTIVES {
        return Err(too_much("a very long date"));
    }
    let refused = |error: jiff::Error| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now can't write this date: {error}"),
        )
    };
    // An escaped percent sign must not look like the start of a directive.
    let parts: Vec<String> = format
        .split("%%")
        .map(|part| {
            PYTHON.iter().fold(part.to_owned(), |part, (python, ours)| {
                part.replace(python, ours)
            })
        })
        .collect();
    let now = Timestamp::try_from(time)
        .map_err(refused)?
        .to_zoned_datetime(TimeZone::UTC);
    strtime::format(parts.join("%%"), &now).map_err(refused)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        for (seconds, expected) in [
            (0, "Thu 01 Jan 1970, 12:00 AM, 001 4"),
            (951_782_400, "Tue 29 Feb 2000, 12:00 AM, 060 2"),
            (1_735_689_599, "Tue 31 Dec 2024, 11:59 PM, 366 2"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(
                strftime("%a %d %b %Y, %I:%M %p, %j %w", time).unwrap(),
                expected
            );
        }
        let time = UNIX_EPOCH + Duration::from_secs(951_782_465);
        assert_eq!(
            strftime("%F %T %D|%-d.%-m.%y|%c|%f %%c", time).unwrap(),
            "2000-02-29 00:01:05 02/29/00|29.2.00|Tue Feb 29 00:01:05 2000|000000 %c"
        );
        assert!(strftime("%!", UNIX_EPOCH).is_err());
    }
}
