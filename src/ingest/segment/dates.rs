//! Times as Segment's libraries read and write them. Pure.
//!
//! Place: `message` asks which strings of a message are dates (to rewrite them as Segment's destination does) and what time its
//! time fields tell. The rules are those of the npm packages `@segment/isodate` and `new-date`, oddities included, because what
//! consumers have in their tables was written by them: a year below 100 is one of the last century, month 13 is next January,
//! the fraction is cut after three digits, `T` and the separators within date and time may be missing or not in any mix, and an
//! offset after a space instead of a `T` does not count.
//!
//! Absent on purpose: time zones by name, RFC 2822 dates, leap seconds.

/// Numbers below this are seconds since 1970, from it on milliseconds.
const SECONDS_MAX: f64 = 31_557_600_000.0;

/// A JavaScript date reaches so far in both directions, milliseconds.
const MS_MAX: f64 = 8.64e15;

/// A string with at least so many bytes can be a date that is rewritten, and its first character says whether it may be.
#[inline]
pub fn may_be_date(content: &[u8]) -> bool {
    matches!(content, [b'0'..=b'9' | b'\\', _, _, _, _, _, _, _, _, _, ..])
}

/// Writes the string `content` (without its quotes, escapes as they are) as Segment does if it is a date with year, month and
/// day; false if it is none.
pub fn rewrite(content: &[u8], out: &mut Vec<u8>) -> bool {
    let ms = if content.contains(&b'\\') { plain(content).and_then(|plain| parse_whole(&plain)) } else { parse_whole(content) };
    let Some(ms) = ms else { return false };
    out.push(b'"');
    write(ms, out);
    out.push(b'"');
    true
}

/// The characters of a string with escapes, if they could be those of a date: ASCII, and none that no date has.
fn plain(content: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(32);
    let mut rest = content;
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'\\', [b'u', b'0', b'0', high, low, after @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?, after)
            }
            (b'\\', _) => return None,
            (byte, after) => (*byte, after),
        };
        if !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b':' | b'.' | b',' | b' ' | b'T' | b'Z') {
            return None;
        }
        plain.push(byte);
        rest = after;
    }
    Some(plain)
}

/// A date that has a day, and dashes before month and day.
fn parse_whole(text: &[u8]) -> Option<i64> {
    let [a, b, c, d, b'-', e, f, b'-', g, h, ..] = text else { return None };
    let digits = [a, b, c, d, e, f, g, h].into_iter().all(u8::is_ascii_digit);
    if digits { parse(text, false) } else { None }
}

/// Milliseconds since 1970 of a text in ISO form, from the year alone to fractions of seconds and an offset.
/// `spaced_offset`: an offset counts after a space too.
pub fn parse(text: &[u8], spaced_offset: bool) -> Option<i64> {
    let mut text = Text(text);
    let year = text.digits(4)?;
    let (mut month, mut day) = (0, 0);
    if text.separated(b'-') {
        month = text.digits(2)?;
        if text.separated(b'-') {
            day = text.digits(2)?;
        }
    }
    let (mut hours, mut minutes, mut seconds, mut ms) = (0, 0, 0, 0);
    let spaced = text.0.first() == Some(&b' ');
    if spaced || text.0.first() == Some(&b'T') {
        text.0 = &text.0[1..];
        hours = text.digits(2)?;
        text.pass(b':');
        minutes = text.digits(2)?;
        if text.separated(b':') {
            seconds = text.digits(2)?;
            if text.pass(b'.') || text.pass(b',') {
                ms = text.fraction()?;
            }
        }
        match text.0.first() {
            Some(b'Z') => text.0 = &text.0[1..],
            Some(sign @ (b'+' | b'-')) => {
                text.0 = &text.0[1..];
                let mut offset = 60 * text.digits(2)?;
                if text.separated(b':') {
                    offset += text.digits(2)?;
                }
                if !spaced || spaced_offset {
                    minutes += if *sign == b'+' { -offset } else { offset };
                }
            }
            _ => {}
        }
    }
    if !text.0.is_empty() {
        return None;
    }
    // A month or day of 0 reads as 1, and two digits of a year as of the 20th century.
    let month = month.max(1) - 1;
    let century = if year < 100 { 1900 } else { 0 };
    let year = century + year + month / 12;
    let days = days_of(year, month % 12) + day.max(1) - 1;
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000 + ms)
}

/// What is left of a text.
struct Text<'t>(&'t [u8]);

impl Text<'_> {
    fn pass(&mut self, byte: u8) -> bool {
        let is = self.0.first() == Some(&byte);
        if is {
            self.0 = &self.0[1..];
        }
        is
    }

    /// More digits come, after `byte` or at once; passes over `byte`.
    fn separated(&mut self, byte: u8) -> bool {
        self.pass(byte) || self.0.first().is_some_and(u8::is_ascii_digit)
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| 10 * number + i64::from(digit - b'0')))
    }

    /// Milliseconds out of one digit or more.
    fn fraction(&mut self) -> Option<i64> {
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        let digit = |at: usize| digits.get(at).map_or(0, |digit| i64::from(digit - b'0'));
        (count > 0).then(|| 100 * digit(0) + 10 * digit(1) + digit(2))
    }
}

/// What a time field tells, as the raw JSON value that it is: ISO text, or seconds or milliseconds since 1970 as a number or text.
pub fn of_value(raw: &[u8]) -> Option<i64> {
    match raw {
        [b'"', content @ .., b'"'] => parse(content, true).or_else(|| match content.len() {
            // Ten digits are seconds until the year 2286, thirteen milliseconds.
            10 | 13 if content.iter().all(u8::is_ascii_digit) => of_value(content),
            _ => None,
        }),
        [b'-' | b'0'..=b'9', ..] => {
            let number: f64 = std::str::from_utf8(raw).ok()?.parse().ok()?;
            let ms = if number < SECONDS_MAX { number * 1000.0 } else { number };
            (ms.abs() <= MS_MAX).then_some(ms as i64)
        }
        _ => None,
    }
}

