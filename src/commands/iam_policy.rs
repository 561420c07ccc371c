//! `forebay iam-policy`: the least rights for the configured streams, as documents for IAM.
//!
//! Place: `main` has read the configuration; this adds what the flags and the environment know, and prints what
//! `iam` makes of it: JSON to stdout, what could not be known to stderr. The network is used only where `--ask` says so:
//! one DescribeStreamSummary a stream, which tells its ARN and the key that encrypts it.
//!
//! Failure: no stream is a configuration error (78), a `--role` that no stream has is a usage error (64); a question
//! without an answer is told on stderr, and what it would have told stays unknown.

use std::process::ExitCode;

use crate::cli::IamPolicyArgs;
use crate::config::{Config, Environment, StreamConfig};
use crate::exit::Exit;
use crate::iam::{self, Document, DocumentKind, Need, StreamArn};
use crate::kinesis::aws::{AwsKinesis, Target};
use crate::kinesis::{KinesisApi as _, PutError, StreamSummary};

/// Prints the documents.
pub async fn run(args: &IamPolicyArgs, config: Option<&Config>, env: &(dyn Environment + Sync)) -> ExitCode {
    let streams = config.map_or(&[][..], |config| &config.streams);
    if streams.is_empty() {
        eprintln!("forebay iam-policy: no stream is configured; name one: forebay iam-policy --stream NAME --region R");
        return Exit::Configuration.into();
    }
    let mut needs: Vec<Need> = streams.iter().map(|stream| need(stream, args, env)).collect();
    if args.ask {
        for (need, stream) in needs.iter_mut().zip(streams) {
            match ask(stream).await {
                Ok(summary) => {
                    need.stream = StreamArn::new(&summary.arn, None, None);
                    need.key = summary.key.filter(|key| !key.is_empty());
                }
                Err(error) => eprintln!("forebay iam-policy: stream {:?} could not be asked for: {error}", stream.name),
            }
        }
    }
    let documents = iam::documents(&needs, args.principal.as_deref());
    let Some(text) = text(&documents, args) else {
        let role = args.role.as_deref().unwrap_or_default();
        eprintln!("forebay iam-policy: no configured stream assumes {role}; see role_arn in `forebay config`");
        return Exit::Usage.into();
    };
    for note in notes(&needs, args) {
        eprintln!("forebay iam-policy: {note}");
    }
    match super::print(&text) {
        Ok(()) => Exit::Good.into(),
        Err(error) => {
            eprintln!("forebay: stdout: {error}");
            Exit::Failed.into()
        }
    }
}

/// What `stream` needs, as far as configuration, flags and environment tell.
fn need(stream: &StreamConfig, args: &IamPolicyArgs, env: &dyn Environment) -> Need {
    let from_env =
        || ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().find_map(|name| env.var(name).ok()).filter(|region| !region.is_empty());
    let region = stream.region.clone().or_else(from_env);
    // A role is where the stream is, or it could not write it without the stream's ARN.
    let account = stream.role_arn.as_deref().and_then(iam::account_in).or(args.account.as_deref());
    Need {
        stream: StreamArn::new(&stream.name, region.as_deref(), account),
        key: args.kms_key.clone(),
        role_arn: stream.role_arn.clone(),
        external_id: stream.external_id.clone(),
        profile: stream.profile.clone(),
    }
}

/// By the stream's role; where that cannot be assumed yet, by whoever runs the command.
async fn ask(stream: &StreamConfig) -> Result<StreamSummary, PutError> {
    let target = Target::from(stream);
    match AwsKinesis::open(target.clone()).summary().await {
        Err(_) if target.role_arn.is_some() => {
            AwsKinesis::open(Target { role_arn: None, external_id: None, ..target }).summary().await
        }
        answer => answer,
    }
}

/// The one document that was asked for, or there is, as it is; several as a list. `None`: there is no such role.
fn text(documents: &[Document], args: &IamPolicyArgs) -> Option<String> {
    let kind = if args.trust { DocumentKind::Trust } else { DocumentKind::Policy };
    let one = match (&args.role, documents) {
        (Some(role), _) => Some(documents.iter().find(|one| one.attach_to == *role && one.kind == kind)?),
        (None, [one]) => Some(one),
        (None, _) => None,
    };
    let json = match one {
        Some(one) => serde_json::to_string_pretty(&one.document),
        None => serde_json::to_string_pretty(documents),
    };
    Some(json.expect("texts and lists become JSON") + "\n")
}

/// What the reader should know of what was printed.
fn notes(needs: &[Need], args: &IamPolicyArgs) -> Vec<String> {
    let mut notes = Vec::new();
    for need in needs {
        let StreamArn { region, account, name, .. } = &need.stream;
        if region.is_none() {
            notes.push(format!(
                "the region of stream {name:?} is not known, so * stands for it: give --region, or AWS_REGION, or --ask AWS"
            ));
        }
        if account.is_none() {
            notes.push(format!("the account of stream {name:?} is not known, so * stands for it: give --account, or --ask AWS"));
        }
        if let (Some(role), None) = (&need.role_arn, &need.external_id)
            && needs.iter().any(|other| other.role_arn.as_ref() == Some(role) && other.external_id.is_some())
        {
            notes.push(format!(
                "stream {name:?} assumes {role} without an external_id, so that the role's trust cannot ask the others for theirs"
            ));
        }
    }
    if args.kms_key.is_none() && !args.ask {
        notes.push("where a stream is encrypted with a key of yours, give --kms-key, or --ask AWS".into());
    }
    if args.principal.is_none() && needs.iter().any(|need| need.role_arn.is_some()) && (args.role.is_none() || args.trust) {
        notes.push("the roles trust their whole account; --principal ARN, whom forebay runs as, narrows that".into());
    }
    notes
}
