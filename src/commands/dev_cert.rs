//! `forebay dev-cert`: a certificate for this machine, for `listen.https` where nobody runs a CA.
//!
//! Place: needs no configuration and no network. Three files in one directory: `ca.pem`, which clients are told to
//! trust; `cert.pem` and `key.pem`, which the agent is given. To stdout go the lines for the configuration and for clients.
//!
//! The CA's own key is never written: it signs this one certificate and is forgotten. Who trusts `ca.pem` trusts
//! nothing else, whatever becomes of the files; the price is that the next certificate comes with a CA of its own.
//!
//! *No overwriting*: a file that stands there is replaced only with `--force`, and then all three are. Each is written
//! beside its place and renamed, the key with mode 0600 from the start; a running agent takes the new pair by itself.
//! Failure: told with file and remedy, code 1; what was not renamed is removed.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use crate::cli::DevCertArgs;
use crate::exit::Exit;
use crate::host::Host;

/// Days that both certificates hold. More than 825 is refused by Apple's libraries, whoever signed it.
pub const DAYS: u64 = 825;

/// A clock that is a little behind must not find the certificate in its future.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Names that every such certificate holds.
pub const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What is made: PEM texts.
struct Made {
    ca: String,
    certificate: String,
    key: String,
}

/// Makes the files and tells what to do with them.
#[must_use]
pub fn run(args: &DevCertArgs) -> ExitCode {
    match make_files(args) {
        Ok(text) => match super::print(&text) {
            Ok(()) => Exit::Good.into(),
            Err(error) => {
                eprintln!("forebay dev-cert: cannot write to stdout: {error}");
                Exit::Failed.into()
            }
        },
        Err(wrong) => {
            eprintln!("forebay dev-cert: {wrong}");
            Exit::Failed.into()
        }
    }
}

fn make_files(args: &DevCertArgs) -> Result<String, String> {
    let mut names: Vec<String> = NAMES.iter().map(ToString::to_string).collect();
    names.extend(args.name.iter().filter(|name| !NAMES.contains(&name.as_str())).cloned());
    let files = ["ca.pem", "cert.pem", "key.pem"].map(|name| args.dir.join(name));
    if let Some(there) = files.iter().find(|path| fs::symlink_metadata(path).is_ok())
        && !args.force
    {
        return Err(format!("{} is there already, and nothing was changed; --force replaces all three files", there.display()));
    }
    let made = make(&names).map_err(|error| format!("the certificate cannot be made: {error}"))?;
    let host = Host::real();
    host.files
        .create_dir_all(&args.dir)
        .map_err(|error| format!("the directory {} cannot be made: {error}", args.dir.display()))?;
    // The key last: until it is there, a running agent sees a pair that does not match, and keeps the one that it has.
    for (path, text, mode) in [(&files[0], &made.ca, 0o644), (&files[1], &made.certificate, 0o644), (&files[2], &made.key, 0o600)]
    {
        write(path, text, mode).map_err(|error| format!("{}: cannot be written: {error}", path.display()))?;
    }
    let dir = fs::canonicalize(&args.dir).unwrap_or_else(|_| args.dir.clone());
    Ok(tell(&dir, &names))
}

/// A CA, and a certificate that it signed for `names`.
fn make(names: &[String]) -> Result<Made, rcgen::Error> {
    let now = date_time_ymd(1970, 1, 1) + Duration::from_millis(Host::real().clock.wall_ms());
    let (from, until) = (now - BACKDATED, now + Duration::from_secs(DAYS * 86_400));
    let params = |common_name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "forebay dev-cert");
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.not_before, params.not_after) = (from, until);
        params
    };
    let machine = machine();
    let ca_key = KeyPair::generate()?;
    let mut ca = params(&format!("forebay on {machine}"));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_certificate = ca.self_signed(&ca_key)?;

    let key = KeyPair::generate()?;
    let mut own = params("localhost");
    own.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    own.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    own.use_authority_key_identifier_extension = true;
    let certificate = own.signed_by(&key, &Issuer::new(ca, ca_key))?;
    Ok(Made {
        ca: pem("CERTIFICATE", ca_certificate.der()),
        certificate: pem("CERTIFICATE", certificate.der()),
        key: pem("PRIVATE KEY", key.serialized_der()),
    })
}

/// The machine's name, for whoever looks through what a client trusts.
#[allow(clippy::disallowed_methods, reason = "not a file of ours")]
fn machine() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "this machine".into(), |name| name.trim().to_owned())
}

/// RFC 7468: base64 in lines of 64.
fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for at in (0..text.len()).step_by(64) {
        out.push_str(&text[at..text.len().min(at + 64)]);
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Writes beside `path`, and renames.
#[allow(clippy::disallowed_methods, reason = "a user's certificate lies outside of the spool; its key needs a mode at creation")]
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let beside: PathBuf = path.with_extension(format!("pem.new-{}", std::process::id()));
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&beside, path));
    if done.is_err()
        && let Err(error) = fs::remove_file(&beside)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("forebay dev-cert: {} is left over: {error}", beside.display());
    }
    done
}

fn tell(dir: &Path, names: &[String]) -> String {
    let dir = dir.display();
    let names = names.join(", ");
    format!(
        "A certificate for {names}, good for {DAYS} days, in {dir}
  ca.pem    what clients are told to trust; the key that signed with it is forgotten
  cert.pem  what the agent shows
  key.pem   its key, mode 0600: the agent's user must be able to read it

For the configuration (a running agent takes a new pair by itself):

  [listen]
  https = \"127.0.0.1:4712\"
  tls_certificate = \"{dir}/cert.pem\"
  tls_key = \"{dir}/key.pem\"

For clients, in the environment of the application; most take it instead of the CAs that they know, not besides:

  curl, OpenSSL, Go   SSL_CERT_FILE={dir}/ca.pem
  Node.js             NODE_EXTRA_CA_CERTS={dir}/ca.pem        (besides)
  Python requests     REQUESTS_CA_BUNDLE={dir}/ca.pem
  boto3, AWS CLI      AWS_CA_BUNDLE={dir}/ca.pem
  Java                keytool -importcert -noprompt -alias forebay -file {dir}/ca.pem -keystore forebay.p12 -storepass changeit
                      java -Djavax.net.ssl.trustStore=forebay.p12 -Djavax.net.ssl.trustStorePassword=changeit ...
  the whole machine   cp {dir}/ca.pem /usr/local/share/ca-certificates/forebay.crt && update-ca-certificates

To see that it works, once the agent runs: curl --cacert {dir}/ca.pem https://localhost:4712/ingest -d '{{}}'
"
    )
}

/// A name that a certificate can hold.
///
/// # Errors
/// What is allowed instead.
pub fn check_name(name: &str) -> Result<String, String> {
    let labels = name.strip_prefix("*.").unwrap_or(name).split('.');
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && labels.into_iter().all(is_label)) {
        return Ok(name.to_ascii_lowercase());
    }
    Err("neither a host name nor an IP address; allowed: such as agent.internal, *.dev.example.com or 10.0.0.7".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hosts_and_addresses() {
        for name in ["localhost", "agent.internal", "*.dev.example.com", "10.0.0.7", "::1", "a_b"] {
            assert_eq!(check_name(name).as_deref(), Ok(name));
        }
        for name in ["", "a b", "https://a", "a:443", "-a", "a..b", "*", "a/b", "é"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn pem_lines_are_of_64_and_read_back_as_they_were() {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        for len in [1, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let text = pem("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= 64), "{text}");
            assert_eq!(&*CertificateDer::from_pem_slice(text.as_bytes()).unwrap(), &der[..]);
        }
    }
}
