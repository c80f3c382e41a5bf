//! Lines of an access log, from what is known of a request.

use std::fmt::{self, Write};

use super::RequestEnd;

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Common,
    Combined,
    Json,
}

/// What a line tells. A duration is in microseconds, and -1 if it is not known.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    /// `None`: not one that this version knows.
    pub(crate) end: Option<RequestEnd>,
    pub(crate) status: i32,
    /// The version of HTTP times ten; 0 if the head was not complete.
    pub(crate) version: i32,
    pub(crate) is_secure: bool,
    pub(crate) conn_id: u64,
    pub(crate) number: u64,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// Since 1970.
    pub(crate) began_us: i64,
    pub(crate) head_us: i64,
    pub(crate) called_us: i64,
    pub(crate) answered_us: i64,
    pub(crate) flushed_us: i64,
    pub(crate) acknowledged_us: i64,
    pub(crate) ended_us: i64,
    pub(crate) is_overdue: bool,
    pub(crate) peer: &'a [u8],
    pub(crate) method: &'a [u8],
    pub(crate) target: &'a [u8],
    pub(crate) referer: Option<&'a [u8]>,
    pub(crate) user_agent: Option<&'a [u8]>,
}

impl Line<'_> {
    pub(crate) fn write(&self, form: Form, to: &mut impl Write) -> fmt::Result {
        match form {
            Form::Common => self.write_common(to),
            Form::Combined => {
                self.write_common(to)?;
                for field in [self.referer, self.user_agent] {
                    to.write_str(" \"")?;
                    write_escaped(to, field.unwrap_or(b"-"), b'"')?;
                    to.write_char('"')?;
                }
                Ok(())
            }
            Form::Json => self.write_json(to),
        }
    }

    fn write_common(&self, to: &mut impl Write) -> fmt::Result {
        let Time {
            year,
            month,
            day,
            hour,
            minute,
            second,
            ..
        } = Time::of(self.began_us);
        let month = MONTHS[month - 1];
        // A blank would begin the next field.
        write_escaped(to, host(self.peer), b' ')?;
        write!(
            to,
            " - - [{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000] \""
        )?;
        if self.method.is_empty() {
            to.write_char('-')?;
        } else {
            write_escaped(to, self.method, b'"')?;
            to.write_char(' ')?;
            write_escaped(to, self.target, b'"')?;
            write!(to, " HTTP/{}.{}", self.version / 10, self.version % 10)?;
        }
        write!(to, "\" {:03} ", self.status)?;
        match self.sent {
            0 => to.write_char('-'),
            sent => write!(to, "{sent}"),
        }
    }

    fn write_json(&self, to: &mut impl Write) -> fmt::Result {
        let Time {
            year,
            month,
            day,
            hour,
            minute,
            second,
            micros,
        } = Time::of(self.began_us);
        write!(
            to,
            "{{\"time\":\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z\""
        )?;
        let known = |text| Some(text).filter(|_| !self.method.is_empty());
        write_field(to, "peer", Some(self.peer))?;
        write_field(to, "method", known(self.method))?;
        write_field(to, "target", known(self.target))?;
        let version = match self.version {
            0 => None,
            10 => Some(&b"1.0"[..]),
            _ => Some(&b"1.1"[..]),
        };
        write_field(to, "version", version)?;
        write!(to, ",\"status\":{}", self.status)?;
        let end = self.end.map(|end| end.as_str().as_bytes());
        write_field(to, "end", end)?;
        let Self {
            conn_id,
            number,
            is_secure,
            received,
            sent,
            ..
        } = self;
        write!(
            to,
            ",\"conn_id\":{conn_id},\"number\":{number},\"tls\":{is_secure}"
        )?;
        write!(to, ",\"received\":{received},\"sent\":{sent}")?;
        for (name, us) in [
            ("head_us", self.head_us),
            ("called_us", self.called_us),
            ("answered_us", self.answered_us),
            ("flushed_us", self.flushed_us),
            ("acknowledged_us", self.acknowledged_us),
            ("ended_us", self.ended_us),
        ] {
            match us {
                0.. => write!(to, ",\"{name}\":{us}")?,
                _ => write!(to, ",\"{name}\":null")?,
            }
        }
        write!(to, ",\"overdue\":{}", self.is_overdue)?;
        write_field(to, "referer", self.referer)?;
        write_field(to, "user_agent", self.user_agent)?;
        to.write_char('}')
    }
}

