//! Who may ask: `Host`, and what tells a web page's request from a program's. Pure.
//!
//! A web page that somebody on this machine looks at can send requests to loopback ports. The guard is for the person
//! whose browser is used so, and for the stream that would get a stranger's events; it is no proof of identity, which a
//! source's `keys` are. What pages can do, and what stands against it:
//!
//! - *Rebinding.* A page's own host name can be made to mean 127.0.0.1, and then the browser takes the agent for the page's own
//!   server, sends no `Origin` with a GET and lets it read answers. But it names the page's host: so `Host` must be a
//!   loopback name or a listed one. A Unix socket has no such name, no page reaches it, and clients write what they like
//!   there: `Host` is not judged on it.
//! - *Posts.* Browsers send `Origin` with every POST, also of a form, also with a `Content-Type` that needs no preflight
//!   (`text/plain`, forms), also `null` from a sandbox. So a request with `Origin` comes from a page, whatever else it says,
//!   and the origin must be listed. Firefox did not before version 70 (2019); of its posts the next rule tells most.
//! - *Images, scripts, links.* A GET of a page carries no `Origin`, but `Sec-Fetch-Site` (all browsers since 2023), and
//!   `Referer` unless the page forbids it. Both come from browsers alone. `none` (a person typed the address) and `same-origin` are
//!   no other page's doing. `same-site` is: a port counts for nothing there, so that every other server of this machine is
//!   our site. Such a request, which is what a tracking pixel is, is taken of a page whose origin `Referer` shows and
//!   `listen.allowed_origins` lists, and only if it is a GET; a page that hides its `Referer` can use fetch.
//!
//! What is left: a GET of a browser from before 2023, of a page that hides its `Referer`, looks like a program's. It can write
//! what a pixel can, to sources without keys, and reads nothing.

use std::net::IpAddr;

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, HOST, HeaderName, HeaderValue, ORIGIN, REFERER, VARY,
};
use hyper::{Method, Request};

use super::HttpOptions;
use super::answer::{Answer, Problem, empty};
use super::listen::Via;

/// Browsers may ask for this before they let a page reach this machine (Private Network Access).
static ASKS_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
static ALLOWS_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// An allowed origin, and what its browser wants to know besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    origin: HeaderValue,
    asks_network: bool,
}

/// The browser's page, if the request names one, and it is allowed.
///
/// # Errors
/// 421 for a foreign host, 403 for a foreign page or user.
pub fn check<B>(request: &Request<B>, via: Via, options: &HttpOptions) -> Result<Option<Page>, Problem> {
    match via {
        Via::Port => check_host(request, options)?,
        Via::Socket => {}
        Via::Refused => {
            return Err(Problem::forbidden("a process of this user may not connect; listen.allowed_uids names those that may"));
        }
    }
    let headers = request.headers();
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        let foreign = "requests of web pages are refused, unless listen.allowed_origins names their origin";
        if origins.next().is_some() || !is_listed(origin.as_bytes(), options) {
            return Err(Problem::forbidden(foreign));
        }
        return Ok(Some(Page { origin: origin.clone(), asks_network: headers.contains_key(&ASKS_NETWORK) }));
    }
    let mut sites = headers.get_all("sec-fetch-site").iter().peekable();
    let referer = headers.get(REFERER);
    let of_a_page = match sites.peek() {
        Some(_) => !sites.all(|site| matches!(site.as_bytes(), b"none" | b"same-origin")),
        None => referer.is_some(),
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if of_a_page && !(reads && referer.is_some_and(|referer| is_listed(origin_of(referer.as_bytes()), options))) {
        return Err(Problem::forbidden(
            "requests of web pages are refused, unless listen.allowed_origins names their origin, and a request without Origin \
             is a GET that shows it in Referer",
        ));
    }
    Ok(None)
}

