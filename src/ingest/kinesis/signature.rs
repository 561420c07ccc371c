//! AWS Signature Version 4 of a request, checked: who asks, and whether that is true.
//!
//! Place: the route asks where a source lists access keys; where none does, nothing here is called. Only the `Authorization`
//! header is looked at, as every SDK sends it. The region of the scope may be any: the agent is in none.
//!
//! *CONSTANT-TIME*: signatures are compared in a time that does not depend on them. What must be signed at least: `host`,
//! `x-amz-date` and `x-amz-target`, so that no part of a good request is of use for another. A signature is good for 15
//! minutes on either side of the agent's clock, as with the service.
//!
//! Failure: the service's codes. Absent on purpose: signatures in the query, SigV4a, session tokens' own meaning (a token that
//! is sent is signed like any header).

use aws_lc_rs::{constant_time, digest, hmac};

use super::Failure;

/// What begins the header.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The service in the scope.
const SERVICE: &str = "kinesis";

/// How far a client's clock may be off, either way.
const SKEW_SECONDS: i64 = 15 * 60;

/// Headers that must be signed. Over HTTP/2 some SDKs sign `:authority`, which is what names the host there.
const SIGNED_AT_LEAST: [&[&str]; 3] = [&["host", ":authority"], &["x-amz-date"], &["x-amz-target"]];

/// What an `Authorization` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization<'h> {
    /// The access key's id.
    pub key_id: &'h str,
    /// The region in the scope.
    pub region: &'h str,
    scope: &'h str,
    date: &'h str,
    service: &'h str,
    signed_headers: &'h str,
    signature: &'h str,
}

impl<'h> Authorization<'h> {
    /// Takes a header's value apart.
    ///
    /// # Errors
    /// `IncompleteSignatureException`.
    pub fn read(header: &'h str) -> Result<Self, Failure> {
        let incomplete =
            |what: &str| Failure::new("IncompleteSignatureException", format!("Authorization header requires {what}."));
        let fields = header.strip_prefix(ALGORITHM).ok_or_else(|| incomplete("the algorithm AWS4-HMAC-SHA256"))?;
        let field = |name: &str| {
            let mut all = fields.split([',', ' ']).filter_map(|field| field.split_once('='));
            all.find(|(held, _)| *held == name).map(|(_, value)| value).filter(|value| !value.is_empty())
        };
        let credential = field("Credential").ok_or_else(|| incomplete("'Credential' parameter"))?;
        let signed_headers = field("SignedHeaders").ok_or_else(|| incomplete("'SignedHeaders' parameter"))?;
        let signature = field("Signature").ok_or_else(|| incomplete("'Signature' parameter"))?;
        let (key_id, scope) = credential.split_once('/').ok_or_else(|| incomplete("a scope in 'Credential'"))?;
        match scope.split('/').collect::<Vec<_>>()[..] {
            [date, region, service, "aws4_request"] => {
                Ok(Self { key_id, region, scope, date, service, signed_headers, signature })
            }
            _ => Err(incomplete("a scope of date, region, service and aws4_request in 'Credential'")),
        }
    }
}

/// What a signature covers.
#[derive(Debug)]
pub struct Signed<'r, H> {
    /// HTTP method.
    pub method: &'r str,
    /// Path as sent.
    pub path: &'r str,
    /// Query as sent, without the question mark.
    pub query: &'r str,
    /// All values of a header by its name in small letters, joined by commas; `None` where it was not sent.
    pub header: H,
    /// The body as sent.
    pub body: &'r [u8],
}

