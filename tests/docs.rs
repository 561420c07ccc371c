//! What README.md, docs/ARCHITECTURE.md, docs/RELIABILITY.md and their like say, held to the code: tables, paths, names, commands, sizes.
//!
//! Goal: prose that outlives the code fails the build. Method: the pages are read as text and compared with the schema, the
//! command line, the constants and the files of the repository. `FOREBAY_WRITE_DOCS=1` writes the generated table anew
//! instead of comparing it. The README's first session is walked too, in a home directory where nothing exists.

#![allow(clippy::disallowed_methods, reason = "the pages and sources under test are files of the repository")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::size_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory as _;
use forebay::cli::Cli;
use forebay::config::{Fallback, Key, Kind, SectionKind, show_bytes};
use forebay::dispatch::queue::Slot;
use forebay::exit::{Exit, PANICKED};
use forebay::{event, limits};

const PAGES: [&str; 6] =
    ["README.md", "docs/ARCHITECTURE.md", "docs/RELIABILITY.md", "docs/kinesis.md", "docs/INSTALL.md", "docs/KUBERNETES.md"];
const TABLE: (&str, &str) = ("<!-- config table: begin -->\n", "<!-- config table: end -->");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust files below a directory of the repository, but for what the tests fetch and make (`.work`).
fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the repository") {
            let path = entry.expect("its entry").path();
            if path.is_dir() {
                dirs.extend((!path.ends_with(".work")).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push((path, text));
            }
        }
    }
    found
}

/// Fenced blocks, with what stands behind the opening fence.
fn fences(text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(info), None) => open = Some((info, String::new())),
            (None, Some((_, body))) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    found
}

/// What stands between backticks, fenced blocks left out.
fn code_spans(text: &str) -> Vec<String> {
    let mut prose = String::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    assert!(prose.matches('`').count().is_multiple_of(2), "a backtick is not closed");
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

// === the table of keys ===

fn row(section: SectionKind, key: &Key) -> String {
    let name = match section {
        SectionKind::Root => key.name.to_owned(),
        section => format!("{}.{}", section.name(), key.name),
    };
    let default = match key.fallback {
        Fallback::Required => "required".to_owned(),
        Fallback::Unset => "not set".to_owned(),
        Fallback::Toml(value) => format!("`{value}`"),
    };
    let cells = [format!("`{name}`"), default, key.about.to_owned(), key.kind.allowed()];
    assert!(cells.iter().all(|cell| !cell.contains('|') && !cell.contains('\n')), "{name} would break the table");
    format!("| {} |\n", cells.join(" | "))
}

#[test]
fn the_readmes_table_of_keys_is_the_schemas() {
    let mut table = String::from("| key | default | what it does | allowed |\n| --- | --- | --- | --- |\n");
    for section in SectionKind::ALL {
        table.extend(section.keys().iter().map(|key| row(section, key)));
    }
    let readme = page("README.md");
    let begin = readme.find(TABLE.0).expect("the marker before the table") + TABLE.0.len();
    let end = readme.find(TABLE.1).expect("the marker behind the table");
    if std::env::var_os("FOREBAY_WRITE_DOCS").is_some() {
        fs::write(root().join("README.md"), format!("{}{table}{}", &readme[..begin], &readme[end..])).unwrap();
        return;
    }
    let remedy = "the README's table of keys is not the schema's; `FOREBAY_WRITE_DOCS=1 cargo test --test docs` writes it";
    for (found, expected) in readme[begin..end].lines().zip(table.lines()) {
        assert_eq!(found, expected, "{remedy}");
    }
    assert_eq!(&readme[begin..end], table, "{remedy}");
}

// === paths, names, commands ===

#[test]
fn every_path_that_is_named_exists() {
    let mut named = 0;
    for at in PAGES.into_iter().chain(["CONTRIBUTING.md"]) {
        for span in code_spans(&page(at)) {
            let path = span.split("::").next().unwrap();
            let ours =
                ["src/", "tests/", "benches/", "docs/", "fuzz/", "packaging/", ".ci/"].iter().any(|dir| path.starts_with(dir));
            let file = !path.contains(['/', ' ', '*']) && [".md", ".toml", ".rs"].iter().any(|end| path.ends_with(end));
            if ours || (file && path != "forebay.toml") {
                assert!(root().join(path).exists(), "{at}: `{span}` does not exist");
                named += 1;
            }
        }
    }
    assert!(named > 60, "only {named} paths were found");
}

/// Every `path.rs::name` of a page is a test there; how many are named.
fn named_tests(at: &str) -> usize {
    let mut named = 0;
    for span in code_spans(&page(at)) {
        let Some((path, name)) = span.split_once(".rs::") else { continue };
        let source = page(&format!("{path}.rs"));
        let place = source.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("{at}: `{span}`: there is no such test"));
        let attributes = source[..place].rsplit("\n\n").next().unwrap_or_default();
        assert!(
            attributes.contains("test]") || attributes.contains("test(") || source[..place].contains("proptest!"),
            "{at}: `{span}` is no test"
        );
        named += 1;
    }
    named
}