fn check_host<B>(request: &Request<B>, options: &HttpOptions) -> Result<(), Problem> {
    let foreign = || {
        Problem::misdirected("Host must be a loopback name (localhost, 127.0.0.1, [::1]) or one that listen.allowed_hosts names")
    };
    // HTTP/2 names the host in the URI, HTTP/1.1 in the header; a request may carry both, and no good one neither.
    let named = request.uri().authority().map(|authority| authority.as_str());
    let mut hosts = request.headers().get_all(HOST).iter().map(HeaderValue::to_str).peekable();
    if named.is_none() && hosts.peek().is_none() {
        return Err(foreign());
    }
    let own = |host: &str| is_own(host, &options.allowed_hosts);
    if named.is_some_and(|host| !own(host)) || hosts.any(|host| !host.is_ok_and(own)) {
        return Err(foreign());
    }
    Ok(())
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

fn is_listed(origin: &[u8], options: &HttpOptions) -> bool {
    options.allowed_origins.iter().any(|allowed| allowed.trim_end_matches('/').as_bytes().eq_ignore_ascii_case(origin))
}

/// Scheme, host and port of an address.
fn origin_of(address: &[u8]) -> &[u8] {
    let Some(scheme) = address.windows(3).position(|three| three == b"://") else { return address };
    let from = scheme + 3;
    let end = address[from..].iter().position(|byte| b"/?#".contains(byte)).map_or(address.len(), |at| from + at);
    &address[..end]
}

/// Lets a browser of an allowed origin read the answer. Never with credentials: there are no cookies here.
pub fn allow(page: Page, answer: &mut Answer) {
    let headers = answer.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, page.origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After, Forebay-Sync"));
    if page.asks_network {
        headers.insert(ALLOWS_NETWORK.clone(), HeaderValue::from_static("true"));
    }
}

/// Tells caches that answers differ by page, where any page is allowed.
pub fn vary(answer: &mut Answer, options: &HttpOptions) {
    if !options.allowed_origins.is_empty() {
        answer.headers_mut().append(VARY, HeaderValue::from_static("Origin, Access-Control-Request-Private-Network"));
    }
}

/// What a browser asks before it sends. The headers are those of analytics.js and of the doors here; browsers keep
/// the answer two hours at most.
pub fn preflight() -> Answer {
    let mut answer = empty();
    let headers = answer.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "Accept, Authorization, Content-Encoding, Content-Type, X-Api-Key, X-Partition-Key, X-Retry-Count",
        ),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    answer
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    const APP: &str = "https://app.example.com";

    fn listed() -> HttpOptions {
        HttpOptions { allowed_origins: vec![APP.to_owned()], ..HttpOptions::default() }
    }

    /// The guard's answer to a request of `localhost` with further headers: 200 for none.
    fn judged(method: &str, headers: &[(&str, &str)], options: &HttpOptions) -> u16 {
        let mut request = Request::builder().method(method).uri("/v1/pixel/track").header("host", "localhost:4710");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match check(&request.body(()).unwrap(), Via::Port, options) {
            Ok(_) => 200,
            Err(problem) => problem.status().as_u16(),
        }
    }

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
    fn every_host_that_a_request_names_must_be_ours_but_on_a_unix_socket() {
        let options = HttpOptions::default();
        let check = |uri: &str, host: Option<&str>, via: Via| {
            let request = Request::builder().uri(uri);
            let request = host.into_iter().fold(request, |request, host| request.header(HOST, host));
            check(&request.body(()).unwrap(), via, &options).is_ok()
        };
        let cases = [
            ("/ingest", Some("localhost"), true),
            ("/ingest", None, false),
            ("/ingest", Some("evil.example"), false),
            ("http://localhost/ingest", None, true),
            ("http://evil.example/ingest", Some("localhost"), false),
            ("http://localhost/ingest", Some("evil.example"), false),
        ];
        for (uri, host, ours) in cases {
            assert_eq!(check(uri, host, Via::Port), ours, "{uri} {host:?}");
            assert!(check(uri, host, Via::Socket), "{uri} {host:?}");
            assert!(!check(uri, host, Via::Refused), "{uri} {host:?}");
        }
    }

    #[test]
    fn a_page_must_be_listed_on_a_port_and_on_a_socket() {
        for (origin, options, good) in [
            (APP, listed(), true),
            ("https://APP.example.com", listed(), true),
            (APP, HttpOptions::default(), false),
            ("https://app.example.com.evil.example", listed(), false),
            ("http://app.example.com", listed(), false),
            ("null", listed(), false),
            ("", listed(), false),
        ] {
            for via in [Via::Port, Via::Socket] {
                let request = Request::builder().uri("http://localhost/ingest").header(ORIGIN, origin).body(()).unwrap();
                assert_eq!(check(&request, via, &options).is_ok_and(|page| page.is_some()), good, "{origin}");
            }
        }
        // Whatever a proxy made of it, two are not one that is listed.
        assert_eq!(judged("POST", &[("origin", APP), ("origin", "https://evil.example")], &listed()), 403);
    }

    #[test]
    fn a_program_says_nothing_of_pages_and_is_let_through() {
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/json"] {
            assert_eq!(judged("POST", &[("content-type", kind), ("user-agent", "curl/8")], &HttpOptions::default()), 200);
        }
        assert_eq!(judged("GET", &[], &HttpOptions::default()), 200);
        // Node.js' fetch says how it fetches, but not from which site: there is none.
        assert_eq!(judged("POST", &[("sec-fetch-mode", "cors"), ("user-agent", "node")], &HttpOptions::default()), 200);
    }

    #[test]
    fn a_pixel_is_taken_of_a_listed_page_only_and_only_as_a_get() {
        let none = HttpOptions::default();
        let page = "https://app.example.com/a/b?c#d";
        for site in ["cross-site", "same-site"] {
            assert_eq!(judged("GET", &[("sec-fetch-site", site), ("referer", page)], &listed()), 200, "{site}");
            assert_eq!(judged("GET", &[("sec-fetch-site", site), ("referer", APP)], &listed()), 200, "{site}");
            assert_eq!(judged("GET", &[("sec-fetch-site", site), ("referer", page)], &none), 403, "{site}");
            assert_eq!(judged("GET", &[("sec-fetch-site", site)], &listed()), 403, "{site}: the page hides itself");
            assert_eq!(judged("GET", &[("sec-fetch-site", site), ("referer", "https://evil.example/")], &listed()), 403);
            assert_eq!(judged("POST", &[("sec-fetch-site", site), ("referer", page)], &listed()), 403, "{site}");
        }
        // A person typed it.
        assert_eq!(judged("GET", &[("sec-fetch-site", "none")], &none), 200);
        // An old browser: only Referer tells it.
        assert_eq!(judged("GET", &[("referer", page)], &listed()), 200);
        assert_eq!(judged("GET", &[("referer", page)], &none), 403);
        assert_eq!(judged("POST", &[("referer", "https://evil.example/"), ("content-type", "text/plain")], &listed()), 403);
    }

    #[test]
    fn the_origin_of_an_address_ends_before_its_path() {
        for (address, origin) in [
            ("https://app.example.com/", APP),
            ("https://app.example.com", APP),
            ("https://app.example.com?x=https://y/", APP),
            ("https://app.example.com:8443/a", "https://app.example.com:8443"),
            ("about:blank", "about:blank"),
            ("", ""),
        ] {
            assert_eq!(origin_of(address.as_bytes()), origin.as_bytes(), "{address}");
        }
    }

    #[test]
    fn a_preflight_tells_methods_headers_and_how_long_and_the_network_where_asked() {
        let ask = |network: bool| {
            let request =
                Request::builder().method("OPTIONS").uri("/any/path").header(HOST, "127.0.0.1:4710").header(ORIGIN, APP);
            let request = if network { request.header(&ASKS_NETWORK, "true") } else { request };
            let page = check(&request.body(()).unwrap(), Via::Port, &listed()).unwrap().unwrap();
            let mut answer = preflight();
            allow(page, &mut answer);
            vary(&mut answer, &listed());
            answer
        };
        let answer = ask(true);
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], APP);
        assert_eq!(answer.headers()[&ALLOWS_NETWORK], "true");
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_METHODS], "GET, HEAD, POST");
        assert_eq!(answer.headers()[ACCESS_CONTROL_MAX_AGE], "7200");
        let allowed = answer.headers()[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().to_ascii_lowercase();
        for name in ["authorization", "content-type", "x-retry-count", "content-encoding", "x-api-key", "x-partition-key"] {
            assert!(allowed.split(", ").any(|one| one == name), "{name}");
        }
        assert!(answer.headers()[VARY].to_str().unwrap().contains("Origin"));
        assert!(!answer.headers().contains_key("access-control-allow-credentials"));
        assert!(!ask(false).headers().contains_key(&ALLOWS_NETWORK));
    }
}
