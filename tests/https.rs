//! HTTP over TLS and over a Unix socket, as clients see it; and the certificate that `dev-cert` makes.
//!
//! Every test runs the real listener over a real spool, with pairs that the real binary made. The client is rustls, which
//! judges certificates as any client does; what hyper speaks over it is tested in `ingest_http.rs`.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use doors::{PATIENCE, Stop, World, soon, until};
use forebay::ingest::Sources;
use forebay::ingest::http::tls::Pair;
use forebay::ingest::http::{HttpDoor, HttpOptions, bind_socket, bind_tls};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const EVENT: &str = "{\"userId\":\"u1\"}\n";

fn forebay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay")).args(args).output().unwrap()
}

/// The files that `dev-cert` makes in `dir`.
#[derive(Clone, Debug)]
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn make(dir: &Path, more: &[&str]) -> Self {
        let output = forebay(&[&["dev-cert", "--dir", dir.to_str().unwrap()], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { ca: dir.join("ca.pem"), certificate: dir.join("cert.pem"), key: dir.join("key.pem") }
    }

    fn pair(&self) -> Pair {
        Pair::read(&self.certificate, &self.key).unwrap()
    }

    fn shown(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.certificate).unwrap()
    }
}

/// A listening door.
struct Door {
    address: Option<SocketAddr>,
    stop: Stop,
    serving: JoinHandle<()>,
}

impl Door {
    fn open(door: HttpDoor, sources: Sources) -> Self {
        let address = door.address().ok();
        let (stop, shutdown) = Stop::new();
        Self { address, stop, serving: tokio::spawn(door.serve(sources, shutdown)) }
    }

    async fn tls(files: &Files, sources: Sources) -> Self {
        Self::open(bind_tls("127.0.0.1:0".parse().unwrap(), files.pair(), HttpOptions::default()).await.unwrap(), sources)
    }

    fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    async fn end(self) {
        self.stop.now();
        soon(self.serving).await.unwrap();
    }
}

const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// A client that trusts `ca` alone. It knows no earlier session.
async fn connect_with(
    address: SocketAddr,
    name: &str,
    ca: &Path,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

async fn connect(address: SocketAddr, ca: &Path, alpn: &[&str]) -> io::Result<TlsStream<TcpStream>> {
    connect_with(address, "localhost", ca, alpn, &BOTH).await
}

fn request(host: &str) -> Request<Full<Bytes>> {
    let uri = format!("https://{host}/ingest");
    Request::post(uri).header("host", host).body(Full::new(EVENT.into())).unwrap()
}

/// Posts an event over HTTP/1.1 and keeps the connection.
async fn open_one<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> http1::SendRequest<Full<Bytes>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn post_one(sender: &mut http1::SendRequest<Full<Bytes>>, host: &str) -> (u16, String) {
    soon(sender.ready()).await.unwrap();
    let answer = soon(sender.send_request(request(host))).await.unwrap();
    let status = answer.status().as_u16();
    (status, String::from_utf8(soon(answer.collect()).await.unwrap().to_bytes().to_vec()).unwrap())
}

async fn is_taken<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) {
    let (status, body) = post_one(&mut open_one(stream).await, "localhost").await;
    assert_eq!((status, body.as_str()), (200, "{\"accepted\":1,\"rejected\":[]}\n"));
}

#[tokio::test]
async fn http_2_and_http_1_are_agreed_upon_and_both_take_events_with_tls_12_and_13() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let files = Files::make(dir.path(), &[]);
    let door = Door::tls(&files, world.web()).await;
    let mut sent = 0;
    for version in BOTH {
        for (offered, agreed) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["h2"][..], Some("h2")),
            (&["http/1.1"][..], Some("http/1.1")),
            (&[][..], None),
        ] {
            let stream = connect_with(door.address(), "localhost", &files.ca, offered, &[version]).await.unwrap();
            let told = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
            assert_eq!(told.as_deref(), agreed, "{offered:?}");
            if agreed == Some("h2") {
                let (mut sender, connection) = soon(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
                tokio::spawn(connection);
                let mut request = request("localhost");
                request.headers_mut().remove("host");
                let answer = soon(sender.send_request(request)).await.unwrap();
                assert_eq!((answer.status().as_u16(), answer.version()), (200, hyper::Version::HTTP_2));
            } else {
                is_taken(stream).await;
            }
            sent += 1;
        }
    }
    assert_eq!(world.events().len(), sent);
    // A client that speaks neither.
    assert!(connect(door.address(), &files.ca, &["spdy/1"]).await.is_err());
    door.end().await;
}

