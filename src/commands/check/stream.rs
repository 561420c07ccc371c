//! What `check` finds about one stream: who asks, what the stream is, and whether it may be written.
//!
//! First come the questions ([`ask`]), each answered or not, then the judgements, which are plain functions of the answers.
//! Rights are asked of IAM where that is allowed. Where it is not, only reading shows itself, by doing it (ListShards,
//! DescribeStreamSummary): nothing is ever written to find out whether it could be.
//!
//! Absent on purpose: a guess. What nobody answered is told as not known, with what would make it known.

use super::{Finding, Outcome};
use crate::config::{Aggregate, Order, RecordDistribution, StreamConfig, show_bytes};
use crate::iam::{KEY_ACTION, STREAM_ACTIONS, Statement, StreamArn};
use crate::kinesis::aws::account::{Account, Caller, Decision};
use crate::kinesis::aws::{AwsKinesis, Target};
use crate::kinesis::{ErrorClass, KinesisApi as _, PutError, ShardRange, StreamSummary};
use crate::limits;

/// What IAM said of the actions on the stream, in the order of [`STREAM_ACTIONS`].
type Rights = Result<Vec<Decision>, PutError>;

/// What was asked, and answered or not.
#[derive(Debug)]
struct Answers {
    /// Who the stream's requests are signed by. `None`: an emulator, whose credentials are nobody's.
    caller: Option<Result<Caller, PutError>>,
    /// Where a role could not be assumed: who tried.
    base: Option<Caller>,
    summary: Result<StreamSummary, PutError>,
    shards: Result<Vec<ShardRange>, PutError>,
    /// `None`: there was nobody to ask about.
    rights: Option<Rights>,
    /// Of the key that encrypts the stream. `None`: there is none that needs a right, or nobody to ask about.
    key: Option<Result<Decision, PutError>>,
    /// The stream's ARN, as far as it is known.
    arn: StreamArn,
    /// Whose policy counts, as far as it is known.
    principal: Option<String>,
}

/// Asks, then judges. `event_bytes_max` is the largest event that one of its sources takes.
pub(super) async fn check(config: StreamConfig, event_bytes_max: usize) -> Vec<Finding> {
    let account = match Account::open(&Target::from(&config)).await {
        Ok(account) => account,
        Err(error) => return vec![Finding::failure("credentials", error.message)],
    };
    let answers = ask(&config, &account).await;
    let credentials = judge_caller(&config, &answers);
    if credentials.outcome == Outcome::Failure {
        // All else would fail for the same reason.
        return vec![credentials];
    }
    let mut findings = vec![credentials, judge_stream(&answers)];
    if let Ok(summary) = &answers.summary {
        findings.push(judge_mode(&config, summary));
        findings.push(judge_encryption(&answers, summary));
        findings.push(judge_limits(&config, event_bytes_max, summary));
    } else {
        findings.extend(judge_unknown_mode(&config));
        findings.extend(judge_unknown_limits(event_bytes_max));
    }
    findings.push(judge_shards(&config, &answers));
    findings.push(judge_writing(&answers));
    findings
}

async fn ask(config: &StreamConfig, account: &Account) -> Answers {
    let kinesis = AwsKinesis::connect(config);
    let caller = if account.may_be_asked() { Some(account.caller().await) } else { None };
    let known = caller.as_ref().and_then(|caller| caller.as_ref().ok());
    let base = match &caller {
        Some(Err(error)) if is_final(error) && config.role_arn.is_some() => base_caller(config).await,
        _ => None,
    };
    let (summary, shards) = match &caller {
        Some(Err(error)) if is_final(error) => (Err(error.clone()), Err(error.clone())),
        _ => tokio::join!(kinesis.summary(), kinesis.list_shards()),
    };
    let of_account = known.map(|caller| caller.account.as_str());
    let arn = match &summary {
        Ok(summary) => StreamArn::new(&summary.arn, None, None),
        Err(_) => StreamArn::new(&config.name, Some(account.region()), of_account),
    };
    // The role's own ARN has its path, which a session's has not.
    let principal = known.and_then(|caller| config.role_arn.clone().or_else(|| caller.principal()));
    let rights = match &principal {
        Some(principal) => Some(account.simulate(principal, &STREAM_ACTIONS, &arn.to_string()).await),
        None => None,
    };
    let key = match (&principal, summary.as_ref().ok().and_then(|summary| Statement::on_key(summary.key.as_deref()?, &arn))) {
        (Some(principal), Some(statement)) => {
            let decided = account.simulate(principal, &[KEY_ACTION], statement.first_resource()).await;
            Some(decided.map(|decided| decided[0]))
        }
        _ => None,
    };
    Answers { caller, base, summary, shards, rights, key, arn, principal }
}

