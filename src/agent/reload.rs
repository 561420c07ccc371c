//! A new configuration for a running agent: what can change does, what cannot is named.
//!
//! Place: `commands::run` reads the configuration again at SIGHUP and hands it here. What can change: the rules, write keys and
//! vendors' settings of sources that stay (those that `FIXED` does not name), and `drain_timeout`, which is looked at when the end
//! comes. Connections and requests that have begun go on with the source that they began with.
//!
//! Invariant: nothing is half changed. A configuration with errors changes nothing at all (its reader sees to that). What needs a
//! restart is named after each reload for as long as the file differs from what runs.
//!
//! Absent on purpose: streams, spools and listeners. They are the process; a restart with passed sockets costs no connection.

use std::sync::Arc;

use super::{Agent, StartError};
use crate::config::{InForce, Loaded, Section, SectionKind, SourceConfig, Typed};

/// Keys of a source that need a restart: they decide where its events go, or what is kept of them between processes.
const FIXED: [&str; 6] = ["name", "kind", "stream", "max_event_bytes", "spool_quota", "dedupe"];

/// What became of a new configuration. Keys are named, values are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys whose new value is in force.
    pub taken: Vec<String>,
    /// Keys and tables that differ from what runs and need a restart.
    pub waiting: Vec<String>,
}

impl Reloaded {
    /// What differs between what runs and `new`. `start` is what the agent started with, `last` what was read last.
    #[must_use]
    pub fn compare(start: &InForce, last: &InForce, new: &InForce) -> Self {
        let mut told = Self::default();
        for kind in SectionKind::ALL {
            for section in of_kind(new, kind) {
                let same = |all| of_kind(all, kind).find(|other| name_of(other) == name_of(section));
                let (Some(started), Some(before)) = (same(start), same(last).or_else(|| same(start))) else {
                    told.waiting.push(format!("{} (new)", titled(section)));
                    continue;
                };
                for setting in &section.settings {
                    let key = setting.key.name;
                    let differs = |other: &Section| other.settings.iter().any(|s| s.key.name == key && s.value != setting.value);
                    let place = match kind {
                        SectionKind::Root => key.to_owned(),
                        _ => format!("{}.{key}", titled(section)),
                    };
                    match can_change(kind, key) {
                        true if differs(before) => told.taken.push(place),
                        false if differs(started) => told.waiting.push(place),
                        _ => {}
                    }
                }
            }
            let gone = |section: &&Section| !of_kind(new, kind).any(|other| name_of(other) == name_of(section));
            told.waiting.extend(of_kind(start, kind).filter(gone).map(|section| format!("{} (gone)", titled(section))));
        }
        told
    }
}

fn can_change(kind: SectionKind, key: &str) -> bool {
    match kind {
        SectionKind::Root => true,
        SectionKind::Source => !FIXED.contains(&key),
        SectionKind::Listen | SectionKind::Spool | SectionKind::Stream => false,
    }
}

fn of_kind(all: &InForce, kind: SectionKind) -> impl Iterator<Item = &Section> {
    all.sections.iter().filter(move |section| section.kind == kind)
}

/// Of tables that repeat, the name; they are one table by it, wherever it stands.
fn name_of(section: &Section) -> Option<&str> {
    let setting = section.settings.iter().find(|setting| section.kind.repeats() && setting.key.name == "name")?;
    if let Typed::Text(name) = &setting.value { name.as_deref() } else { None }
}

/// `spool`, `source web`.
fn titled(section: &Section) -> String {
    match name_of(section) {
        Some(name) => format!("{} {name}", section.kind.name()),
        None => section.kind.name().to_owned(),
    }
}

impl Agent {
    /// Puts what can change of `new` in force. `start` is what the agent started with, `last` what was read last.
    ///
    /// # Errors
    /// A source's rules, which the configuration should have refused; nothing is changed then.
    pub fn reload(&self, start: &Loaded, last: &Loaded, new: &Loaded) -> Result<Reloaded, StartError> {
        let started = |name: &str| start.config.sources.iter().find(|source| source.name == name);
        let sources = self.sources.now();
        let renewed = sources.renewed(|source| {
            let now = new.config.sources.iter().find(|other| other.name == source.name());
            let (Some(now), Some(then)) = (now, started(source.name())) else { return Ok(Arc::clone(source)) };
            let fixed = SourceConfig {
                kind: then.kind,
                stream: then.stream.clone(),
                max_event_bytes: then.max_event_bytes,
                ..now.clone()
            };
            source.renewed(&fixed).map(Arc::new).map_err(|error| StartError::Source(error.to_string()))
        });
        self.sources.replace(renewed?);
        Ok(Reloaded::compare(&start.in_force, &last.in_force, &new.in_force))
    }
}