#[test]
fn every_test_that_is_named_exists() {
    for (at, least) in [("docs/ARCHITECTURE.md", 25), ("docs/RELIABILITY.md", 30)] {
        let named = named_tests(at);
        assert!(named > least, "{at}: only {named} tests were found");
    }
}

#[test]
fn every_row_of_the_reliability_tables_names_a_test_and_only_promises_that_there_are() {
    let text = page("docs/RELIABILITY.md");
    let known: BTreeSet<String> =
        page("docs/ARCHITECTURE.md").lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    let is_head = |row: &str| row.starts_with("| ---") || row.contains("| the test that shows it |");
    let mut rows = 0;
    for row in text.lines().filter(|line| line.starts_with("| ") && !is_head(line)) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 4, "docs/RELIABILITY.md: {row}");
        assert!(cells[2].contains(".rs::"), "docs/RELIABILITY.md: no test shows this: {row}");
        let promises = cells[1]
            .split([' ', ',', ':', ';'])
            .filter(|word| word.contains('-') && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'));
        for promise in promises {
            assert!(known.contains(promise), "docs/RELIABILITY.md: {promise} is no promise of docs/ARCHITECTURE.md");
        }
        rows += 1;
    }
    assert!(rows > 30, "only {rows} rows were found");
}

#[test]
fn every_invariant_has_its_section_and_is_cited_where_it_is_tested() {
    let text = page("docs/ARCHITECTURE.md");
    let sections: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'))
        .collect();
    let tour = page("src/lib.rs");
    let listed = tour.split("The invariants").nth(1).and_then(|rest| rest.split("docs/ARCHITECTURE.md").next()).unwrap();
    let listed: BTreeSet<&str> =
        listed.split('*').filter(|name| name.contains('-') && !name.contains(char::is_whitespace)).collect();
    assert_eq!(sections, listed, "docs/ARCHITECTURE.md and src/lib.rs");
    assert_eq!(sections.len(), 9);
    // In a test's code, not in its comments and not here.
    let mut cited: BTreeMap<&str, Vec<PathBuf>> = BTreeMap::new();
    for (path, source) in sources("tests").into_iter().chain(sources("src")).filter(|(path, _)| !path.ends_with("tests/docs.rs"))
    {
        for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for name in sections.iter().filter(|name| line.contains(**name)) {
                cited.entry(name).or_default().push(path.clone());
            }
        }
    }
    for name in sections {
        assert!(cited.contains_key(name), "{name}: no test and no assertion says this word when it fails");
    }
}

