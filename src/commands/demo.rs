//! `forebay demo`: the main job in one command, with nothing installed and nothing configured.
//!
//! An embedded Kinesis runs in this process; the agent is this program once more, as a child. Applications of the
//! demo send Segment-style events through the real socket and over real HTTP, each waiting for its receipts; when
//! the agent has delivered all, the stream is read back as a consumer would and every event is compared with what
//! was sent. Exit code 0 only if each arrived exactly once, unharmed, and each user's in order.
//!
//! Owner: [`run`], which cleans up on every way out: child stopped, directory removed, on Ctrl-C too.
//!
//! Failure: one sentence for each thing that is wrong, and exit code 1. Absent on purpose: any short cut. Nothing
//! here reaches into the agent; it is told from outside by what it answers.

mod agent;
mod events;
mod ledger;
mod report;
mod send;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::DemoArgs;
use crate::config::Aggregate;
use crate::consumer::{Consumer, ConsumerOptions};
use crate::dev::{DevKinesis, DevOptions};
use crate::host::Host;
use crate::kinesis::ReadFrom;
use agent::{Agent, Status, Wiring, Workplace};
use ledger::Ledger;
use send::Crowd;

/// Name of the demo's stream.
const STREAM: &str = "demo";

/// Connections to the socket, for three quarters of the users.
const SOCKET_CONNECTIONS: u32 = 4;

/// HTTP clients, for the rest.
const HTTP_CONNECTIONS: u32 = 2;

/// Time without any delivery after which the demo gives up.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at the agent's status.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);

/// What the demo sends, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoOptions {
    /// Events in all.
    pub events: u64,
    /// Users that they are about; each is a partition key.
    pub users: u32,
    /// Shards of the embedded stream.
    pub shards: u32,
    /// KPL aggregates instead of one event a record.
    pub aggregate_kpl: bool,
    /// Print the result as one JSON object.
    pub json: bool,
    /// Keep the spool here, to look at it afterwards: a directory that is empty or does not exist.
    pub keep: Option<PathBuf>,
}

impl From<DemoArgs> for DemoOptions {
    fn from(args: DemoArgs) -> Self {
        Self {
            events: args.events,
            users: u32::try_from(args.users).unwrap_or(u32::MAX),
            shards: args.shards,
            aggregate_kpl: args.aggregate == Aggregate::Kpl,
            json: args.json,
            keep: args.keep,
        }
    }
}

/// What the demo found.
#[derive(Debug)]
struct Outcome {
    ledger: Ledger,
    status: Status,
    receipted: u64,
    over_http: u64,
    sending: Duration,
    delivering: Duration,
    reading: Duration,
    problems: Vec<String>,
}

/// What runs, and must be stopped on every way out.
#[derive(Debug, Default)]
struct Stage {
    kinesis: Option<DevKinesis>,
    agent: Option<Agent>,
}

/// Runs the demo. Exit code 0 when all is as promised, else 1 with what is not.
pub async fn run(options: DemoOptions) -> ExitCode {
    let workplace = match Workplace::create().await {
        Ok(workplace) => workplace,
        Err(error) => return failed(&error),
    };
    let mut stage = Stage::default();
    let outcome = tokio::select! {
        outcome = perform(&options, &workplace, &mut stage) => outcome,
        reason = interrupted() => Err(reason),
    };
    let ended = stage.clear(workplace).await;
    match (outcome, ended) {
        (Ok(mut outcome), ended) => {
            outcome.problems.extend(ended.err());
            let text = if options.json { report::json(&options, &outcome) } else { report::text(&options, &outcome) };
            match crate::commands::print(&text) {
                Ok(()) if outcome.problems.is_empty() => ExitCode::SUCCESS,
                Ok(()) => ExitCode::FAILURE,
                Err(error) => failed(&format!("cannot write to stdout: {error}")),
            }
        }
        (Err(error), ended) => {
            if let Err(also) = ended {
                tracing::debug!(also, "demo: clearing up");
            }
            failed(&error)
        }
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("forebay demo: {error}");
    ExitCode::FAILURE
}

/// Returns, with the reason, when somebody wants the demo to end.
async fn interrupted() -> String {
    let mut terminated = match signal(SignalKind::terminate()) {
        Ok(terminated) => terminated,
        Err(error) => return format!("cannot listen for signals: {error}"),
    };
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => match pressed {
            Ok(()) => "interrupted".to_owned(),
            Err(error) => format!("cannot listen for signals: {error}"),
        },
        _ = terminated.recv() => "terminated".to_owned(),
    }
}