/// Who would assume the role.
async fn base_caller(config: &StreamConfig) -> Option<Caller> {
    let target = Target { role_arn: None, external_id: None, ..Target::from(config) };
    Account::open(&target).await.ok()?.caller().await.ok()
}

fn whose(answers: &Answers) -> String {
    answers.principal.clone().unwrap_or_else(|| "the principal that forebay runs as".into())
}

fn is_denied(error: &PutError) -> bool {
    error.code.contains("AccessDenied") || error.code.contains("NotAuthorized")
}

/// Whether the credentials are missing or refused, so that nothing else would be answered either. A token service that cannot be
/// reached says nothing of them: in a private subnet it may well be Kinesis alone that can.
fn is_final(error: &PutError) -> bool {
    error.class == ErrorClass::Configuration && !is_denied(error)
}

fn judge_caller(config: &StreamConfig, answers: &Answers) -> Finding {
    const ABOUT: &str = "credentials";
    match &answers.caller {
        None => match &answers.summary {
            Err(error) if error.code == "NoCredentials" => Finding::failure(ABOUT, error.message.clone()),
            _ => Finding::unknown(
                ABOUT,
                "the endpoint is an emulator's on this machine, so AWS is not asked who they are (AWS_ENDPOINT_URL names one that can be)",
            ),
        },
        Some(Ok(caller)) => Finding::ok(ABOUT, format!("{}, account {}", caller.arn, caller.account)),
        Some(Err(error)) => match (&config.role_arn, &answers.base) {
            (Some(role), Some(base)) => {
                let who = base.principal().unwrap_or_else(|| base.arn.clone());
                let ids = config.external_id.iter().cloned().collect();
                Finding::failure(ABOUT, format!("{} could not assume {role}: {error}", base.arn))
                    .remedy(format!("the trust policy of {role}"), Statement::of_trust(who.clone(), ids))
                    .remedy(who, Statement::on_roles(vec![role.clone()]))
            }
            _ if error.code == "NoCredentials" => Finding::failure(ABOUT, error.message.clone()),
            _ if is_final(error) => Finding::failure(ABOUT, format!("they are refused: {error}")),
            _ => Finding::unknown(ABOUT, format!("the region's token service (STS) could not be asked who they are: {error}")),
        },
    }
}

fn judge_stream(answers: &Answers) -> Finding {
    const ABOUT: &str = "stream";
    let arn = &answers.arn;
    match &answers.summary {
        Ok(summary) => match summary.status.as_str() {
            "ACTIVE" => Finding::ok(ABOUT, format!("{arn} is active")),
            "UPDATING" => Finding::ok(ABOUT, format!("{arn} is being changed, and takes events meanwhile")),
            "CREATING" => Finding::warning(ABOUT, format!("{arn} is still being created: events wait until it is active")),
            other => Finding::failure(ABOUT, format!("{arn} is {other}: it takes no events")),
        },
        Err(error) if error.code.contains("ResourceNotFound") => Finding::failure(
            ABOUT,
            format!("{arn} does not exist: see name, region and account, or create it"),
        ),
        Err(error) if is_denied(error) => Finding::warning(
            ABOUT,
            "kinesis:DescribeStreamSummary is not allowed: whether keys decide the shard (mode), encryption and limits stay unknown",
        )
        .remedy(whose(answers), Statement::on_stream(&["kinesis:DescribeStreamSummary"], arn)),
        Err(error) => Finding::failure(ABOUT, format!("Kinesis does not tell of {arn}: {error}")),
    }
}

