//! The configuration's door to the machine: environment variables, small text files, and where one may write.
//!
//! Place: `layers` reads variables and the file through [`Environment`], `resolve` expands `${VAR}` and reads
//! `*_file` keys; tests bring maps instead. Read-only, used once at start; the values are not kept.
//!
//! Absent on purpose: reading anything large, and writing.

use std::env::VarError;
use std::ffi::OsStr;
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

/// Largest configuration or key file that is read, in bytes. A path to a device or a log must not eat the memory.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a configuration is read from.
pub trait Environment {
    /// One variable.
    ///
    /// # Errors
    /// Not set, or not valid Unicode.
    fn var(&self, name: &str) -> Result<String, VarError>;

    /// The names of all variables that begin with `prefix`, sorted.
    fn names(&self, prefix: &str) -> Vec<String>;

    /// A whole text file of at most [`FILE_BYTES_MAX`].
    ///
    /// # Errors
    /// As the file system says; `InvalidData` when it is not UTF-8, `FileTooLarge` when too large.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// Whether `path` is a directory in which this process may create files.
    fn is_writable_dir(&self, path: &Path) -> bool;

    /// Whether something stands at `path`.
    fn exists(&self, path: &Path) -> bool;
}

/// The process's own environment and file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealEnvironment;

impl Environment for RealEnvironment {
    fn var(&self, name: &str) -> Result<String, VarError> {
        std::env::var(name)
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        let mut names: Vec<String> =
            std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| name.starts_with(prefix)).collect();
        names.sort();
        names
    }

    #[expect(clippy::disallowed_methods, reason = "what a user wrote is read here, never what the spool wrote")]
    fn read(&self, path: &Path) -> io::Result<String> {
        use std::io::Read as _;
        let mut text = String::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
        }
        Ok(text)
    }

    fn is_writable_dir(&self, path: &Path) -> bool {
        path.is_dir() && access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    }

    fn exists(&self, path: &Path) -> bool {
        path != OsStr::new("") && path.exists()
    }
}

/// Replaces each `${NAME}` by the variable's value; `$${` stands for a plain `${`.
///
/// # Errors
/// One sentence for each part that cannot be replaced. No value of any variable stands in them.
pub(crate) fn interpolate(text: &str, env: &dyn Environment) -> Result<String, Vec<String>> {
    let mut out = String::with_capacity(text.len());
    let mut wrong = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        rest = &rest[at + 2..];
        let Some(end) = rest.find('}') else {
            wrong.push("`${` without its `}`; write `$${` where a plain `${` is meant".into());
            rest = "";
            break;
        };
        let name = &rest[..end];
        rest = &rest[end + 1..];
        let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.is_empty();
        match if is_name { env.var(name) } else { Err(VarError::NotPresent) } {
            Ok(value) => out.push_str(&value),
            Err(_) if !is_name => wrong.push(format!("`${{{name}}}` does not name an environment variable")),
            Err(VarError::NotPresent) => wrong.push(format!("the environment variable {name} is not set")),
            Err(VarError::NotUnicode(_)) => wrong.push(format!("the environment variable {name} is not valid UTF-8")),
        }
    }
    out.push_str(rest);
    if wrong.is_empty() { Ok(out) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows `A` and `EMPTY` only.
    struct TwoVars;

    impl Environment for TwoVars {
        fn var(&self, name: &str) -> Result<String, VarError> {
            match name {
                "A" => Ok("alpha".into()),
                "EMPTY" => Ok(String::new()),
                _ => Err(VarError::NotPresent),
            }
        }
        fn names(&self, _: &str) -> Vec<String> {
            Vec::new()
        }
        fn read(&self, _: &Path) -> io::Result<String> {
            Err(io::ErrorKind::NotFound.into())
        }
        fn is_writable_dir(&self, _: &Path) -> bool {
            false
        }
        fn exists(&self, _: &Path) -> bool {
            false
        }
    }

    #[test]
    fn variables_are_replaced_wherever_they_stand() {
        for (text, expanded) in [
            ("${A}", "alpha"),
            ("x-${A}-${A}", "x-alpha-alpha"),
            ("${EMPTY}", ""),
            ("$A {A} $", "$A {A} $"),
            ("$${A}", "${A}"),
            ("é${A}é", "éalphaé"),
        ] {
            assert_eq!(interpolate(text, &TwoVars).unwrap(), expanded, "{text}");
        }
    }

    #[test]
    fn every_variable_that_cannot_be_replaced_is_named() {
        assert_eq!(interpolate("${B}${A}${C}", &TwoVars).unwrap_err().len(), 2);
        assert!(interpolate("${A", &TwoVars).unwrap_err()[0].contains("without its `}`"));
        assert!(interpolate("${}", &TwoVars).unwrap_err()[0].contains("does not name"));
        assert!(interpolate("${A-b}", &TwoVars).unwrap_err()[0].contains("does not name"));
    }

    #[test]
    fn a_file_over_the_ceiling_is_refused_without_being_kept() {
        assert_eq!(RealEnvironment.read(Path::new("/dev/zero")).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