/// The host of an address, without the port. A client of a Unix socket has none: `unix:`.
fn host(peer: &[u8]) -> &[u8] {
    if peer.starts_with(crate::addr::UNIX.as_bytes()) {
        return crate::addr::UNIX.as_bytes();
    }
    let end = peer.iter().rposition(|byte| *byte == b':');
    let host = end.map_or(peer, |end| &peer[..end]);
    let inside = host.strip_prefix(b"[");
    let host = inside
        .and_then(|host| host.strip_suffix(b"]"))
        .unwrap_or(host);
    if host.is_empty() { b"-" } else { host }
}

/// Writes visible ASCII and blanks as they are, but with a backslash before a backslash and before `special`; every
/// other byte as `\xHH`. If `special` is the blank, that, too, is written as `\x20`.
fn write_escaped(to: &mut impl Write, text: &[u8], special: u8) -> fmt::Result {
    for &byte in text {
        match byte {
            b' ' if special == b' ' => to.write_str("\\x20")?,
            b'\\' => to.write_str("\\\\")?,
            b' '..=b'~' if byte == special => write!(to, "\\{}", char::from(byte))?,
            b' '..=b'~' => to.write_char(char::from(byte))?,
            _ => write!(to, "\\x{byte:02x}")?,
        }
    }
    Ok(())
}

/// Writes a field of a JSON object, which is not the first.
fn write_field(to: &mut impl Write, name: &str, value: Option<&[u8]>) -> fmt::Result {
    write!(to, ",\"{name}\":")?;
    match value {
        None => to.write_str("null"),
        Some(text) => write_json_text(to, text),
    }
}

/// Writes a text as a JSON string (RFC 8259, 7). What is not UTF-8 is replaced.
fn write_json_text(to: &mut impl Write, text: &[u8]) -> fmt::Result {
    to.write_char('"')?;
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => to.write_str("\\\"")?,
                '\\' => to.write_str("\\\\")?,
                '\u{8}' => to.write_str("\\b")?,
                '\u{c}' => to.write_str("\\f")?,
                '\n' => to.write_str("\\n")?,
                '\r' => to.write_str("\\r")?,
                '\t' => to.write_str("\\t")?,
                control @ '\0'..'\u{20}' => write!(to, "\\u{:04x}", u32::from(control))?,
                other => to.write_char(other)?,
            }
        }
        if !chunk.invalid().is_empty() {
            to.write_char(char::REPLACEMENT_CHARACTER)?;
        }
    }
    to.write_char('"')
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A time in UTC.
#[derive(Debug)]
struct Time {
    year: i64,
    /// From 1.
    month: usize,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    micros: i64,
}

impl Time {
    /// From microseconds since 1970.
    fn of(us: i64) -> Self {
        const DAY: i64 = 24 * 60 * 60;
        /// The calendar repeats itself after 400 years, which have this many days.
        const ERA: i64 = 146_097;
        let (seconds, micros) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
        let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // A year that begins in March has the leap day at its end, and its months are 153 days every five. The first
        // such year began at 0000-03-01, 719,468 days before 1970.
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        let leaps = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leaps) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let is_next_year = month >= 10;
        let month = if is_next_year { month - 9 } else { month + 3 };
        Self {
            year: era * 400 + year_of_era + i64::from(is_next_year),
            month: usize::try_from(month).unwrap_or(1),
            day,
            hour: second / 3_600,
            minute: second / 60 % 60,
            second: second % 60,
            micros,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails panics")]

    use std::time::{Duration, SystemTime};

    use httpdate::fmt_http_date;
    use proptest::prelude::*;

    use super::*;

    fn line<'a>(target: &'a [u8], agent: Option<&'a [u8]>) -> Line<'a> {
        Line {
            end: Some(RequestEnd::TimedOut),
            status: 0,
            version: 11,
            is_secure: true,
            conn_id: u64::MAX,
            number: 2,
            received: 3,
            sent: 4,
            began_us: 784_111_777_000_005,
            head_us: 0,
            called_us: -1,
            answered_us: 8,
            flushed_us: i64::MAX,
            acknowledged_us: -1,
            ended_us: 9,
            is_overdue: true,
            peer: b"[::1]:80",
            method: b"GET",
            target,
            referer: None,
            user_agent: agent,
        }
    }

    fn write(line: &Line<'_>, form: Form) -> String {
        let mut text = String::new();
        line.write(form, &mut text).unwrap();
        text
    }

    /// Reads the fields of a line in the Common Log Format as a log reader does, and takes the escapes away.
    fn read_common(line: &str) -> Vec<Vec<u8>> {
        let mut fields = Vec::new();
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let mut field = Vec::new();
            let end = match rest[0] {
                b'"' => b'"',
                b'[' => b']',
                _ => b' ',
            };
            if end != b' ' {
                rest = &rest[1..];
            }
            loop {
                match rest {
                    [] => break,
                    [b'\\', b'x', high, low, ..] => {
                        let digits = [*high, *low];
                        let digits = str::from_utf8(&digits).unwrap();
                        field.push(u8::from_str_radix(digits, 16).unwrap());
                        rest = &rest[4..];
                    }
                    [b'\\', byte, ..] => {
                        field.push(*byte);
                        rest = &rest[2..];
                    }
                    [byte, ..] if *byte == end => {
                        rest = &rest[1..];
                        break;
                    }
                    [byte, ..] => {
                        field.push(*byte);
                        rest = &rest[1..];
                    }
                }
            }
            if end != b' ' {
                rest = rest.strip_prefix(b" ").unwrap_or(rest);
            }
            fields.push(field);
        }
        fields
    }