/// Days from 1970-01-01 to the first of a month (from 0) of the proleptic Gregorian calendar.
fn days_of(year: i64, month: i64) -> i64 {
    // Years that begin with March have their leap day last.
    let (year, month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 - 719_468
}

/// Appends a time as `YYYY-MM-DDTHH:MM:SS.mmmZ`, with six digits and a sign for years that four cannot tell: at most 27 bytes.
pub fn write(ms: i64, out: &mut Vec<u8>) {
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // From the first of March of the year 0.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month < 3);
    if (0..=9999).contains(&year) {
        digits(year, 4, out);
    } else {
        out.push(if year < 0 { b'-' } else { b'+' });
        digits(year.abs(), 6, out);
    }
    for (before, number, count) in [
        (b'-', month, 2),
        (b'-', day, 2),
        (b'T', of_day / 3_600_000, 2),
        (b':', of_day / 60_000 % 60, 2),
        (b':', of_day / 1000 % 60, 2),
        (b'.', of_day % 1000, 3),
    ] {
        out.push(before);
        digits(number, count, out);
    }
    out.push(b'Z');
}

fn digits(number: i64, count: usize, out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + count, b'0');
    let mut rest = number;
    for place in out[at..].iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rewritten(text: &str) -> Option<String> {
        let mut out = Vec::new();
        (may_be_date(text.as_bytes()) && rewrite(text.as_bytes(), &mut out)).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn dates_are_rewritten_as_node_with_segments_library_printed_them() {
        // Each right side is what JSON.stringify(new Facade({x: LEFT}).json()) of @segment/facade 3.4.10 had for x.
        for (text, iso) in [
            ("2012-12-02", "2012-12-02T00:00:00.000Z"),
            ("2012-12-02T00:30:08.276Z", "2012-12-02T00:30:08.276Z"),
            ("2012-12-02T02:30:08+02:00", "2012-12-02T00:30:08.000Z"),
            ("2012-12-02T02:30:08-0230", "2012-12-02T05:00:08.000Z"),
            ("2012-12-02T02:30+02", "2012-12-02T00:30:00.000Z"),
            ("2012-12-02 02:30:08+02:00", "2012-12-02T02:30:08.000Z"),
            ("2012-12-02T00:30:08,9999999Z", "2012-12-02T00:30:08.999Z"),
            ("2012-12-02T00:30:08.5", "2012-12-02T00:30:08.500Z"),
            ("2012-12-02T003008", "2012-12-02T00:30:08.000Z"),
            ("2012-13-45T99:99:99", "2013-02-18T04:40:39.000Z"),
            ("2012-00-00", "2012-01-01T00:00:00.000Z"),
            ("0099-12-31", "1999-12-31T00:00:00.000Z"),
            ("0100-02-29", "0100-03-01T00:00:00.000Z"),
            ("9999-99-99", "+010007-06-07T00:00:00.000Z"),
            ("\\u0032012-12-02", "2012-12-02T00:00:00.000Z"),
        ] {
            assert_eq!(rewritten(text), Some(format!("\"{iso}\"")), "{text}");
        }
    }

    #[test]
    fn what_is_no_whole_date_stays() {
        for text in [
            "2012",
            "2012-12",
            "20121202",
            "20121202T003008Z",
            "2012-12-2",
            "2012-12-02T",
            "2012-12-02T1",
            "2012-12-02t00:30",
            "2012-12-02T00:30:08.",
            "2012-12-02T00:30:08ZZ",
            "2012-12-02 ",
            "2012-12-02T00:30Z+02",
            "2012-12-02\\n",
            "x2012-12-02",
            "２012-12-02",
            "2012-12-02T00:30:08+2",
        ] {
            assert_eq!(rewritten(text), None, "{text}");
        }
    }

    #[test]
    fn time_fields_are_iso_seconds_or_milliseconds() {
        let ms = |raw: &str| of_value(raw.as_bytes());
        for raw in [
            "1354408208",
            "1354408208000",
            "\"1354408208\"",
            "\"1354408208000\"",
            "\"2012-12-02T00:30:08Z\"",
            "\"20121202T003008Z\"",
        ] {
            assert_eq!(ms(raw), Some(1_354_408_208_000), "{raw}");
        }
        assert_eq!(ms("\"2012-12-02 02:30:08+02:00\""), Some(1_354_408_208_000));
        assert_eq!(ms("1354408208.5"), Some(1_354_408_208_500));
        for raw in ["null", "\"\"", "\"yesterday\"", "1e300", "true", "{}", "\"135440820800\""] {
            assert_eq!(ms(raw), None, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(ms in -62_000_000_000_000_i64..253_402_300_799_999) {
            let mut out = Vec::new();
            write(ms, &mut out);
            // Years below 100 are read as of the last century.
            prop_assume!(out[0] != b'-' && !out.starts_with(b"00"));
            prop_assert_eq!(parse(&out, false), Some(ms));
            let theirs = jiff::Timestamp::from_millisecond(ms).unwrap();
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{theirs:.3}"));
        }

        #[test]
        fn no_text_breaks_it(text in "[0-9TZ:., +\\\\u-]{0,40}|\\PC{0,12}") {
            let mut out = Vec::new();
            rewrite(text.as_bytes(), &mut out);
            parse(text.as_bytes(), true);
            of_value(text.as_bytes());
        }
    }
}
