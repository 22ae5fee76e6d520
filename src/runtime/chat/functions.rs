//! What chat templates call beside Jinja's own: `raise_exception`, `strftime_now` and Python's way of writing JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

/// A template's way of refusing a conversation.
pub(super) fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// JSON as Python's `json.dumps(..., ensure_ascii=False)` writes it; Jinja's own would escape it for HTML.
#[expect(clippy::needless_pass_by_value, reason = "minijinja's filters take their keywords so")]
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes())))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, PythonFormatter)),
    };
    let bad = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    written.map_err(|error| bad(error.to_string()))?;
    String::from_utf8(text).map(Value::from_safe_string).map_err(|error| bad(error.to_string()))
}

/// `", "` between elements and `": "` after keys.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's `strftime` for the directives that templates use, in UTC.
pub(super) fn strftime(format: &str, time: SystemTime) -> Result<String, Error> {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = characters.next().unwrap_or('%');
        let part = match directive {
            'Y' => format!("{year:04}"),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'H' => format!("{:02}", second / 3600),
            'I' => format!("{:02}", (second / 3600 + 11) % 12 + 1),
            'M' => format!("{:02}", second / 60 % 60),
            'S' => format!("{:02}", second % 60),
            'p' => (if second < 43_200 { "AM" } else { "PM" }).to_owned(),
            'B' => MONTHS[month as usize - 1].to_owned(),
            'b' => MONTHS[month as usize - 1][..3].to_owned(),
            'A' => DAYS[(days % 7) as usize].to_owned(),
            'a' => DAYS[(days % 7) as usize][..3].to_owned(),
            '%' => "%".to_owned(),
            other => return Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now doesn't know %{other}"))),
        };
        text.push_str(&part);
    }
    Ok(text)
}

/// Year, month and day of a day after 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        for (seconds, expected) in
            [(0, "Thu 01 Jan 1970, 12:00 AM"), (951_782_400, "Tue 29 Feb 2000, 12:00 AM"), (1_735_689_599, "Tue 31 Dec 2024, 11:59 PM")]
        {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(strftime("%a %d %b %Y, %I:%M %p", time).unwrap(), expected);
        }
        assert!(strftime("%Q", UNIX_EPOCH).is_err());
    }
}
