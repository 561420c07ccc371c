//! What is in force, as a person or a machine reads it.
//!
//! Place: `forebay config`. The TOML form is a configuration file that gives the same configuration when it is
//! read (write keys apart: they are masked), each value with its origin as a comment. The JSON form holds for
//! each key `{"value": …, "origin": …, "at": …}`.

use serde_json::{Map, Value, json};

use super::errors::Origin;
use super::resolve::{InForce, Section, Setting, Typed};
use super::schema::{Kind, SectionKind};
use super::units::{show_bytes, show_time};

/// Column at which comments begin, where the value leaves room.
const COMMENT_COLUMN: usize = 48;

impl Typed {
    /// As it stands in a file. Secrets are masked.
    #[must_use]
    pub fn to_toml(&self) -> String {
        match self {
            Self::Text(text) => toml_string(text.as_deref().unwrap_or_default()),
            Self::Bytes(bytes) => toml_string(&show_bytes(*bytes)),
            Self::Time(time) => toml_string(&show_time(*time)),
            Self::Count(number) => number.to_string(),
            Self::Bool(yes) => yes.to_string(),
            Self::Address(address) => toml_string(&address.map(|address| address.to_string()).unwrap_or_default()),
            Self::Texts(texts) => format!("[{}]", texts.iter().map(|text| toml_string(text)).collect::<Vec<_>>().join(", ")),
            Self::Ids(ids) => format!("[{}]", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
            Self::Secrets(secrets) => format!("[{}]", vec!["\"***\""; secrets.len()].join(", ")),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Bytes(bytes) => json!(show_bytes(*bytes)),
            Self::Time(time) => json!(show_time(*time)),
            Self::Count(number) => json!(number),
            Self::Bool(yes) => json!(yes),
            Self::Address(address) => json!(address.map(|address| address.to_string()).unwrap_or_default()),
            Self::Texts(texts) => json!(texts),
            Self::Ids(ids) => json!(ids),
            Self::Secrets(secrets) => json!(vec!["***"; secrets.len()]),
        }
    }
}

/// A TOML basic string. `${` is doubled, so that reading it back expands nothing.
fn toml_string(text: &str) -> String {
    toml::Value::String(text.replace("${", "$${")).to_string()
}

impl InForce {
    /// As a configuration file with origins.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for section in &self.sections {
            match section.kind {
                SectionKind::Root => {}
                kind if kind.repeats() => out.push_str(&format!("\n[[{}]]\n", kind.name())),
                kind => out.push_str(&format!("\n[{}]\n", kind.name())),
            }
            for setting in &section.settings {
                let line = line(section, setting);
                let comment = match (&setting.value, &setting.origin) {
                    (Typed::Text(None), _) => "not set".to_owned(),
                    (_, origin) => origin.to_string(),
                };
                out.push_str(&format!("{line:<COMMENT_COLUMN$}  # {comment}\n"));
            }
        }
        out
    }

    /// As JSON: `{"drain_timeout": {…}, "listen": {"socket": {…}}, "stream": [{"name": {…}}], …}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut root = Map::new();
        for section in &self.sections {
            let values: Map<String, Value> =
                section.settings.iter().map(|setting| (setting.key.name.to_owned(), setting_json(setting))).collect();
            match section.kind {
                SectionKind::Root => root.extend(values),
                kind if kind.repeats() => {
                    if let Value::Array(list) = root.entry(kind.name()).or_insert_with(|| json!([])) {
                        list.push(Value::Object(values));
                    }
                }
                kind => {
                    root.insert(kind.name().to_owned(), Value::Object(values));
                }
            }
        }
        Value::Object(root)
    }
}

/// `name = value`, as a comment where the value must not be read back: not set, or given by `*_file`.
fn line(section: &Section, setting: &Setting) -> String {
    let name = setting.key.name;
    let from_file = section.settings.iter().any(|other| {
        matches!(other.key.kind, Kind::SecretsFile { of } if of == name) && matches!(setting.origin, Origin::Derived(_))
    });
    match &setting.value {
        Typed::Text(None) => format!("# {name}"),
        value if from_file => format!("# {name} = {}", value.to_toml()),
        value => format!("{name} = {}", value.to_toml()),
    }
}

fn setting_json(setting: &Setting) -> Value {
    let mut entry = json!({"value": setting.value.to_json(), "origin": setting.origin.name()});
    let at = match &setting.origin {
        Origin::File(path, line) => Some(format!("{}:{line}", path.display())),
        Origin::Env(name) => Some(name.clone()),
        Origin::Flag(name) => Some((*name).to_owned()),
        Origin::Derived(from) => Some(from.clone()),
        Origin::Default | Origin::Dev => None,
    };
    if let Some(at) = at {
        entry["at"] = json!(at);
    }
    entry
}
