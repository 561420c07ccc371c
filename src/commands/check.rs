//! `forebay check`: what would keep the agent from its work, told before it matters.
//!
//! Place: `main` has read the configuration and told all its errors (code 78). This looks at the machine (`local`), asks
//! AWS about each stream (`stream`), and prints one [`Finding`] an item: a tick, or one plain sentence with what to mend
//! and, where a right is missing, the statement to add and where.
//!
//! Each check is a small function from what was learnt to a finding; who asks and who judges are apart, so that the
//! judges are tested without a network. Nothing is changed anywhere, but for a probe file in the spool's directory, which
//! is removed. Failure: a question that gets no answer is a finding too ("could not tell"), never an end. Exit code 1
//! when a finding says that delivery would fail; warnings and what could not be told leave it 0.
//!
//! An agent that runs on this configuration is asked too (its admin listener): it alone knows what binds its rate, and what it
//! was refused. Without one, nothing is said of it.
//!
//! Absent on purpose: any part in the agent's life. A check that fails or is refused stops nothing.

mod local;
mod stream;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use serde::Serialize;

use crate::admin::report::StreamReport;
use crate::cli::CheckArgs;
use crate::config::Loaded;
use crate::exit::Exit;
use crate::host::Host;
use crate::iam::Statement;

/// How an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, but something should be known or mended.
    Warning,
    /// Events would not be delivered, or not be durable.
    Failure,
    /// Nobody could be asked.
    Unknown,
}

impl Outcome {
    const fn mark(self) -> &'static str {
        match self {
            Self::Ok => "✓",
            Self::Warning => "!",
            Self::Failure => "✗",
            Self::Unknown => "?",
        }
    }

    /// ANSI colour of the mark.
    const fn colour(self) -> u8 {
        match self {
            Self::Ok => 32,
            Self::Warning => 33,
            Self::Failure => 31,
            Self::Unknown => 36,
        }
    }
}

/// A statement that would mend something, and the policy that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// Whose policy, in words or as an ARN.
    pub add_to: String,
    /// The statement.
    pub statement: Statement,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The item, one word.
    pub about: &'static str,
    /// How it stands.
    pub outcome: Outcome,
    /// One sentence.
    pub text: String,
    /// What to add, where a right is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Remedy>,
}

impl Finding {
    fn new(about: &'static str, outcome: Outcome, text: impl Into<String>) -> Self {
        Self { about, outcome, text: text.into(), remedies: Vec::new() }
    }

    fn ok(about: &'static str, text: impl Into<String>) -> Self {
        Self::new(about, Outcome::Ok, text)
    }

    fn warning(about: &'static str, text: impl Into<String>) -> Self {
        Self::new(about, Outcome::Warning, text)
    }

    fn failure(about: &'static str, text: impl Into<String>) -> Self {
        Self::new(about, Outcome::Failure, text)
    }

    fn unknown(about: &'static str, text: impl Into<String>) -> Self {
        Self::new(about, Outcome::Unknown, text)
    }

    fn remedy(mut self, add_to: impl Into<String>, statement: Statement) -> Self {
        self.remedies.push(Remedy { add_to: add_to.into(), statement });
        self
    }
}

/// Findings about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Section {
    /// The stream's name; `None`: this machine.
    stream: Option<String>,
    findings: Vec<Finding>,
}

/// Checks and prints.
pub async fn run(args: &CheckArgs, loaded: &Loaded) -> ExitCode {
    let config = &loaded.config;
    let host = Host::real();
    let file = loaded.file.as_ref().map_or_else(|| "no file, environment and flags".into(), |file| file.display().to_string());
    let mut here = vec![Finding::ok("configuration", format!("{file}: no errors"))];
    here.extend(local::certificate(&config.listen));
    here.extend(local::check(&config.spool, config.streams.len(), &host));
    let mut sections = vec![Section { stream: None, findings: here }];
    if !args.local {
        // Each stream has its own limits of time; side by side, one that hangs delays no other.
        let largest = |stream: &str| {
            config.sources.iter().filter(|source| source.stream == stream).map(|source| source.max_event_bytes).max().unwrap_or(0)
        };
        let asked = config.streams.iter().map(|stream| tokio::spawn(stream::check(stream.clone(), largest(&stream.name))));
        let asked: Vec<_> = asked.collect();
        let running = match config.listen.admin {
            Some(admin) => super::status::fetch(admin).await.ok().map(|(_, report)| report),
            None => None,
        };
        for (stream, asked) in config.streams.iter().zip(asked) {
            let mut findings =
                asked.await.unwrap_or_else(|error| vec![Finding::unknown("stream", format!("the check broke off: {error}"))]);
            let of_it = running.iter().flat_map(|report| &report.streams).find(|report| report.name == stream.name);
            findings.extend(of_it.map(judge_agent).unwrap_or_default());
            sections.push(Section { stream: Some(stream.name.clone()), findings });
        }
    }
    let failed = sections.iter().flat_map(|section| &section.findings).any(|finding| finding.outcome == Outcome::Failure);
    let text = if args.json { json(&sections, failed) } else { text(&sections, std::io::stdout().is_terminal()) };
    match super::print(&text) {
        Ok(()) if !failed => Exit::Good.into(),
        Ok(()) => Exit::Failed.into(),
        Err(error) => {
            eprintln!("forebay: stdout: {error}");
            Exit::Failed.into()
        }
    }
}