    #[test]
    fn a_line_has_the_known_forms() {
        let mut line = line(b"/a \"b\\\x01\xff", Some(b"curl"));
        let common =
            r#"::1 - - [06/Nov/1994:08:49:37 +0000] "GET /a \"b\\\x01\xff HTTP/1.1" 000 4"#;
        assert_eq!(write(&line, Form::Common), common);
        let combined = format!(r#"{common} "-" "curl""#);
        assert_eq!(write(&line, Form::Combined), combined);
        line.method = b"";
        line.sent = 0;
        line.status = 200;
        line.peer = b"unix:/a b";
        assert_eq!(
            write(&line, Form::Common),
            r#"unix: - - [06/Nov/1994:08:49:37 +0000] "-" 200 -"#
        );
        for (peer, expected) in [
            ("127.0.0.1:80", "127.0.0.1"),
            ("", "-"),
            ("a b:1", "a\\x20b"),
        ] {
            line.peer = peer.as_bytes();
            let text = write(&line, Form::Common);
            assert_eq!(text.split(' ').next(), Some(expected), "{text}");
        }
    }

    #[test]
    fn json_has_all_that_is_known() {
        let text = write(&line(b"/", None), Form::Json);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "time": "1994-11-06T08:49:37.000005Z", "peer": "[::1]:80", "method": "GET", "target": "/",
            "version": "1.1", "status": 0, "end": "timed_out", "conn_id": u64::MAX, "number": 2, "tls": true,
            "received": 3, "sent": 4, "head_us": 0, "called_us": null, "answered_us": 8, "flushed_us": i64::MAX,
            "acknowledged_us": null, "ended_us": 9, "overdue": true, "referer": null, "user_agent": null,
        });
        assert_eq!(value, expected);
    }

    proptest! {
        #[test]
        fn any_text_is_one_line_and_is_read_back(
            target: Vec<u8>,
            agent: Option<Vec<u8>>,
        ) {
            let line = line(&target, agent.as_deref());
            let text = write(&line, Form::Combined);
            prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
            let fields = read_common(&text);
            prop_assert_eq!(fields.len(), 9, "{}", text);
            prop_assert_eq!(&fields[4], &[&b"GET "[..], &target, b" HTTP/1.1"].concat());
            prop_assert_eq!(&fields[8], agent.as_deref().unwrap_or(b"-"));
            let text = write(&line, Form::Json);
            prop_assert!(!text.contains('\n'));
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(value["target"].as_str().unwrap(), String::from_utf8_lossy(&target));
            let agent = agent.as_deref().map(String::from_utf8_lossy);
            prop_assert_eq!(value["user_agent"].as_str(), agent.as_deref());
        }

        #[test]
        fn strings_are_those_of_another_implementation(text: String) {
            let mut ours = String::new();
            write_json_text(&mut ours, text.as_bytes()).unwrap();
            prop_assert_eq!(ours, serde_json::to_string(&text).unwrap());
        }

        #[test]
        fn dates_are_those_of_another_implementation(seconds in 0..253_402_300_800_i64) {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
            let Time { year, month, day, hour, minute, second, .. } = Time::of(seconds * 1_000_000);
            let month = MONTHS[month - 1];
            let date = format!("{day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT");
            prop_assert_eq!(&date, &fmt_http_date(time)[5..]);
        }

        #[test]
        fn any_time_is_a_date(us: i64) {
            let time = Time::of(us);
            prop_assert!((1..=12).contains(&time.month) && (1..=31).contains(&time.day), "{time:?}");
        }
    }
}