fn judge_mode(config: &StreamConfig, summary: &StreamSummary) -> Finding {
    const ABOUT: &str = "mode";
    let capacity = match summary.on_demand {
        Some(true) => "on demand",
        Some(false) => "provisioned",
        None => "capacity mode not told",
    };
    if summary.ignores_keys != Some(true) {
        return Finding::ok(ABOUT, format!("{capacity}; a record's key decides its shard"));
    }
    let mut lost = Vec::new();
    if config.order == Order::Key {
        lost.push("order = \"key\" cannot be kept");
    }
    if config.aggregate == Aggregate::Kpl {
        lost.push(
            "consumers drop aggregates that lie in a strange shard, so one event a record is sent, as with aggregate = \"off\"",
        );
    }
    let text = format!("{capacity}; the stream spreads records by itself (record distribution AUTO) and takes no notice of keys");
    if lost.is_empty() { Finding::ok(ABOUT, text) } else { Finding::warning(ABOUT, format!("{text}: {}", lost.join(", and "))) }
}

/// Nobody says whether keys decide.
fn judge_unknown_mode(config: &StreamConfig) -> Option<Finding> {
    let waits = config.aggregate == Aggregate::Kpl && config.record_distribution == RecordDistribution::Ask;
    waits.then(|| {
        Finding::warning(
            "mode",
            "where it may not be read, one event a record is sent instead of aggregate = \"kpl\", because consumers drop \
             aggregates where keys are ignored (record distribution AUTO); record_distribution = \"keys\" says that they are not",
        )
    })
}

fn judge_encryption(answers: &Answers, summary: &StreamSummary) -> Finding {
    const ABOUT: &str = "encryption";
    let Some(key) = &summary.key else { return Finding::ok(ABOUT, "the stream is not encrypted by a key of KMS") };
    let Some(statement) = Statement::on_key(key, &answers.arn).filter(|_| !key.is_empty()) else {
        return Finding::ok(
            ABOUT,
            format!("encrypted with {}, which needs no right", if key.is_empty() { "a key" } else { key }),
        );
    };
    match &answers.key {
        Some(Ok(Decision::Allowed)) => Finding::ok(ABOUT, format!("encrypted with {key}; {KEY_ACTION} is allowed")),
        Some(Ok(Decision::Denied)) => Finding::failure(ABOUT, format!("a statement denies {KEY_ACTION} on {key}: take it away")),
        Some(Ok(Decision::NotAllowed)) => Finding::warning(
            ABOUT,
            format!("{KEY_ACTION} on {key} is not allowed by the caller's policies; only the key's own policy, which is not seen from here, could"),
        )
        .remedy(whose(answers), statement),
        Some(Err(_)) | None => {
            Finding::unknown(ABOUT, format!("encrypted with {key}; whether {KEY_ACTION} is allowed could not be asked"))
                .remedy(whose(answers), statement)
        }
    }
}

fn judge_limits(config: &StreamConfig, event_bytes_max: usize, summary: &StreamSummary) -> Finding {
    const ABOUT: &str = "limits";
    let most = summary.record_bytes_max.unwrap_or(limits::RECORD_BYTES_MAX);
    let shown = show_bytes(most as u64);
    if config.record_bytes_max > most {
        let ours = show_bytes(config.record_bytes_max as u64);
        return Finding::failure(ABOUT, format!("records up to {shown}, but record_bytes_max is {ours}: make it smaller"));
    }
    let event = limits::event_bytes_of(most.max(limits::RECORD_BYTES_MAX));
    if event_bytes_max > event {
        let [wanted, event] = [event_bytes_max, event].map(|bytes| show_bytes(bytes as u64));
        let kib = (event_bytes_max + limits::KEY_BYTES_MAX + limits::MARGIN_BYTES).div_ceil(1024);
        return Finding::warning(
            ABOUT,
            format!(
                "records up to {shown}, but max_event_bytes is {wanted}: events over {event} are refused until the stream's \
                 MaxRecordSizeInKiB is {kib} (UpdateMaxRecordSize)"
            ),
        );
    }
    let request = show_bytes(config.request_bytes_max as u64);
    if config.request_bytes_max > limits::REQUEST_BYTES_MAX {
        return Finding::warning(ABOUT, format!("records up to {shown}; requests of {request} need the account's newer quota"));
    }
    Finding::ok(ABOUT, format!("records up to {shown}, requests up to {request}"))
}