/// Checks a signature with the secret of its access key, at `now_seconds` since 1970 UTC.
///
/// # Errors
/// `InvalidSignatureException`, `IncompleteSignatureException`.
pub fn verify<H>(auth: &Authorization<'_>, secret: &str, signed: &Signed<'_, H>, now_seconds: i64) -> Result<(), Failure>
where
    H: Fn(&str) -> Option<Vec<u8>>,
{
    let invalid = |text: String| Err(Failure::new("InvalidSignatureException", text));
    if auth.service != SERVICE {
        return invalid(format!("Credential should be scoped to correct service: '{SERVICE}'."));
    }
    let names: Vec<&str> = auth.signed_headers.split(';').collect();
    if let Some(missing) = SIGNED_AT_LEAST.iter().find(|any| !any.iter().any(|name| names.contains(name))) {
        return invalid(format!("'{}' must be a 'SignedHeader' in the AWS Authorization.", missing[0]));
    }
    let date = (signed.header)("x-amz-date").and_then(|value| String::from_utf8(value).ok()).unwrap_or_default();
    let Some(at_seconds) = seconds_of(&date) else {
        return Err(Failure::new("IncompleteSignatureException", "Date must be in ISO-8601 'basic format'."));
    };
    if !date.starts_with(auth.date) {
        return invalid("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP.".to_owned());
    }
    // What SDKs read to set their clocks right is the answer's Date header.
    if at_seconds < now_seconds - SKEW_SECONDS {
        return invalid("Signature expired: its date is more than 15 min. earlier than the agent's clock.".to_owned());
    }
    if at_seconds > now_seconds + SKEW_SECONDS {
        return invalid("Signature not yet current: its date is more than 15 min. later than the agent's clock.".to_owned());
    }
    let canonical = canonical(signed, &names);
    let to_sign = format!("{ALGORITHM}\n{date}\n{}\n{}", auth.scope, hex(digest::digest(&digest::SHA256, &canonical).as_ref()));
    let mut key = hmac_sha256(format!("AWS4{secret}").as_bytes(), auth.date.as_bytes());
    for part in [auth.region, auth.service, "aws4_request"] {
        key = hmac_sha256(key.as_ref(), part.as_bytes());
    }
    let wanted = hex(hmac_sha256(key.as_ref(), to_sign.as_bytes()).as_ref());
    match constant_time::verify_slices_are_equal(wanted.as_bytes(), auth.signature.as_bytes()) {
        Ok(()) => Ok(()),
        Err(_) => invalid(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key \
             and signing method. Consult the service documentation for details."
                .to_owned(),
        ),
    }
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        text.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
        text
    })
}

/// The canonical request.
fn canonical<H: Fn(&str) -> Option<Vec<u8>>>(signed: &Signed<'_, H>, names: &[&str]) -> Vec<u8> {
    let mut query: Vec<&str> = signed.query.split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    let mut canonical = format!("{}\n{}\n{}\n", signed.method, signed.path, query.join("&")).into_bytes();
    for name in names {
        canonical.extend_from_slice(name.as_bytes());
        canonical.push(b':');
        let value = (signed.header)(name).unwrap_or_default();
        // Runs of spaces count as one.
        let words = value.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        for (at, word) in words.enumerate() {
            if at > 0 {
                canonical.push(b' ');
            }
            canonical.extend_from_slice(word);
        }
        canonical.push(b'\n');
    }
    canonical.push(b'\n');
    canonical.extend_from_slice(names.join(";").as_bytes());
    canonical.push(b'\n');
    canonical.extend_from_slice(hex(digest::digest(&digest::SHA256, signed.body).as_ref()).as_bytes());
    canonical
}