/// What the agent that runs here knows of a stream, and asking AWS does not tell.
fn judge_agent(report: &StreamReport) -> Vec<Finding> {
    const ABOUT: &str = "agent";
    let mut findings = Vec::new();
    if !report.advice.is_empty() {
        findings.push(Finding::warning(ABOUT, format!("running, and held back: {}", report.advice)));
    }
    if report.put.singly {
        findings.push(Finding::warning(ABOUT, format!("running, and {}", super::status::SINGLY)));
    }
    if !report.paused_reason.is_empty() {
        findings.push(Finding::warning(ABOUT, format!("running, and delivery is paused: {}", report.paused_reason)));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(ABOUT, "running, and nothing holds its delivery back"));
    }
    findings
}

fn json(sections: &[Section], failed: bool) -> String {
    format!("{:#}\n", serde_json::json!({ "ok": !failed, "sections": sections }))
}

fn text(sections: &[Section], colours: bool) -> String {
    let mut text = String::new();
    let mut counts = [(Outcome::Ok, 0), (Outcome::Warning, 0), (Outcome::Failure, 0), (Outcome::Unknown, 0)];
    for section in sections {
        let title = section.stream.as_ref().map_or_else(|| "this machine".into(), |stream| format!("stream {stream}"));
        writeln!(text, "{title}").expect("a String takes all");
        for finding in &section.findings {
            for (_, count) in counts.iter_mut().filter(|(outcome, _)| *outcome == finding.outcome) {
                *count += 1;
            }
            let (mark, colour) = (finding.outcome.mark(), finding.outcome.colour());
            let mark = if colours { format!("\u{1b}[{colour}m{mark}\u{1b}[0m") } else { mark.to_owned() };
            let (mut shown, one_line) = (String::new(), finding.text.split_whitespace().collect::<Vec<_>>().join(" "));
            super::tail::printable(&mut shown, one_line.as_bytes());
            writeln!(text, "  {mark} {:<14}{shown}", finding.about).expect("a String takes all");
            for Remedy { add_to, statement } in &finding.remedies {
                writeln!(text, "    {:<14}add to {add_to}:\n    {:<14}{}", "", "", statement.to_json())
                    .expect("a String takes all");
            }
        }
    }
    let [good, warnings, failures, unknown] = counts.map(|(_, count)| count);
    writeln!(text, "{good} good, {warnings} to know, {failures} to mend, {unknown} that could not be told")
        .expect("a String takes all");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iam::StreamArn;

    #[test]
    fn each_finding_is_a_mark_and_a_sentence_and_a_missing_right_brings_its_statement() {
        let stream = StreamArn::new("clicks", Some("eu-west-1"), Some("123456789012"));
        let denied = Finding::failure("write", "kinesis:PutRecords is not allowed\u{1b}[2J")
            .remedy("the policy of role x", Statement::on_stream(&["kinesis:PutRecords"], &stream));
        let sections = [
            Section { stream: None, findings: vec![Finding::ok("spool", "/var/lib/forebay on ext4")] },
            Section { stream: Some("clicks".into()), findings: vec![denied, Finding::unknown("key", "?")] },
        ];
        let plain = text(&sections, false);
        let expected = "this machine\n  ✓ spool         /var/lib/forebay on ext4\nstream clicks\n  \
                        ✗ write         kinesis:PutRecords is not allowed\\u{1b}[2J\n                  \
                        add to the policy of role x:\n                  {\"Sid\":\"ForebayDelivers\",\"Effect\":\"Allow\",\
                        \"Action\":[\"kinesis:PutRecords\"],\
                        \"Resource\":[\"arn:aws:kinesis:eu-west-1:123456789012:stream/clicks\"]}\n  \
                        ? key           ?\n1 good, 0 to know, 1 to mend, 1 that could not be told\n";
        assert_eq!(plain, expected);
        assert!(text(&sections, true).contains("\u{1b}[31m✗\u{1b}[0m"));
        let value: serde_json::Value = serde_json::from_str(&json(&sections, true)).unwrap();
        assert_eq!(value["ok"], false);
        assert_eq!(value["sections"][1]["findings"][0]["outcome"], "failure");
        assert_eq!(value["sections"][1]["findings"][0]["remedies"][0]["statement"]["Effect"], "Allow");
    }
}