/// Each `forebay WORD …` of a line, up to what ends a command.
fn invocations(line: &str) -> Vec<Vec<String>> {
    let line = line.split('#').next().unwrap_or_default();
    let commands = line.split(['|', ';', '>']).filter_map(|part| part.trim().strip_prefix("forebay "));
    commands.map(|rest| rest.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn every_command_and_flag_that_is_shown_is_one() {
    let cli = Cli::command();
    let mut shown = BTreeSet::new();
    for at in PAGES.into_iter().chain(["CONTRIBUTING.md"]) {
        let text = page(at);
        let mut lines: Vec<String> = code_spans(&text);
        for (info, body) in fences(&text) {
            if info == "sh" {
                lines.extend(body.lines().map(str::to_owned));
            }
        }
        for words in lines.iter().flat_map(|line| invocations(line)) {
            let name = &words[0];
            let command = cli.find_subcommand(name).unwrap_or_else(|| panic!("{at}: `forebay {name}` is no command"));
            // `forebay spool ls`: a command of commands.
            let command = words.get(1).and_then(|word| command.find_subcommand(word)).unwrap_or(command);
            shown.insert(name.clone());
            for flag in words.iter().filter_map(|word| word.strip_prefix("--")) {
                let known = command.get_arguments().chain(cli.get_arguments()).any(|known| known.get_long() == Some(flag));
                assert!(known, "{at}: `forebay {name}` has no --{flag}");
            }
        }
    }
    for command in ["run", "send", "status", "tail", "config"] {
        assert!(shown.contains(command), "`forebay {command}` is shown nowhere");
    }
}

#[test]
fn what_is_not_in_this_version_is_not_and_nothing_else_is_missing_in_the_list() {
    let readme = page("README.md");
    let list = readme.split("## Not in this version").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let commands = list.trim().lines().next().unwrap().split('(').next().unwrap();
    for word in code_spans(&format!("{commands}\n")) {
        assert!(Cli::command().find_subcommand(&word).is_none(), "`{word}` is a command now");
    }
    for key in SectionKind::ALL.iter().flat_map(|section| section.keys()) {
        let Kind::Choice { offered } = key.kind else { continue };
        for word in offered {
            assert!(!list.contains(&format!("`{} = \"{word}\"`", key.name)), "{} = {word} is offered", key.name);
        }
    }
}

#[test]
fn every_metric_that_is_named_is_exposed() {
    let golden = page("tests/golden/metrics.txt");
    let known: BTreeSet<&str> = golden.lines().filter_map(|line| line.split([' ', '{']).nth(1)).collect();
    let mut named = 0;
    for at in PAGES {
        for span in code_spans(&page(at)).iter().filter(|span| span.starts_with("forebay_")) {
            assert!(known.contains(span.split('{').next().unwrap()), "{at}: no metric {span}");
            named += 1;
        }
    }
    assert!(named >= 8, "only {named} metrics were found");
}

// === numbers ===

/// `constant` has this value in that file; for constants that are nobody else's business.
fn private(path: &str, declaration: &str) {
    assert!(page(path).contains(declaration), "{path}: `{declaration}` has changed, and the pages tell it");
}

#[test]
fn sizes_and_limits_in_prose_are_those_of_the_code() {
    let space = |bytes: u64| {
        let text = show_bytes(bytes);
        let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap();
        format!("{} {}", &text[..unit], &text[unit..])
    };
    let (slots, slot) = (256 << 10, size_of::<Slot>());
    private("src/dispatch/mod.rs", "const SLOTS_MAX: usize = 256 << 10;");
    private("src/ingest/http/body.rs", "pub const BODY_BYTES_MAX: usize = 16 << 20;");
    private("src/ingest/http/body.rs", "pub const BODIES_BYTES_MAX: usize = 64 << 20;");
    private("src/spool/gather.rs", "const GROUP_BYTES_MAX: usize = 8 << 20;");
    private("src/dispatch/mode.rs", "const STRANGE_LANDINGS_MAX: u32 = 3;");
    private("src/dispatch/mode.rs", "const REFRESH: Duration = Duration::from_secs(300);");
    private("src/dispatch/mode.rs", "const GOOD_FOR: Duration = Duration::from_secs(1_000);");
    private("src/dispatch/mode.rs", "const SUSPICION: Duration = Duration::from_secs(600);");
    private("tests/dead_shard.rs", "const RSS_MAX: u64 = 256 << 20;");
    private("tests/crash.rs", "const ROUNDS: u64 = 32;");
    let budgets = [
        ("INGEST_BYTES_MAX", limits::INGEST_BYTES_MAX),
        ("HOT_TAIL_BYTES_MAX", limits::HOT_TAIL_BYTES_MAX),
        ("WINDOW_BYTES_MAX", limits::WINDOW_BYTES_MAX),
        ("IN_FLIGHT_BYTES_MAX", limits::IN_FLIGHT_BYTES_MAX),
    ];
    let together = budgets.iter().map(|(_, bytes)| bytes).sum::<usize>() + slots * slot;
    let mut architecture: Vec<String> =
        budgets.iter().map(|(name, bytes)| format!("| `{name}` | {} |", space(*bytes as u64))).collect();
    architecture.extend([
        format!("| `SLOTS_MAX` × `Slot` | {} | 262,144 events", space((slots * slot) as u64)),
        format!("Together {} at most", space(together as u64)),
        "64 MiB in all".into(),
        "Groups grow to 8 MiB".into(),
        format!("cut into {},{:03} *lanes*", event::LANES / 1000, event::LANES % 1000),
        format!("`record_bytes_max` is {} by default", space(limits::AGGREGATE_BYTES_DEFAULT as u64)),
        format!("largest that can be set is {} below", space(limits::MARGIN_BYTES as u64)),
        format!(
            "at most {} records and {} a request, {} a record with its key, keys of 1 to {} characters",
            limits::REQUEST_RECORDS_MAX,
            space(limits::REQUEST_BYTES_MAX as u64),
            space(limits::RECORD_BYTES_MAX as u64),
            limits::KEY_CHARS_MAX
        ),
    ]);
    let default = |section: SectionKind, name: &str| {
        let key = section.keys().iter().find(|key| key.name == name).unwrap();
        let Fallback::Toml(text) = key.fallback else { panic!("{name} has no default") };
        text.trim_matches('"').to_owned()
    };
    assert_eq!(default(SectionKind::Spool, "checkpoint_interval"), "200ms");
    assert_eq!(default(SectionKind::Stream, "aggregate"), "off");
    assert_eq!(default(SectionKind::Spool, "segment_bytes"), show_bytes(limits::SEGMENT_BYTES_DEFAULT));
    let readme = [
        "a checkpoint (200 ms by default)".to_owned(),
        format!("frees whole segments ({})", space(limits::SEGMENT_BYTES_DEFAULT)),
        format!("an event over {}", space(limits::EVENT_BYTES_MAX as u64)),
        format!("max_event_bytes={}\n", limits::EVENT_BYTES_MAX),
        format!("A shard takes {},000 records a second", limits::SHARD_RECORDS_PER_SECOND / 1000),
        format!("a shard's {} a second", space(limits::SHARD_BYTES_PER_SECOND)),
        "zstd, up to 16 MiB".into(),
        "`kill -9` 32 times".into(),
        format!(
            "Exit codes: {} good, {} the work failed, {} the command line is wrong, {} the configuration is wrong",
            Exit::Good as u8,
            Exit::Failed as u8,
            Exit::Usage as u8,
            Exit::Configuration as u8
        ),
        format!("{PANICKED} after a panic"),
    ];
    for (path, claims) in [("docs/ARCHITECTURE.md", architecture), ("README.md", readme.to_vec())] {
        // Where a line ends is no claim.
        let text = page(path);
        let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for claim in claims {
            assert!(text.contains(&claim) || joined.contains(claim.trim()), "{path} should say: {claim}");
        }
    }
}

#[test]
fn the_demo_sends_by_default_what_the_readme_says() {
    let cli = Cli::command();
    let demo = cli.find_subcommand("demo").unwrap();
    let default = |name: &str| {
        let argument = demo.get_arguments().find(|argument| argument.get_id() == name).unwrap();
        argument.get_default_values()[0].to_string_lossy().into_owned()
    };
    assert_eq!((default("events").as_str(), default("users").as_str(), default("shards").as_str()), ("50000", "400", "4"));
    let readme = page("README.md");
    assert!(readme.contains("sends 50,000 Segment-style events of 400 users") && readme.contains("stream \"demo\", 4 shards"));
}

// === what is shown is walked ===

fn forebay(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.env_clear().env("HOME", home).current_dir(home);
    command
}

#[test]
fn every_configuration_that_is_shown_is_taken() {
    let home = tempfile::tempdir().unwrap();
    let mut taken = 0;
    for at in PAGES {
        for (_, text) in fences(&page(at)).iter().filter(|(info, _)| *info == "toml") {
            let file = home.path().join("forebay.toml");
            fs::write(&file, text).unwrap();
            let output = forebay(home.path()).args(["config", "--config"]).arg(&file).output().unwrap();
            assert!(output.status.success(), "{at}:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
            taken += 1;
        }
    }
    assert!(taken > 0, "no configuration is shown");
}

#[cfg(feature = "dev")]
mod with_an_embedded_kinesis {
    use std::io::Write as _;
    use std::process::{Child, Stdio};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;

    /// A child that does not outlive its test.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    /// The README's first session, on a machine where no directory of ours exists. The socket is named, so that an agent which
    /// this machine may have is left alone; it is where `--dev` puts it.
    #[test]
    fn an_agent_with_an_embedded_kinesis_starts_where_nothing_exists_and_takes_an_event() {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join(".local/state/forebay/forebay.sock");
        let socket = socket.to_str().unwrap();
        let log = fs::File::create(home.path().join("log")).unwrap();
        let mut agent = forebay(home.path());
        agent.args(["run", "--dev", "--http", "", "--admin", "", "--socket", socket]).stderr(log);
        let mut agent = Running(agent.spawn().unwrap());
        let told = || fs::read_to_string(home.path().join("log")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !told().contains("accepting") {
            assert!(agent.0.try_wait().unwrap().is_none(), "the agent ended:\n{}", told());
            assert!(Instant::now() < deadline, "the agent does not accept:\n{}", told());
            sleep(Duration::from_millis(20));
        }
        let mut send = forebay(home.path());
        send.args(["send", "--socket", socket]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut send = send.spawn().unwrap();
        send.stdin.take().unwrap().write_all(b"{\"userId\":\"u1\",\"event\":\"Signed Up\"}\n").unwrap();
        let output = send.wait_with_output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{}", told());
        assert!(said.contains("accepted 1 rejected 0 bytes 36 in"), "{said}");
    }
}
