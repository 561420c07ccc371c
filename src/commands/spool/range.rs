//! Where a range begins or ends: a position, a moment, or how long ago; and the events it selects.
//!
//! Place: the command line reads a [`Bound`], `cat` and `replay` make a [`Select`] of two. Pure.

use crate::config::parse_time;
use crate::event::Position;
use crate::spool::inspect::Select;

/// One end of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A position.
    Position(u64),
    /// Wall clock, ms since 1970 UTC.
    Moment(u64),
    /// So many ms before now.
    Ago(u64),
}

impl Bound {
    fn moment(self, now_ms: u64) -> Option<u64> {
        match self {
            Self::Position(_) => None,
            Self::Moment(ms) => Some(ms),
            Self::Ago(ms) => Some(now_ms.saturating_sub(ms)),
        }
    }
}

/// Reads one end of a range from the command line.
///
/// # Errors
/// What is allowed.
pub fn parse_bound(text: &str) -> Result<Bound, String> {
    const ALLOWED: &str = "use a position (120000), a time with its zone (2026-11-20T10:00:00Z, 2026-11-20T11:00:00+01:00), or how long ago (90s, 2h, 3d)";
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map(Bound::Position).map_err(|_| format!("no position is that large; {ALLOWED}"));
    }
    if let Ok(ago) = parse_time(text) {
        return u64::try_from(ago.as_millis()).map(Bound::Ago).map_err(|_| ALLOWED.to_owned());
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(moment) => {
            u64::try_from(moment.as_millisecond()).map(Bound::Moment).map_err(|_| format!("that is before 1970; {ALLOWED}"))
        }
        Err(_) => Err(ALLOWED.to_owned()),
    }
}

/// The events between two ends, with a key if one is given.
///
/// # Errors
/// When the end is not behind the beginning.
pub fn select(from: Option<Bound>, to: Option<Bound>, key: Option<String>, now_ms: u64) -> Result<Select, String> {
    let mut select = Select { key, ..Select::default() };
    if let Some(Bound::Position(position)) = from {
        select.from = Position(position);
    }
    if let Some(Bound::Position(position)) = to {
        select.to = Position(position);
    }
    select.from_ms = from.and_then(|bound| bound.moment(now_ms));
    select.to_ms = to.and_then(|bound| bound.moment(now_ms));
    let empty = select.from >= select.to || matches!((select.from_ms, select.to_ms), (Some(from), Some(to)) if from >= to);
    if empty {
        return Err("the range is empty: --to must be after --from, and is not included itself".to_owned());
    }
    Ok(select)
}

/// A moment for people and programs, such as 2026-11-20T10:00:00.123Z.
#[must_use]
pub fn show_ms(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| "?".to_owned(), |moment| format!("{moment:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_position_a_moment_or_how_long_ago() {
        assert_eq!(parse_bound("0"), Ok(Bound::Position(0)));
        assert_eq!(parse_bound("120000"), Ok(Bound::Position(120_000)));
        assert_eq!(parse_bound("2h"), Ok(Bound::Ago(7_200_000)));
        assert_eq!(parse_bound("1970-01-01T00:00:01Z"), Ok(Bound::Moment(1_000)));
        assert_eq!(parse_bound("1970-01-01T02:00:01.5+02:00"), Ok(Bound::Moment(1_500)));
        for bad in ["", "-1", "yesterday", "2026-11-20", "2026-11-20T10:00:00", "1969-01-01T00:00:00Z", "99999999999999999999"] {
            assert!(parse_bound(bad).unwrap_err().contains("how long ago (90s, 2h, 3d)"), "{bad}");
        }
    }

    #[test]
    fn a_range_whose_end_is_not_behind_its_beginning_is_refused() {
        let now = 10_000_000;
        let made = select(Some(Bound::Ago(1_000)), Some(Bound::Position(9)), Some("k".into()), now).unwrap();
        assert_eq!((made.from, made.to, made.from_ms, made.to_ms), (Position(0), Position(9), Some(9_999_000), None));
        assert!(select(Some(Bound::Position(9)), Some(Bound::Position(9)), None, now).is_err());
        assert!(select(Some(Bound::Ago(5)), Some(Bound::Ago(6)), None, now).is_err());
    }

    #[test]
    fn a_moment_is_shown_as_it_is_read() {
        assert_eq!(show_ms(1_500), "1970-01-01T00:00:01.500Z");
        assert_eq!(parse_bound(&show_ms(1_763_632_800_123)), Ok(Bound::Moment(1_763_632_800_123)));
    }
}