#[tokio::test]
async fn the_certificate_is_good_for_its_names_and_no_other_and_only_for_who_trusts_its_ca() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let files = Files::make(&dir.path().join("own"), &["--name", "agent.internal", "--name", "10.0.0.7"]);
    let door = Door::tls(&files, world.web()).await;
    for name in ["localhost", "127.0.0.1", "::1", "agent.internal", "10.0.0.7"] {
        let stream = connect_with(door.address(), name, &files.ca, &[], &BOTH).await;
        assert!(stream.is_ok(), "{name}: {stream:?}");
    }
    for name in ["agent.example", "10.0.0.8", "127.0.0.2"] {
        assert!(connect_with(door.address(), name, &files.ca, &[], &BOTH).await.is_err(), "{name}");
    }
    let stranger = Files::make(&dir.path().join("other"), &[]);
    assert!(connect(door.address(), &stranger.ca, &[]).await.is_err());
    door.end().await;
}

#[test]
fn dev_cert_overwrites_only_when_told_to_keeps_no_key_of_the_ca_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("deep/tls");
    let shown = at.to_str().unwrap();
    let output = forebay(&["dev-cert", "--dir", shown]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["SSL_CERT_FILE=", "NODE_EXTRA_CA_CERTS=", "REQUESTS_CA_BUNDLE=", "keytool", "localhost, 127.0.0.1, ::1"] {
        assert!(said.contains(part), "{part} in:\n{said}");
    }
    let mut names: Vec<String> = fs::read_dir(&at).unwrap().map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["ca.pem", "cert.pem", "key.pem"]);
    assert!(!fs::read_to_string(at.join("ca.pem")).unwrap().contains("PRIVATE"));
    assert_eq!(fs::metadata(at.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);

    // The lines that are to be put into the configuration are such lines.
    let lines: String = said.lines().skip_while(|line| line.trim() != "[listen]").take(4).collect::<Vec<_>>().join("\n");
    let file = dir.path().join("forebay.toml");
    fs::write(&file, format!("{lines}\n[[stream]]\nname = \"clicks\"\n")).unwrap();
    let output = forebay(&["config", "--config", file.to_str().unwrap()]);
    let in_force = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && in_force.contains(&format!("tls_key = \"{shown}/key.pem\"")), "{in_force}");

    let before = ["ca.pem", "cert.pem", "key.pem"].map(|name| fs::read(at.join(name)).unwrap());
    fs::remove_file(at.join("cert.pem")).unwrap();
    let again = forebay(&["dev-cert", "--dir", shown]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--force"));
    assert!(!at.join("cert.pem").exists() && fs::read(at.join("key.pem")).unwrap() == before[2], "nothing was changed");
    fs::set_permissions(at.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(forebay(&["dev-cert", "--dir", shown, "--force"]).status.success());
    assert_eq!(fs::metadata(at.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    for (name, before) in ["ca.pem", "cert.pem", "key.pem"].iter().zip(before) {
        assert_ne!(fs::read(at.join(name)).unwrap(), before, "{name}");
    }
    assert_eq!(fs::read_dir(&at).unwrap().count(), 3);
    assert_eq!(forebay(&["dev-cert", "--name", "https://x"]).status.code(), Some(64));
}

#[tokio::test]
async fn a_new_pair_is_shown_without_ending_connections_and_a_bad_one_changes_nothing() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let files = Files::make(&dir.path().join("shown"), &[]);
    let (old, old_ca) = (files.shown(), dir.path().join("old-ca.pem"));
    fs::copy(&files.ca, &old_ca).unwrap();
    let door = Door::tls(&files, world.web()).await;
    let mut standing = open_one(connect(door.address(), &old_ca, &[]).await.unwrap()).await;
    assert_eq!(post_one(&mut standing, "localhost").await.0, 200);

    // Half of a change, and nonsense: at each the files are looked at (they are, a second after the last look), and the pair
    // before stays.
    let next = Files::make(&dir.path().join("next"), &[]);
    let texts: [&[u8]; 3] = [&fs::read(&next.certificate).unwrap(), b"nonsense", b""];
    for text in texts {
        fs::write(&files.certificate, text).unwrap();
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let stream = connect(door.address(), &old_ca, &[]).await.unwrap();
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], old);
        is_taken(stream).await;
    }

    fs::copy(&next.key, &files.key).unwrap();
    fs::copy(&next.certificate, &files.certificate).unwrap();
    let begun = Instant::now();
    let stream = loop {
        match connect(door.address(), &next.ca, &[]).await {
            Ok(stream) => break stream,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "the new pair is never shown: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], next.shown());
    is_taken(stream).await;
    assert!(connect(door.address(), &old_ca, &[]).await.is_err());
    assert_eq!(post_one(&mut standing, "localhost").await.0, 200, "the connection from before stands");
    door.end().await;
}

#[tokio::test]
async fn slow_handshakes_hold_up_nobody_and_are_ended() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let files = Files::make(dir.path(), &[]);
    let options = HttpOptions { head_timeout: Duration::from_secs(3), ..HttpOptions::default() };
    let door = bind_tls("127.0.0.1:0".parse().unwrap(), files.pair(), options).await.unwrap();
    let door = Door::open(door, world.web());
    let mut slow = Vec::new();
    for at in 0..60 {
        let mut stream = TcpStream::connect(door.address()).await.unwrap();
        // Silent; the beginning of a record; one that says it is longer than what comes.
        stream.write_all([&b""[..], b"\x16\x03", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"][at % 3]).await.unwrap();
        slow.push(stream);
    }
    let begun = Instant::now();
    is_taken(connect(door.address(), &files.ca, &[]).await.unwrap()).await;
    let took = begun.elapsed();
    for mut stream in slow {
        let mut rest = Vec::new();
        // Closed, or reset where something was not read.
        soon(stream.read_to_end(&mut rest)).await.ok();
        assert!(rest.len() < 16, "{rest:?}");
    }
    let waited = begun.elapsed();
    assert!(waited > took, "the good client ({took:?}) was served before the slow ones were ended ({waited:?})");
    door.end().await;
}

#[tokio::test]
async fn plain_http_and_noise_on_the_tls_port_are_closed_without_harm() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let files = Files::make(dir.path(), &[]);
    let door = Door::tls(&files, world.web()).await;
    let big = format!("POST /ingest HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20000\r\n\r\n{}", "x".repeat(20_000));
    let mut stream = TcpStream::connect(door.address()).await.unwrap();
    stream.write_all(big.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{answer}");
    for noise in
        [&b"\0\0\0\0\0\0\0\0\0\0\0\0"[..], b"\x16\x03\x01\xff\xff garbage that is no hello", b"\x80\x2e\x01\x03\x01", b"\xff"]
    {
        let mut stream = TcpStream::connect(door.address()).await.unwrap();
        stream.write_all(noise).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.ok();
        assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
    }
    is_taken(connect(door.address(), &files.ca, &[]).await.unwrap()).await;
    assert_eq!(world.events().len(), 1);
    door.end().await;
}

#[test]
fn a_pair_that_cannot_be_used_ends_the_start_with_78_and_names_file_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Files::make(&dir.path().join("one"), &[]), Files::make(&dir.path().join("two"), &[]));
    let (missing, empty) = (dir.path().join("missing.pem"), dir.path().join("empty.pem"));
    fs::write(&empty, "").unwrap();
    let locked = dir.path().join("locked.pem");
    fs::write(&locked, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n").unwrap();
    let file = dir.path().join("forebay.toml");
    let cases = [
        (&one.certificate, &two.key, "listen.tls_key", "is not the key of the certificate"),
        (&missing, &one.key, "listen.tls_certificate", "dev-cert"),
        (&one.certificate, &missing, "listen.tls_key", "cannot be read"),
        (&empty, &one.key, "listen.tls_certificate", "holds no certificate"),
        (&one.key, &one.key, "listen.tls_certificate", "holds no certificate"),
        (&one.certificate, &one.certificate, "listen.tls_key", "holds no private key"),
        (&one.certificate, &locked, "listen.tls_key", "without a password"),
    ];
    for (certificate, key, place, wrong) in cases {
        let spool = dir.path().join("spool");
        let text = format!(
            "[listen]\nsocket = \"\"\nhttp = \"\"\nadmin = \"\"\nhttps = \"127.0.0.1:0\"\ntls_certificate = {certificate:?}\n\
             tls_key = {key:?}\n[spool]\ndir = {spool:?}\n[[stream]]\nname = \"clicks\"\nregion = \"eu-west-1\"\n"
        );
        fs::write(&file, text).unwrap();
        let output = forebay(&["run", "--config", file.to_str().unwrap()]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{told}");
        for part in ["forebay run: ", place, wrong] {
            assert!(told.contains(part), "{part} in: {told}");
        }
        assert!(!spool.exists(), "nothing was touched");
    }
}

#[tokio::test]
async fn http_on_a_unix_socket_takes_any_host_and_no_page_and_no_other_user() {
    let world = World::new();
    let path = world.dir.path().join("http.sock");
    let own = rustix::process::getuid().as_raw();
    let door = bind_socket(&path, vec![own], HttpOptions::default()).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let door = Door::open(door, world.web());
    for host in ["localhost", "unix", "anything.example", "%2Frun%2Fx.sock"] {
        let mut sender = open_one(UnixStream::connect(&path).await.unwrap()).await;
        let request = Request::post("/ingest").header("host", host).body(Full::new(Bytes::from(EVENT))).unwrap();
        assert_eq!(soon(sender.send_request(request)).await.unwrap().status(), 200, "{host}");
    }
    // A proxy in front of the socket hands on what browsers say.
    let mut sender = open_one(UnixStream::connect(&path).await.unwrap()).await;
    let request =
        Request::post("/ingest").header("host", "x").header("origin", "https://evil.example").body(Full::new(EVENT.into()));
    assert_eq!(soon(sender.send_request(request.unwrap())).await.unwrap().status(), 403);
    assert_eq!(world.events().len(), 4);

    let taken = bind_socket(&path, Vec::new(), HttpOptions::default()).await.unwrap_err().to_string();
    assert!(taken.contains("a living process") && taken.contains("a listen.http_socket of its own"), "{taken}");
    drop(sender);
    door.end().await;
    assert!(!path.exists(), "the file goes with the agent");

    let door = Door::open(bind_socket(&path, vec![own + 1], HttpOptions::default()).await.unwrap(), world.web());
    let (status, body) = post_one(&mut open_one(UnixStream::connect(&path).await.unwrap()).await, "localhost").await;
    assert!(status == 403 && body.contains("allowed_uids"), "{status} {body}");
    door.end().await;
}

#[tokio::test]
async fn an_end_waits_for_no_handshake_and_finishes_what_is_under_way() {
    let mut world = World::stalled();
    let dir = tempfile::tempdir().unwrap();
    let files = Files::make(dir.path(), &[]);
    let door = Door::tls(&files, world.web()).await;
    let silent = TcpStream::connect(door.address()).await.unwrap();
    let mut sender = open_one(connect(door.address(), &files.ca, &[]).await.unwrap()).await;
    let answering = sender.send_request(request("localhost"));
    let mut answering = std::pin::pin!(answering);
    tokio::select! {
        answer = &mut answering => panic!("too early: {answer:?}"),
        () = until("it is submitted", || world.submitted() == 1) => {}
    }
    door.stop.now();
    world.go();
    assert_eq!(soon(answering).await.unwrap().status(), 200);
    soon(door.serving).await.unwrap();
    drop(silent);
}

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[cfg(feature = "dev")]
#[tokio::test]
async fn the_agent_listens_where_the_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let files = Files::make(&home.join("tls"), &[]);
    let http_socket = home.join("http.sock");
    let (config, log) = (home.join("forebay.toml"), home.join("log"));
    let text = format!(
        "[listen]\nsocket = \"\"\nhttp = \"\"\nadmin = \"\"\nhttps = \"127.0.0.1:0\"\ntls_certificate = {:?}\ntls_key = {:?}\n\
         http_socket = {http_socket:?}\n",
        files.certificate, files.key
    );
    fs::write(&config, text).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_forebay"));
    agent.args(["run", "--dev", "--config"]).arg(&config).arg("--spool-dir").arg(home.join("spool"));
    agent.env_clear().env("HOME", home).env("NO_COLOR", "1").stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let mut agent = Running(agent.spawn().unwrap());
    let told = || fs::read_to_string(&log).unwrap();
    let begun = Instant::now();
    while !told().contains("accepting") {
        assert!(agent.0.try_wait().unwrap().is_none() && begun.elapsed() < PATIENCE, "{}", told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = told();
    let address = told.split("https=").nth(1).unwrap().trim_start_matches('"');
    let address: SocketAddr = address.split(['"', ' ', '\n']).next().unwrap().parse().unwrap_or_else(|_| panic!("{told}"));
    is_taken(connect(address, &files.ca, &["http/1.1"]).await.unwrap()).await;
    is_taken(UnixStream::connect(&http_socket).await.unwrap()).await;
}
