//! What templates call beside Jinja's own functions: `raise_exception` and `strftime_now`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind, Value};

use super::limits::too_much;

/// The longest format of a date.
const MOST_DIRECTIVES: usize = 1024;

/// A template's way of refusing a conversation.
pub(super) fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// Python's `strftime` in UTC; `%-d` leaves out leading zeros.
pub(super) fn strftime(format: &str, time: SystemTime) -> Result<String, Error> {
    if format.len() > MOST_DIRECTIVES {
        return Err(too_much("a very long date"));
    }
    let date = Date::new(time);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match characters.next() {
            Some('-') => {
                let part = date.part(characters.next().unwrap_or('%'))?;
                let short = part.trim_start_matches('0');
                text.push_str(if short.is_empty() { "0" } else { short });
            }
            directive => text.push_str(&date.part(directive.unwrap_or('%'))?),
        }
    }
    Ok(text)
}

struct Date {
    /// Since 1970-01-01.
    days: u64,
    second: u64,
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    fn new(time: SystemTime) -> Self {
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        Self {
            days,
            second,
            year,
            month,
            day,
        }
    }

    fn part(&self, directive: char) -> Result<String, Error> {
        let Self {
            days,
            second,
            year,
            month,
            day,
        } = *self;
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
        // From Monday.
        let weekday = (days + 3) % 7;
        let combined = |directives: &str| {
            directives
                .split(' ')
                .try_fold(String::new(), |mut text, part| {
                    let _ = write!(
                        text,
                        "{}{}",
                        self.part(part.chars().next().unwrap_or('%'))?,
                        &part[1..]
                    );
                    Ok::<_, Error>(text)
                })
        };
        Ok(match directive {
            'Y' => format!("{year:04}"),
            'y' => format!("{:02}", year % 100),
            'C' => format!("{:02}", year / 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'j' => format!("{:03}", days - days_before(year) + 1),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{:02}", second % 60),
            'f' => "000000".to_owned(),
            'p' => (if second < 43_200 { "AM" } else { "PM" }).to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'u' => (weekday + 1).to_string(),
            'w' => ((weekday + 1) % 7).to_string(),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            'F' => combined("Y- m- d")?,
            'T' | 'X' => combined("H: M: S")?,
            'R' => combined("H: M")?,
            'D' | 'x' => combined("m/ d/ y")?,
            'c' => format!(
                "{} {} {} {} {year:04}",
                self.part('a')?,
                self.part('b')?,
                self.part('e')?,
                self.part('T')?
            ),
            's' => (days * 86_400 + second).to_string(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            other => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now doesn't know %{other}"),
                ));
            }
        })
    }
}

/// Days from 1970-01-01 to the first of a year.
fn days_before(year: u64) -> u64 {
    let before = year - 1;
    before * 365 + before / 4 - before / 100 + before / 400 - 719_162
}

/// Year, month and day of a day after 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (
        year_of_era + era * 400 + u64::from(month <= 2),
        month,
        day_of_year - (153 * shifted_month + 2) / 5 + 1,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            strftime("%F %T %D|%-d.%-m.%y|%c", time).unwrap(),
            "2000-02-29 00:01:05 02/29/00|29.2.00|Tue Feb 29 00:01:05 2000"
        );
        assert!(strftime("%Q", UNIX_EPOCH).is_err());
    }
}