/// `20261120T191945Z` in seconds since 1970.
fn seconds_of(date: &str) -> Option<i64> {
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok().filter(|_| date.len() == 16)?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, UNIX_EPOCH};

    use aws_credential_types::Credentials;
    use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
    use aws_sigv4::sign::v4;

    use super::*;

    /// 2026-11-20 19:19:45 UTC.
    const NOW: i64 = 1_795_202_385;
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn headers() -> BTreeMap<String, String> {
        BTreeMap::from(
            [
                ("host", "127.0.0.1:4710"),
                ("content-type", "application/x-amz-json-1.1"),
                ("x-amz-target", "Kinesis_20131202.PutRecords"),
                ("x-odd", "  a   b  "),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        )
    }

    /// Signs as the Rust SDK does; gives all headers.
    fn signed_by_the_sdk(body: &[u8], at: i64, service: &str) -> BTreeMap<String, String> {
        let mut headers = headers();
        let identity = Credentials::new("AKIDEXAMPLE", SECRET, None, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region("eu-west-1")
            .name(service)
            .time(UNIX_EPOCH + Duration::from_secs(at as u64))
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let given = headers.iter().map(|(name, value)| (&name[..], &value[..])).collect::<Vec<_>>();
        let request =
            SignableRequest::new("POST", "http://127.0.0.1:4710/", given.into_iter(), SignableBody::Bytes(body)).unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        for (name, value) in instructions.headers() {
            headers.insert(name.to_owned(), value.to_owned());
        }
        headers
    }

    fn check(headers: &BTreeMap<String, String>, body: &[u8], secret: &str, now: i64) -> Result<(), Failure> {
        let header = |name: &str| headers.get(name).map(|value| value.clone().into_bytes());
        let signed = Signed { method: "POST", path: "/", query: "", header, body };
        verify(&Authorization::read(&headers["authorization"])?, secret, &signed, now)
    }

    #[test]
    fn what_the_sdk_signs_is_good_and_nothing_that_differs_is() {
        let good = signed_by_the_sdk(b"{}", NOW, "kinesis");
        assert_eq!(check(&good, b"{}", SECRET, NOW), Ok(()));
        let code = |result: Result<(), Failure>| result.unwrap_err().code;
        assert_eq!(code(check(&good, b"{ }", SECRET, NOW)), "InvalidSignatureException");
        assert_eq!(code(check(&good, b"{}", "another", NOW)), "InvalidSignatureException");
        for (name, value) in [
            ("x-amz-target", "Kinesis_20131202.PutRecord"),
            ("host", "elsewhere"),
            ("x-odd", "ab"),
            ("x-amz-date", "20261120T191946Z"),
        ] {
            let mut changed = good.clone();
            changed.insert(name.to_owned(), value.to_owned());
            assert_eq!(code(check(&changed, b"{}", SECRET, NOW)), "InvalidSignatureException", "{name}");
        }
        let other = signed_by_the_sdk(b"{}", NOW, "dynamodb");
        assert!(check(&other, b"{}", SECRET, NOW).unwrap_err().text.contains("correct service"));
    }

    #[test]
    fn a_clock_may_be_off_by_15_minutes() {
        for (skew, is_good) in [(-901, false), (-900, true), (0, true), (900, true), (901, false)] {
            let signed = signed_by_the_sdk(b"", NOW + skew, "kinesis");
            assert_eq!(check(&signed, b"", SECRET, NOW).is_ok(), is_good, "{skew}");
        }
    }

    #[test]
    fn a_request_whose_operation_is_not_signed_is_refused() {
        let mut signed = signed_by_the_sdk(b"", NOW, "kinesis");
        let header = signed["authorization"].replace(";x-amz-target", "");
        signed.insert("authorization".to_owned(), header);
        assert!(check(&signed, b"", SECRET, NOW).unwrap_err().text.contains("x-amz-target"));
    }

    #[test]
    fn headers_that_say_too_little_are_incomplete() {
        for header in [
            "",
            "Bearer x",
            "AWS4-HMAC-SHA256 Credential=a/20261120/r/kinesis/aws4_request, SignedHeaders=host",
            "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=b",
            "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=b",
            "AWS4-ECDSA-P256-SHA256 Credential=a/20261120/kinesis/aws4_request, SignedHeaders=host, Signature=b",
        ] {
            assert_eq!(Authorization::read(header).unwrap_err().code, "IncompleteSignatureException", "{header}");
        }
        // As some SDKs write it, without a space.
        let read =
            Authorization::read("AWS4-HMAC-SHA256 Credential=a/20261120/r/kinesis/aws4_request,SignedHeaders=host,Signature=b");
        assert_eq!(read.map(|auth| auth.region), Ok("r"));
    }

    #[test]
    fn dates_are_of_one_form() {
        assert_eq!(seconds_of("20261120T191945Z"), Some(NOW));
        for date in ["", "20261120", "20261120T191945", "2026-11-20T19:19:45Z", "20261320T191945Z", "20261120T191945ZZ"] {
            assert_eq!(seconds_of(date), None, "{date}");
        }
    }
}
