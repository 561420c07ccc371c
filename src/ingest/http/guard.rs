//! Who may ask: `Host` and `Origin`. Pure.
//!
//! A web page that somebody on this machine looks at can send requests to loopback ports, under its own origin,
//! or, by rebinding a DNS name, under a host name of its own. So `Host` must be a loopback name or a listed one,
//! and a request that carries `Origin` at all comes from a browser and must be listed.

use std::net::IpAddr;

use hyper::Uri;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, HOST, HeaderMap, HeaderValue,
    ORIGIN, VARY,
};

use super::HttpOptions;
use super::answer::{Answer, Problem, empty};

/// The browser's origin, if there is one and it is allowed.
///
/// # Errors
/// 421 for a foreign host, 403 for a foreign origin.
pub fn check(uri: &Uri, headers: &HeaderMap, options: &HttpOptions) -> Result<Option<HeaderValue>, Problem> {
    let foreign = || {
        Problem::misdirected("Host must be a loopback name (localhost, 127.0.0.1, [::1]) or one that listen.allowed_hosts names")
    };
    // HTTP/2 names the host in the URI, HTTP/1.1 in the header; a request may carry both, and no good one neither.
    let named = uri.authority().map(|authority| authority.as_str());
    let mut hosts = headers.get_all(HOST).iter().map(HeaderValue::to_str).peekable();
    if named.is_none() && hosts.peek().is_none() {
        return Err(foreign());
    }
    let own = |host: &str| is_own(host, &options.allowed_hosts);
    if named.is_some_and(|host| !own(host)) || hosts.any(|host| !host.is_ok_and(own)) {
        return Err(foreign());
    }
    match headers.get(ORIGIN) {
        None => Ok(None),
        Some(origin) => {
            let listed = |allowed: &String| allowed.trim_end_matches('/').as_bytes().eq_ignore_ascii_case(origin.as_bytes());
            match options.allowed_origins.iter().any(listed) {
                true => Ok(Some(origin.clone())),
                false => {
                    Err(Problem::forbidden("requests of web pages are refused, unless listen.allowed_origins names their origin"))
                }
            }
        }
    }
}

/// The host, with or without port, is a loopback name or listed.
fn is_own(host: &str, allowed: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || allowed.iter().any(|own| own.eq_ignore_ascii_case(name) || own.eq_ignore_ascii_case(host))
}

/// Lets a browser of an allowed origin read the answer.
pub fn allow(origin: HeaderValue, answer: &mut Answer) {
    answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Origin"));
}

/// What a browser asks before it sends.
pub fn preflight() -> Answer {
    let mut answer = empty();
    let headers = answer.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Authorization, Content-Encoding, Content-Type, X-Api-Key, X-Partition-Key"),
    );
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_listed_hosts_are_ours() {
        let allowed = ["agent.internal".to_owned()];
        for host in ["localhost", "LOCALHOST:4710", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:4710", "agent.internal:1"] {
            assert!(is_own(host, &allowed), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "[::2]", "evil:127.0.0.1"] {
            assert!(!is_own(host, &allowed), "{host}");
        }
    }

    #[test]
    fn every_host_that_a_request_names_must_be_ours() {
        let options = HttpOptions::default();
        let with = |host: &str| HeaderMap::from_iter([(HOST, HeaderValue::from_str(host).unwrap())]);
        let check = |uri: &'static str, headers: &HeaderMap| check(&Uri::from_static(uri), headers, &options).is_ok();
        assert!(check("/ingest", &with("localhost")));
        assert!(!check("/ingest", &HeaderMap::new()));
        assert!(!check("/ingest", &with("evil.example")));
        assert!(check("http://localhost/ingest", &HeaderMap::new()));
        assert!(!check("http://evil.example/ingest", &with("localhost")));
        assert!(!check("http://localhost/ingest", &with("evil.example")));
    }
}
