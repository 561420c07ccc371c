//! Sizes and times as people write them: `"10GiB"`, `"250ms"`.
//!
//! Place: called by `resolve` for every size and time of the configuration, and by the command line for
//! durations. Pure; knows nothing of keys or ranges. Failure: a sentence that says what is wrong with the text,
//! to which the caller adds the place and what is allowed.
//!
//! Absent on purpose: `K`, `M`, `G` (1000 or 1024?), months and years (how long?), and times without a unit.

use std::time::Duration;

/// Units of sizes, largest first, binary before decimal so that printing prefers them.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

/// Units of times in nanoseconds, largest first.
const TIME_UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads a size in bytes: a plain number, or a number with `B`, `KiB` to `PiB`, `KB` to `TB`, in any case.
///
/// # Errors
/// A sentence without the value, for example "no such unit".
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return scaled(number, 1).ok_or_else(|| "not a whole number of bytes below 16 EiB".into());
    }
    let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
        let hint = match unit.to_ascii_lowercase().as_str() {
            "k" | "ki" => "; write KiB (1024) or KB (1000)",
            "m" | "mi" => "; write MiB (1024 squared) or MB (1000 squared)",
            "g" | "gi" => "; write GiB (1024 cubed) or GB (1000 cubed)",
            _ => "; units are B, KiB, MiB, GiB, TiB, KB, MB, GB, TB",
        };
        return Err(format!("no such unit{hint}"));
    };
    scaled(number, *factor).ok_or_else(|| "not a whole number of bytes below 16 EiB".into())
}

/// Reads a time: a number with `ns`, `us`, `ms`, `s`, `m`, `h` or `d`; a lone `0` needs no unit.
///
/// # Errors
/// A sentence without the value, for example "the unit is missing".
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return match scaled(number, 1) {
            Some(0) => Ok(Duration::ZERO),
            _ => Err("the unit is missing; units are us, ms, s, m, h, d".into()),
        };
    }
    let Some((_, factor)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err("no such unit; units are us, ms, s, m, h, d".into());
    };
    scaled(number, *factor).map(Duration::from_nanos).ok_or_else(|| "too long, or finer than a nanosecond".into())
}

/// The shortest exact form: `10GiB`, `1023KiB`, `700B`. [`parse_bytes`] reads it back.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{bytes}B"), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// The shortest exact form: `250ms`, `10s`, `5m`. [`parse_time`] reads it back.
#[must_use]
pub fn show_time(time: Duration) -> String {
    let nanos = time.as_nanos();
    let unit = TIME_UNITS.iter().find(|(_, factor)| nanos >= u128::from(*factor) && nanos.is_multiple_of(u128::from(*factor)));
    unit.map_or_else(|| "0ms".into(), |(name, factor)| format!("{}{name}", nanos / u128::from(*factor)))
}

/// `"1.5 GiB"` into `("1.5", "GiB")`.
fn split(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("does not begin with a number".into());
    }
    Ok((number, unit.trim_start()))
}

/// `number * factor`, if that is whole and fits. Decimal arithmetic, so that `0.1s` is 100 ms and nothing else.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let digits: String = number.chars().filter(|c| *c != '_').collect();
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    if whole.len() > 20 || fraction.len() > 12 || (digits.contains('.') && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let denominator = 10u128.pow(fraction.len() as u32);
    let numerator: u128 = format!("{whole}{fraction}").parse().ok()?;
    let product = numerator.checked_mul(u128::from(factor))?;
    if product % denominator != 0 {
        return None;
    }
    u64::try_from(product / denominator).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units_and_plain() {
        for (text, bytes) in [
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("64mib", 64 << 20),
            ("1.5KiB", 1536),
            ("10GB", 10_000_000_000),
            ("1_000", 1000),
            ("0", 0),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_size_that_could_mean_two_things_is_refused_with_both_spellings() {
        assert!(parse_bytes("10G").unwrap_err().contains("GiB (1024 cubed) or GB (1000 cubed)"));
        assert!(parse_bytes("1.0001KiB").unwrap_err().contains("whole number"));
        for text in ["", "GiB", "-1", "1.KiB", "1.2.3KiB", "99999999999999999999999GiB", "20000000TiB", "1e9"] {
            parse_bytes(text).expect_err(text);
        }
    }

    #[test]
    fn times_are_read_exactly() {
        for (text, nanos) in [
            ("250ms", 250_000_000),
            ("0.1s", 100_000_000),
            ("10s", 10_000_000_000),
            ("0", 0),
            ("5m", 300_000_000_000),
            ("20us", 20_000),
        ] {
            assert_eq!(parse_time(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        assert!(parse_time("50").unwrap_err().contains("unit is missing"));
        for text in ["", "ms", "1 fortnight", "-1s", "0.1ns", "99999999999999d"] {
            parse_time(text).expect_err(text);
        }
    }

    #[test]
    fn what_is_shown_is_read_back_the_same() {
        for bytes in [0, 1, 1000, 1023, 1024, 1536, 10 << 30, (5 << 20) - 1024, u64::MAX] {
            assert_eq!(parse_bytes(&show_bytes(bytes)), Ok(bytes), "{}", show_bytes(bytes));
        }
        for millis in [0, 1, 50, 1500, 60_000, 300_000, 3_600_000] {
            let time = Duration::from_millis(millis);
            assert_eq!(parse_time(&show_time(time)), Ok(time), "{}", show_time(time));
        }
        assert_eq!(show_bytes((5 << 20) - 1024), "5119KiB");
        assert_eq!(show_time(Duration::from_millis(1500)), "1500ms");
    }
}
