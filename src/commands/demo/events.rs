//! The events of the demo: Segment-style calls of many users, each made from nothing but its user and its number.
//!
//! Pure. Because an event can be made again from its two numbers, the check at the end compares every byte without
//! having kept any. A user's first call is `identify`; then come tracks, pages, groups and more traits. One user in
//! eight is not signed in and has an `anonymousId` only, so that the second pointer of the key rule is used too.

use std::fmt::Write as _;

use crate::host::mix64;

/// When the story begins: 2026-11-20 08:00 UTC, milliseconds since 1970.
const BEGINS_MS: i64 = 1_795_161_600_000;

/// Time between two events of a user, milliseconds.
const STEP_MS: i64 = 7_300;

const PAGES: [&str; 6] = ["Home", "Pricing", "Docs", "Blog", "Product", "Checkout"];
const TRACKS: [&str; 6] =
    ["Product Viewed", "Product Added", "Order Completed", "Article Read", "Search Performed", "Video Played"];
const PLANS: [&str; 3] = ["Free", "Pro", "Pro Annual"];
const COMPANIES: [&str; 4] = ["Initech", "Umbrella", "Hooli", "Globex"];

/// Whether a user has signed in, and so has a `userId`.
const fn signed_in(user: u32) -> bool {
    user % 8 != 7
}

/// The partition key that the agent must find in a user's events.
#[must_use]
pub(super) fn key(user: u32) -> String {
    if signed_in(user) { format!("user-{user:05}") } else { format!("anon-{user:05}") }
}

/// The user that a partition key stands for.
#[must_use]
pub(super) fn user_of_key(key: &[u8]) -> Option<u32> {
    let user = std::str::from_utf8(key).ok()?.get(5..)?.parse().ok()?;
    (self::key(user).as_bytes() == key).then_some(user)
}

/// Writes event `number` of `user`, one line of JSON without its newline.
pub(super) fn write(out: &mut String, user: u32, number: u32) {
    let dice = mix64((u64::from(user) << 32) | u64::from(number));
    let (kind, pick) = (dice % 100, (dice >> 8) as usize);
    let id = if signed_in(user) { "userId" } else { "anonymousId" };
    let key = key(user);
    write!(out, r#"{{"messageId":"demo-{user}-{number}","{id}":"{key}","type":"#).expect(FITS);
    let page = PAGES[pick % PAGES.len()];
    if signed_in(user) && (number == 0 || kind < 6) {
        let plan = PLANS[pick % PLANS.len()];
        write!(
            out,
            r#""identify","traits":{{"seq":{number},"name":"User {user}","email":"{key}@example.com","plan":"{plan}","logins":{}}}"#,
            pick % 97
        )
    } else if signed_in(user) && kind < 10 {
        let company = COMPANIES[pick % COMPANIES.len()];
        write!(
            out,
            r#""group","groupId":"g-{}","traits":{{"seq":{number},"name":"{company}","employees":{}}}"#,
            pick % COMPANIES.len(),
            pick % 900
        )
    } else if kind < 40 {
        let path = page.to_ascii_lowercase();
        write!(
            out,
            r#""page","name":"{page}","properties":{{"seq":{number},"path":"/{path}","url":"https://example.com/{path}","title":"{page} · Example"}}"#
        )
    } else {
        let (event, cents) = (TRACKS[pick % TRACKS.len()], pick % 10_000);
        write!(
            out,
            r#""track","event":"{event}","properties":{{"seq":{number},"sku":"SKU-{:04}","price":{}.{:02},"currency":"EUR","quantity":{}}}"#,
            pick % 5_000,
            cents / 100,
            cents % 100,
            1 + pick % 3
        )
    }
    .expect(FITS);
    let at = jiff::Timestamp::from_millisecond(BEGINS_MS + i64::from(number) * STEP_MS + i64::from(user)).unwrap_or_default();
    write!(
        out,
        r#","context":{{"library":{{"name":"forebay-demo","version":"{}"}},"page":{{"path":"/{}"}}}},"timestamp":"{at:.3}"}}"#,
        env!("CARGO_PKG_VERSION"),
        page.to_ascii_lowercase()
    )
    .expect(FITS);
}

const FITS: &str = "a String takes all";

/// The `seq` that an event carries in its properties or traits.
#[must_use]
pub(super) fn number_of(event: &[u8]) -> Option<u32> {
    let at = memchr::memmem::find(event, br#""seq":"#)? + 6;
    let digits = event[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&event[at..at + digits]).ok()?.parse().ok()
}

/// How many events each of `users` users sends, `events` in all.
#[must_use]
pub(super) fn events_of(user: u32, users: u32, events: u64) -> u32 {
    let share = events / u64::from(users) + u64::from(u64::from(user) < events % u64::from(users));
    u32::try_from(share).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(user: u32, number: u32) -> String {
        let mut out = String::new();
        write(&mut out, user, number);
        out
    }

    #[test]
    fn each_event_is_json_with_its_key_and_number_and_no_newline() {
        let mut kinds = std::collections::BTreeSet::new();
        for user in 0..40 {
            for number in 0..40 {
                let text = event(user, number);
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                let id = value.get("userId").or_else(|| value.get("anonymousId")).unwrap();
                assert_eq!(id, &serde_json::Value::from(key(user)));
                let body = value.get("properties").or_else(|| value.get("traits")).unwrap();
                assert_eq!(body["seq"], number);
                assert_eq!(number_of(text.as_bytes()), Some(number));
                assert!(!text.contains('\n'));
                assert!(value["timestamp"].as_str().unwrap().ends_with('Z'), "{text}");
                kinds.insert(value["type"].as_str().unwrap().to_owned());
            }
        }
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["group", "identify", "page", "track"]);
    }

    #[test]
    fn an_event_is_the_same_each_time_and_no_two_are_alike() {
        assert_eq!(event(3, 4), event(3, 4));
        assert_ne!(event(3, 4), event(3, 5));
        assert_ne!(event(3, 4), event(4, 4));
    }

    #[test]
    fn keys_lead_back_to_their_users_and_nothing_else_does() {
        for user in [0, 7, 15, 99_999, 123_456] {
            assert_eq!(user_of_key(key(user).as_bytes()), Some(user));
        }
        for odd in ["", "user-", "user-7", "anon-00001", "user-00007", "user-+0001", "other-00001"] {
            assert_eq!(user_of_key(odd.as_bytes()), None, "{odd}");
        }
        assert_eq!(user_of_key(&[0xff; 10]), None);
    }

    #[test]
    fn the_shares_of_the_users_add_up() {
        for (users, events) in [(1, 1), (400, 50_000), (7, 3), (400, 50_001)] {
            let sum: u64 = (0..users).map(|user| u64::from(events_of(user, users, events))).sum();
            assert_eq!(sum, events);
        }
    }
}