/// Nobody says what the stream takes.
fn judge_unknown_limits(event_bytes_max: usize) -> Option<Finding> {
    (event_bytes_max > limits::EVENT_BYTES_MAX).then(|| {
        let [wanted, event] = [event_bytes_max, limits::EVENT_BYTES_MAX].map(|bytes| show_bytes(bytes as u64));
        Finding::warning(
            "limits",
            format!(
                "max_event_bytes is {wanted}, but as long as the stream's limit cannot be read, events over {event} are refused"
            ),
        )
    })
}

fn judge_shards(config: &StreamConfig, answers: &Answers) -> Finding {
    const ABOUT: &str = "shards";
    match &answers.shards {
        Ok(shards) => {
            let open = shards.iter().filter(|shard| shard.open).count() as u64;
            if open == 0 {
                return Finding::failure(ABOUT, "no shard is open, so nothing takes events");
            }
            let (bytes, records) = (open * limits::SHARD_BYTES_PER_SECOND, open * limits::SHARD_RECORDS_PER_SECOND);
            let events = match config.aggregate {
                Aggregate::Off => "one event each",
                Aggregate::Kpl | Aggregate::Lines => "many events each",
            };
            let advice = match config.aggregate {
                Aggregate::Off => format!(
                    "; of events below {} bytes the records are the limit, which aggregate = \"kpl\" or \"lines\" would lift, for \
                     consumers that take such records apart",
                    limits::SHARD_BYTES_PER_SECOND / limits::SHARD_RECORDS_PER_SECOND
                ),
                Aggregate::Kpl | Aggregate::Lines => String::new(),
            };
            let shards = if open == 1 { "1 open shard takes".to_owned() } else { format!("{open} open shards take") };
            Finding::ok(ABOUT, format!("{shards} {} and {records} records a second, {events}{advice}", show_bytes(bytes)))
        }
        Err(error) if is_denied(error) => {
            let aggregates = match config.aggregate {
                Aggregate::Off => String::new(),
                other => format!(" instead of aggregate = {:?}", other.name()),
            };
            Finding::warning(
                ABOUT,
                format!("kinesis:ListShards is not allowed: one event a record is sent{aggregates}, and what each shard takes is found by trying"),
            )
            .remedy(whose(answers), Statement::on_stream(&["kinesis:ListShards"], &answers.arn))
        }
        Err(error) => Finding::failure(ABOUT, format!("they could not be listed: {error}")),
    }
}