impl Stage {
    /// Stops the agent, then the embedded Kinesis, and removes the workplace, each whatever became of the others.
    async fn clear(self, workplace: Workplace) -> Result<(), String> {
        let stopped = match self.agent {
            Some(mut agent) => match agent.stop().await {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(agent.with_log(&format!("the agent ended with {status} after SIGTERM")).await),
                Err(error) => Err(error),
            },
            None => Ok(()),
        };
        if let Some(kinesis) = self.kinesis {
            kinesis.stop().await;
        }
        let removed = workplace.remove().await;
        stopped.and(removed)
    }
}

/// The demo from the first process to the last comparison.
async fn perform(options: &DemoOptions, workplace: &Workplace, stage: &mut Stage) -> Result<Outcome, String> {
    if let Some(dir) = &options.keep
        && let Ok(mut entries) = tokio::fs::read_dir(dir).await
        && matches!(entries.next_entry().await, Ok(Some(_)))
    {
        return Err(format!("{} is not empty: the demo keeps its spool in a directory of its own", dir.display()));
    }
    let dev = DevOptions { port: 0, shards: options.shards, stream: STREAM.into(), enforce_limits: false };
    let kinesis = stage.kinesis.insert(DevKinesis::start(dev).await.map_err(|error| error.to_string())?);
    eprintln!("embedded Kinesis at {}, stream {STREAM:?}, {} shards", kinesis.endpoint(), options.shards);
    let wiring = Wiring {
        stream: STREAM,
        endpoint: kinesis.endpoint(),
        aggregate_kpl: options.aggregate_kpl,
        spool: options.keep.as_deref(),
    };
    let agent = stage.agent.insert(Agent::start(workplace, wiring).await?);
    eprintln!("agent on {} and http://{}", agent.socket.display(), agent.http);

    let begun = Instant::now();
    let (receipted, over_http) = send_all(options, agent).await?;
    let sending = begun.elapsed();
    let status = wait_for_delivery(agent, receipted).await?;
    let delivering = begun.elapsed() - sending;

    let reader = Consumer::new(Arc::new(kinesis.client()), ConsumerOptions::loopback(ReadFrom::TrimHorizon), Host::real());
    let ledger = read_back(reader, options).await?;
    let reading = begun.elapsed() - sending - delivering;

    let mut problems = ledger.problems();
    let claims = [
        (receipted, options.events, "events have a receipt"),
        (status.accepted, options.events, "events are accepted, says the agent"),
        (status.delivered, options.events, "events are delivered, says the agent"),
        (status.set_aside, 0, "events are dead, expired or dropped, says the agent"),
    ];
    problems.extend(
        claims
            .into_iter()
            .filter(|(is, should, _)| is != should)
            .map(|(is, should, what)| format!("{is} {what}; {should} expected")),
    );
    Ok(Outcome { ledger, status, receipted, over_http, sending, delivering, reading, problems })
}

/// Sends everything; returns the events that have a receipt, and how many of them went over HTTP.
async fn send_all(options: &DemoOptions, agent: &Agent) -> Result<(u64, u64), String> {
    let (durable, mut receipts) = mpsc::channel(64);
    let mut senders = JoinSet::new();
    let mut over_http = 0;
    for connection in 0..SOCKET_CONNECTIONS + HTTP_CONNECTIONS {
        let mine = move |user: &u32| connection_of(*user) == connection;
        let users: Vec<u32> = (0..options.users).filter(mine).collect();
        let crowd = Crowd::new(users.iter().copied(), options.users, options.events);
        let durable = durable.clone();
        if connection < SOCKET_CONNECTIONS {
            let socket = agent.socket.clone();
            senders.spawn(async move { send::over_socket(&socket, crowd, durable).await });
        } else {
            over_http += crowd.events();
            senders.spawn(send::over_http(agent.http, crowd, durable));
        }
    }
    drop(durable);
    let bar = progress("sending", options.events);
    let mut receipted = 0;
    while let Some(events) = receipts.recv().await {
        receipted += events;
        bar.set_position(receipted);
    }
    bar.finish_and_clear();
    while let Some(sender) = senders.join_next().await {
        if let Err(error) = sender.map_err(|error| error.to_string()).flatten() {
            return Err(agent.with_log(&error).await);
        }
    }
    eprintln!("sent: {} events, each with its receipt", report::count(receipted));
    Ok((receipted, over_http))
}

/// Three of four users go through the socket, the fourth over HTTP; within each, the connections share them evenly.
const fn connection_of(user: u32) -> u32 {
    let (round, place) = (user / 4, user % 4);
    if place == 3 { SOCKET_CONNECTIONS + round % HTTP_CONNECTIONS } else { (round * 3 + place) % SOCKET_CONNECTIONS }
}

/// Waits until the agent holds nothing back any more.
async fn wait_for_delivery(agent: &mut Agent, receipted: u64) -> Result<Status, String> {
    let bar = progress("delivering", receipted);
    let mut last = Status::default();
    let mut moved = Instant::now();
    loop {
        let status = agent.status().await?;
        bar.set_position(status.delivered);
        if status.pending == 0 {
            bar.finish_and_clear();
            eprintln!("delivered: {} events", report::count(status.delivered));
            return Ok(status);
        }
        if status.delivered != last.delivered {
            moved = Instant::now();
        }
        if moved.elapsed() > STALL_TIMEOUT {
            let why = if status.paused.is_empty() { String::new() } else { format!(" ({})", status.paused) };
            let text = format!("nothing was delivered for {STALL_TIMEOUT:?}, {} events are pending{why}", status.pending);
            return Err(agent.with_log(&text).await);
        }
        last = status;
        tokio::time::sleep(STATUS_INTERVAL).await;
    }
}

/// Reads the whole stream and enters all of it.
async fn read_back(mut reader: Consumer, options: &DemoOptions) -> Result<Ledger, String> {
    let bar = progress("reading back", options.events);
    let mut ledger = Ledger::new(options.users, options.events);
    loop {
        let arrival = reader.next_until_tip().await.map_err(|error| format!("cannot read the stream back: {error}"))?;
        let Some(arrival) = arrival else { break };
        ledger.enter(&arrival);
        bar.set_position(ledger.arrived);
        // Everything is in memory here and there: others get their turn.
        tokio::task::yield_now().await;
    }
    bar.finish_and_clear();
    eprintln!("read back: {} records", report::count(ledger.shards.values().map(|shard| shard.records).sum()));
    Ok(ledger)
}

/// A bar on a terminal, nothing elsewhere: the line at its end says enough there.
fn progress(what: &'static str, events: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:>12} [{bar:40}] {human_pos}/{human_len} events");
    let bar = ProgressBar::with_draw_target(Some(events), ProgressDrawTarget::stderr_with_hz(10)).with_message(what);
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quarters_of_the_users_go_through_the_socket_and_every_connection_has_its_share() {
        let mut users = [0; (SOCKET_CONNECTIONS + HTTP_CONNECTIONS) as usize];
        for user in 0..400 {
            users[connection_of(user) as usize] += 1;
        }
        assert_eq!(users, [75, 75, 75, 75, 50, 50]);
    }
}