fn judge_writing(answers: &Answers) -> Finding {
    const ABOUT: &str = "writing";
    let (arn, rights) = (&answers.arn, &answers.rights);
    let decided = match rights {
        Some(Ok(decided)) => decided,
        Some(Err(error)) => {
            return Finding::unknown(
                ABOUT,
                format!(
                    "IAM could not be asked whether PutRecords is allowed (iam:SimulatePrincipalPolicy): {error}; it must be:"
                ),
            )
            .remedy(whose(answers), Statement::on_stream(&STREAM_ACTIONS, arn));
        }
        None => return Finding::unknown(ABOUT, "it is not known whose policies IAM could be asked about"),
    };
    let of =
        |action: &str| STREAM_ACTIONS.iter().zip(decided).find(|(known, _)| **known == action).map(|(_, decision)| *decision);
    let missing: Vec<&str> = STREAM_ACTIONS.into_iter().filter(|action| of(action) != Some(Decision::Allowed)).collect();
    let statement = Statement::on_stream(&missing, arn);
    match (of("kinesis:PutRecords"), of("kinesis:PutRecord")) {
        (Some(Decision::Allowed), _) if missing.is_empty() => {
            Finding::ok(ABOUT, "kinesis:PutRecords and all else that is called is allowed")
        }
        (Some(Decision::Allowed), _) => {
            Finding::warning(ABOUT, format!("kinesis:PutRecords is allowed; not allowed is {}", missing.join(", ")))
                .remedy(whose(answers), statement)
        }
        (denied, Some(Decision::Allowed)) => {
            let found = Finding::warning(
                ABOUT,
                "only kinesis:PutRecord is allowed, as in older policies of event destinations: records are sent one by one, which is slower",
            );
            // Where a statement denies it, adding another does not help.
            if denied == Some(Decision::Denied) { found } else { found.remedy(whose(answers), statement) }
        }
        (Some(Decision::Denied), _) => Finding::failure(
            ABOUT,
            "a statement denies kinesis:PutRecords (a Deny, a permissions boundary or the organisation's): allowing it elsewhere does not help",
        ),
        _ => Finding::failure(ABOUT, "kinesis:PutRecords is not allowed").remedy(whose(answers), statement),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "arn:aws:iam::123456789012:role/team/events";

    fn config(text: &str) -> StreamConfig {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("forebay.toml");
        #[expect(clippy::disallowed_methods, reason = "a configuration file of the test")]
        std::fs::write(&file, format!("[[stream]]\nname = \"clicks\"\nregion = \"eu-west-1\"\n{text}")).unwrap();
        let request =
            crate::config::Request { file: Some(file), flags: Vec::new(), dev: false, purpose: crate::config::Purpose::Agent };
        crate::config::load(&crate::config::RealEnvironment, &request).unwrap().config.streams.remove(0)
    }

    fn error(code: &str) -> PutError {
        PutError { class: ErrorClass::Configuration, code: code.into(), message: "no".into() }
    }

    fn summary() -> StreamSummary {
        StreamSummary {
            arn: "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks".into(),
            status: "ACTIVE".into(),
            on_demand: Some(true),
            ignores_keys: Some(false),
            record_bytes_max: Some(1 << 20),
            key: None,
        }
    }

    fn answers() -> Answers {
        let shard = |id: &str, open| ShardRange { id: id.into(), first_hash: 0, last_hash: 1, open, parents: Vec::new() };
        Answers {
            caller: Some(Ok(Caller {
                arn: "arn:aws:sts::123456789012:assumed-role/events/x".into(),
                account: "123456789012".into(),
            })),
            base: None,
            summary: Ok(summary()),
            shards: Ok(vec![shard("a", true), shard("b", true), shard("c", false)]),
            rights: Some(Ok(vec![Decision::Allowed; 4])),
            key: None,
            arn: StreamArn::new("clicks", Some("eu-west-1"), Some("123456789012")),
            principal: Some(ROLE.into()),
        }
    }

    /// Outcome and text; with the one remedy's place and statement behind it.
    fn told(finding: &Finding) -> (Outcome, String) {
        let remedies: Vec<String> =
            finding.remedies.iter().map(|remedy| format!(" [{} {}]", remedy.add_to, remedy.statement.to_json())).collect();
        (finding.outcome, finding.text.clone() + &remedies.concat())
    }

    #[test]
    fn a_missing_right_to_write_brings_the_statement_to_add() {
        let with = |decided: [Decision; 4]| judge_writing(&Answers { rights: Some(Ok(decided.to_vec())), ..answers() });
        use Decision::{Allowed, Denied, NotAllowed};
        assert_eq!(with([Allowed; 4]).outcome, Outcome::Ok);
        let (outcome, text) = told(&with([Allowed, Allowed, NotAllowed, NotAllowed]));
        assert_eq!(outcome, Outcome::Failure);
        let statement = "\"Action\":[\"kinesis:PutRecord\",\"kinesis:PutRecords\"],\
                         \"Resource\":[\"arn:aws:kinesis:eu-west-1:123456789012:stream/clicks\"]";
        assert!(text.contains(ROLE) && text.contains(statement), "{text}");
        let (outcome, text) = told(&with([NotAllowed, NotAllowed, Allowed, NotAllowed]));
        assert!(outcome == Outcome::Warning && text.contains("only kinesis:PutRecord is allowed"), "{text}");
        let (outcome, text) = told(&with([NotAllowed, Allowed, Allowed, Allowed]));
        assert!(outcome == Outcome::Warning && text.contains("not allowed is kinesis:DescribeStreamSummary"), "{text}");
        let (outcome, text) = told(&with([Allowed, Allowed, Allowed, Denied]));
        assert!(outcome == Outcome::Warning && !text.contains('['), "a statement would not help: {text}");
        let (outcome, text) = told(&with([Allowed, Allowed, NotAllowed, Denied]));
        assert!(outcome == Outcome::Failure && !text.contains('['), "a statement would not help: {text}");
    }

    #[test]
    fn where_iam_is_not_to_be_asked_nothing_is_said_to_be_missing() {
        let finding = judge_writing(&Answers { rights: Some(Err(error("AccessDenied"))), ..answers() });
        assert_eq!(finding.outcome, Outcome::Unknown);
        assert!(finding.text.contains("iam:SimulatePrincipalPolicy"), "{}", finding.text);
        assert_eq!(judge_writing(&Answers { rights: None, ..answers() }).outcome, Outcome::Unknown);
    }

    #[test]
    fn reading_shows_its_own_rights() {
        let (outcome, text) =
            told(&judge_shards(&config(""), &Answers { shards: Err(error("AccessDeniedException")), ..answers() }));
        assert!(outcome == Outcome::Warning && text.contains("\"Action\":[\"kinesis:ListShards\"]"), "{text}");
        let (outcome, text) = told(&judge_stream(&Answers { summary: Err(error("AccessDeniedException")), ..answers() }));
        assert!(outcome == Outcome::Warning && text.contains("\"Action\":[\"kinesis:DescribeStreamSummary\"]"), "{text}");
        let missing = judge_stream(&Answers { summary: Err(error("ResourceNotFoundException")), ..answers() });
        assert!(missing.outcome == Outcome::Failure && missing.text.contains("does not exist"), "{missing:?}");
        let (outcome, text) = told(&judge_shards(&config("aggregate = \"kpl\"\n"), &answers()));
        assert_eq!(outcome, Outcome::Ok);
        assert_eq!(text, "2 open shards take 2MiB and 2000 records a second, many events each");
        let (outcome, text) = told(&judge_shards(&config(""), &answers()));
        assert_eq!(outcome, Outcome::Ok);
        assert!(text.contains("one event each; of events below 1048 bytes") && text.contains("\"kpl\""), "{text}");
    }

    #[test]
    fn a_stream_that_ignores_keys_is_a_warning_to_whom_keys_matter() {
        let auto = StreamSummary { ignores_keys: Some(true), ..summary() };
        let both = judge_mode(&config("aggregate = \"kpl\"\n"), &auto);
        assert_eq!(both.outcome, Outcome::Warning);
        assert!(both.text.contains("order = \"key\"") && both.text.contains("aggregate = \"off\""), "{}", both.text);
        assert_eq!(judge_mode(&config("order = \"none\"\n"), &auto).outcome, Outcome::Ok);
        assert_eq!(judge_mode(&config(""), &summary()).outcome, Outcome::Ok);
        let unknown = judge_unknown_mode(&config("aggregate = \"kpl\"\n")).expect("a warning");
        assert!(unknown.outcome == Outcome::Warning && unknown.text.contains("one event a record"), "{}", unknown.text);
        let vouched = config("aggregate = \"kpl\"\nrecord_distribution = \"keys\"\n");
        assert!(judge_unknown_mode(&vouched).is_none() && judge_unknown_mode(&config("")).is_none());
    }

    #[test]
    fn a_customers_key_needs_its_right_and_the_services_own_does_not() {
        let judged = |key: &str, answer| {
            let encrypted = StreamSummary { key: Some(key.into()), ..summary() };
            told(&judge_encryption(&Answers { key: answer, ..answers() }, &encrypted))
        };
        let arn = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        assert_eq!(judged(arn, Some(Ok(Decision::Allowed))).0, Outcome::Ok);
        let (outcome, text) = judged(arn, Some(Ok(Decision::NotAllowed)));
        assert!(outcome == Outcome::Warning && text.contains("\"Action\":[\"kms:GenerateDataKey\"]"), "{text}");
        assert_eq!(judged(arn, Some(Err(error("AccessDenied")))).0, Outcome::Unknown);
        assert_eq!(judged("alias/aws/kinesis", None).0, Outcome::Ok);
        assert_eq!(judged("", None).0, Outcome::Ok);
        assert_eq!(judge_encryption(&answers(), &summary()).outcome, Outcome::Ok);
    }

    #[test]
    fn a_role_that_is_not_given_brings_the_trust_and_the_right_to_assume_it() {
        let config = config(&format!("role_arn = \"{ROLE}\"\nexternal_id = \"source-1\"\n"));
        let base = Caller { arn: "arn:aws:iam::999999999999:user/app".into(), account: "999999999999".into() };
        let refused = Answers { caller: Some(Err(error("NoCredentials"))), base: Some(base), ..answers() };
        let (outcome, text) = told(&judge_caller(&config, &refused));
        assert_eq!(outcome, Outcome::Failure);
        let trust = "\"Principal\":{\"AWS\":\"arn:aws:iam::999999999999:user/app\"}";
        assert!(text.contains(trust) && text.contains("\"sts:ExternalId\":[\"source-1\"]"), "{text}");
        assert!(text.contains(&format!("\"Action\":[\"sts:AssumeRole\"],\"Resource\":[\"{ROLE}\"]")), "{text}");
    }

    #[test]
    fn limits_are_compared_with_what_is_configured() {
        let judged = |text: &str, summary: &StreamSummary| judge_limits(&config(text), limits::EVENT_BYTES_MAX, summary).outcome;
        assert_eq!(judged("", &summary()), Outcome::Ok);
        assert_eq!(judged("request_bytes_max = \"9MiB\"\n", &summary()), Outcome::Warning);
        let small = StreamSummary { record_bytes_max: Some(128 << 10), ..summary() };
        assert_eq!(judged("", &small), Outcome::Failure);
    }

    #[test]
    fn events_that_the_stream_does_not_take_are_told_with_the_number_to_set() {
        let finding = judge_limits(&config(""), 4 << 20, &summary());
        assert_eq!(finding.outcome, Outcome::Warning);
        assert!(finding.text.contains("max_event_bytes is 4MiB") && finding.text.contains("is 4098 "), "{}", finding.text);
        let raised = StreamSummary { record_bytes_max: Some(4098 << 10), ..summary() };
        assert_eq!(judge_limits(&config(""), 4 << 20, &raised).outcome, Outcome::Ok);
        let unknown = judge_unknown_limits(4 << 20).expect("a warning");
        assert!(unknown.outcome == Outcome::Warning && unknown.text.contains("over 1022KiB are refused"), "{}", unknown.text);
        assert!(judge_unknown_limits(limits::EVENT_BYTES_MAX).is_none());
    }

    #[test]
    fn refused_credentials_are_a_failure_and_a_silent_token_service_is_not() {
        let judged = |class, code: &str| {
            let error = PutError { class, ..error(code) };
            judge_caller(&config(""), &Answers { caller: Some(Err(error)), ..answers() }).outcome
        };
        assert_eq!(judged(ErrorClass::Configuration, "ExpiredToken"), Outcome::Failure);
        assert_eq!(judged(ErrorClass::Configuration, "NoCredentials"), Outcome::Failure);
        assert_eq!(judged(ErrorClass::Transient, "connect"), Outcome::Unknown);
        assert_eq!(judged(ErrorClass::UnknownOutcome, "timeout"), Outcome::Unknown);
        assert_eq!(judged(ErrorClass::Configuration, "AccessDenied"), Outcome::Unknown);
    }

    #[test]
    fn an_emulators_credentials_are_shown_to_nobody_else() {
        let finding = judge_caller(&config(""), &Answers { caller: None, ..answers() });
        assert_eq!(finding.outcome, Outcome::Unknown);
    }
}
