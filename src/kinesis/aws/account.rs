//! Who the agent is to AWS, and what it may do: the questions of `forebay check`.
//!
//! Place: beside the client of a stream, with the same session: the same credentials, role, proxies and kinds of
//! endpoint. STS is asked through its SDK. IAM is asked one question only, SimulatePrincipalPolicy, which does not pay for
//! an SDK of a hundred and sixty calls: it is a form, signed and sent here.
//!
//! Failure: a [`PutError`], as for the stream. Every question has its time limit. Absent on purpose: any change to anything.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sdk_kinesis::config::http::HttpRequest;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Connector, tls};
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorSettings};
use http_body_util::{BodyExt as _, Limited};

use super::{Departure, Target, classify, client};
use crate::iam::partition_of;
use crate::kinesis::{ErrorClass, PutError};

/// The largest answer of IAM that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The longest that one question may take, credentials included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that a connection may take to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Version of IAM's interface.
const IAM_VERSION: &str = "2010-05-08";

/// Who signs the requests of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its ARN: a user, an assumed role with its session, an account's root.
    pub arn: String,
    /// Its account, twelve digits.
    pub account: String,
}

impl Caller {
    /// The principal whose policies count, as IAM knows it: for an assumed role, the role. The path of a role stands in no
    /// session's ARN and is lost. `None` for an account's root and for federated users, which IAM does not simulate.
    #[must_use]
    pub fn principal(&self) -> Option<String> {
        let mut parts = self.arn.splitn(6, ':');
        let (partition, resource) = (parts.nth(1)?, parts.nth(3)?);
        let account = &self.account;
        match resource.split_once('/')? {
            ("user" | "role", _) => Some(self.arn.clone()),
            ("assumed-role", rest) => {
                let role = rest.split('/').next()?;
                Some(format!("arn:{partition}:iam::{account}:role/{role}"))
            }
            _ => None,
        }
    }
}

/// What IAM says of one action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A statement allows it and none denies it.
    Allowed,
    /// No statement allows it.
    NotAllowed,
    /// A statement denies it; allowing it elsewhere does not help.
    Denied,
}

/// The account behind a stream's credentials.
#[derive(Debug)]
pub struct Account {
    target: Target,
    session: SdkConfig,
}

impl Account {
    /// Looks for region and credentials as the stream's client does.
    ///
    /// # Errors
    /// Configuration, when no region is named anywhere.
    pub async fn open(target: &Target) -> Result<Self, PutError> {
        Ok(Self { target: target.clone(), session: client::session(target, None).await? })
    }

    /// The region in force.
    #[must_use]
    pub fn region(&self) -> &str {
        self.session.region().map_or("us-east-1", AsRef::as_ref)
    }

    /// Whether STS and IAM may be asked: an emulator's made-up credentials are nothing to show to AWS itself, unless
    /// environment or profile name an emulator for these two as well.
    #[must_use]
    pub fn may_be_asked(&self) -> bool {
        !self.target.is_loopback() || self.session.endpoint_url().is_some() || named_endpoint("STS").is_some()
    }

    /// GetCallerIdentity, which nobody can be denied.
    ///
    /// # Errors
    /// Missing or refused credentials, or no answer.
    pub async fn caller(&self) -> Result<Caller, PutError> {
        let config = aws_sdk_sts::config::Builder::from(&self.session)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_timeout(TIMEOUT).build());
        let client = aws_sdk_sts::Client::from_conf(config.build());
        let departure = Departure::default();
        let answer = client.get_caller_identity().customize().interceptor(departure.clone()).send().await;
        let answer = answer.map_err(|error| match departure.left() {
            true => classify::answered(&error),
            false => classify::never_left(&error, &self.target),
        })?;
        match (answer.arn, answer.account) {
            (Some(arn), Some(account)) => Ok(Caller { arn, account }),
            _ => Err(classify::bad_answer("no ARN and account".into())),
        }
    }

    /// SimulatePrincipalPolicy: what `principal` may do with `resource`, for each of `actions`, in their order. Policies of
    /// resources and keys are not seen by it.
    ///
    /// # Errors
    /// The caller may not ask, the principal is not known, or no answer.
    pub async fn simulate(&self, principal: &str, actions: &[&str], resource: &str) -> Result<Vec<Decision>, PutError> {
        let names: Vec<String> = (1..=actions.len()).map(|n| format!("ActionNames.member.{n}")).collect();
        let mut form = vec![
            ("Action", "SimulatePrincipalPolicy"),
            ("Version", IAM_VERSION),
            ("PolicySourceArn", principal),
            ("ResourceArns.member.1", resource),
        ];
        form.extend(names.iter().map(String::as_str).zip(actions.iter().copied()));
        let fields: Vec<String> = form.into_iter().map(|(name, value)| format!("{name}={}", form_encoded(value))).collect();
        let answer = tokio::time::timeout(TIMEOUT, self.ask_iam(fields.join("&"))).await;
        decisions(&answer.map_err(|_| unasked("answered", &format!("no answer within {TIMEOUT:?}")))??, actions)
    }

    /// One signed form; the answer's text.
    async fn ask_iam(&self, body: String) -> Result<String, PutError> {
        let (url, region) = self.iam_endpoint();
        let provider = self.session.credentials_provider().ok_or_else(|| unasked("signed", &"no credentials"))?;
        let credentials = provider.provide_credentials().await.map_err(|error| unasked("signed", &classify::chain(&error)))?;
        let (identity, time) = (credentials.into(), self.session.time_source().unwrap_or_default().now());
        let parameters = v4::SigningParams::builder().identity(&identity).region(&region).name("iam").time(time);
        let parameters = parameters.settings(SigningSettings::default()).build().map_err(|error| unasked("signed", &error))?;
        let form = ("content-type", "application/x-www-form-urlencoded");
        let signable = SignableRequest::new("POST", url.as_str(), [form].into_iter(), SignableBody::Bytes(body.as_bytes()));
        let signed = signable.and_then(|request| sign(request, &parameters.into())).map_err(|error| unasked("signed", &error))?;

        let mut request = HttpRequest::new(body.as_str().into());
        request.set_method("POST").map_err(|error| unasked("sent", &error))?;
        request.set_uri(url.as_str()).map_err(|error| unasked("sent", &error))?;
        request.headers_mut().insert(form.0, form.1);
        for (name, value) in signed.output().headers() {
            request.headers_mut().insert(name.to_owned(), value.to_owned());
        }
        let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(TIMEOUT).build();
        let mut connector = Connector::builder().connector_settings(settings).proxy_config(ProxyConfig::from_env());
        connector.set_sleep_impl(self.session.sleep_impl());
        let connector = connector.tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc)).build();
        let response = connector.call(request).await.map_err(|error| unasked("sent", &classify::chain(&error)))?;
        let status = response.status().as_u16();
        let body =
            Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| unasked("answered", &error))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if (200..300).contains(&status) { Ok(text) } else { Err(refusal(status, &text)) }
    }

    /// IAM's one endpoint in the partition, and the region that signs for it.
    fn iam_endpoint(&self) -> (String, String) {
        let (host, region) = iam_host(partition_of(self.region()), self.session.use_fips() == Some(true));
        let own = named_endpoint("IAM").or_else(|| self.session.endpoint_url().map(str::to_owned));
        (own.unwrap_or_else(|| format!("https://{host}/")), region.to_owned())
    }
}

/// An endpoint for one service, as all AWS tools read it.
fn named_endpoint(service: &str) -> Option<String> {
    std::env::var(format!("AWS_ENDPOINT_URL_{service}")).ok().filter(|url| !url.is_empty())
}

/// Host and signing region of IAM in a partition. AWS' endpoint tables, 2026-11.
fn iam_host(partition: &str, fips: bool) -> (&'static str, &'static str) {
    match partition {
        "aws-cn" => ("iam.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        "aws-us-gov" => ("iam.us-gov.amazonaws.com", "us-gov-west-1"),
        "aws-iso" => ("iam.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
        "aws-iso-b" => ("iam.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
        "aws-iso-e" => ("iam.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1"),
        "aws-iso-f" => ("iam.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1"),
        "aws-eusc" => ("iam.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        _ if fips => ("iam-fips.amazonaws.com", "us-east-1"),
        _ => ("iam.amazonaws.com", "us-east-1"),
    }
}

/// The question could not be put.
fn unasked(what: &str, error: &dyn std::fmt::Display) -> PutError {
    let message = format!("the question to IAM could not be {what}: {error}");
    PutError { class: ErrorClass::Transient, code: "NoAnswer".into(), message }
}

/// IAM's refusal: code and message of its XML, or the bare status.
fn refusal(status: u16, text: &str) -> PutError {
    let code = elements(text, "Code").next().map_or_else(|| format!("HTTP {status}"), str::to_owned);
    let message = elements(text, "Message").next().unwrap_or("IAM gave no reason").to_owned();
    PutError { class: ErrorClass::Configuration, code, message }
}

/// What stands between the tags of each element of this name. Enough for answers whose values are words and ARNs.
fn elements<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = &rest[rest.find(&open)? + open.len()..];
        let (value, after) = rest.split_at(rest.find(&close)?);
        rest = after;
        Some(value)
    })
}

/// The decision for each of `actions`; the answer may have them in any order, and in each the decision before the name.
fn decisions(text: &str, actions: &[&str]) -> Result<Vec<Decision>, PutError> {
    let decided: Vec<(&str, &str)> = elements(text, "EvalActionName").zip(elements(text, "EvalDecision")).collect();
    let decision = |action: &&str| match decided.iter().find(|(name, _)| name.eq_ignore_ascii_case(action)) {
        Some((_, "allowed")) => Ok(Decision::Allowed),
        Some((_, "implicitDeny")) => Ok(Decision::NotAllowed),
        Some((_, "explicitDeny")) => Ok(Decision::Denied),
        _ => Err(classify::bad_answer(format!("no decision about {action}"))),
    };
    actions.iter().map(decision).collect()
}

/// As `application/x-www-form-urlencoded` wants it: all but letters, digits and `-_.` in percent.
fn form_encoded(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(arn: &str) -> Option<String> {
        Caller { arn: arn.into(), account: "123456789012".into() }.principal()
    }

    #[test]
    fn the_principal_of_a_session_is_its_role() {
        let role = Some("arn:aws:iam::123456789012:role/events".to_owned());
        assert_eq!(principal("arn:aws:sts::123456789012:assumed-role/events/i-0abc"), role);
        assert_eq!(
            principal("arn:aws-cn:sts::123456789012:assumed-role/events/x"),
            Some("arn:aws-cn:iam::123456789012:role/events".into())
        );
        let user = "arn:aws:iam::123456789012:user/team/app";
        assert_eq!(principal(user).as_deref(), Some(user));
        for odd in ["arn:aws:iam::123456789012:root", "arn:aws:sts::123456789012:federated-user/x", "", "arn:aws"] {
            assert_eq!(principal(odd), None, "{odd}");
        }
    }

    #[test]
    fn decisions_are_read_in_either_order_and_a_missing_one_is_a_bad_answer() {
        let text = "<EvaluationResults><member><MatchedStatements><member/></MatchedStatements>\
                    <EvalDecision>allowed</EvalDecision><EvalActionName>kinesis:PutRecord</EvalActionName></member>\
                    <member><EvalActionName>kinesis:PutRecords</EvalActionName><EvalDecision>implicitDeny</EvalDecision>\
                    <ResourceSpecificResults><member><EvalResourceDecision>allowed</EvalResourceDecision></member>\
                    </ResourceSpecificResults></member><member><EvalActionName>kms:GenerateDataKey</EvalActionName>\
                    <EvalDecision>explicitDeny</EvalDecision></member></EvaluationResults>";
        let asked = ["kinesis:PutRecords", "kinesis:PutRecord", "kms:GenerateDataKey"];
        let expected = vec![Decision::NotAllowed, Decision::Allowed, Decision::Denied];
        assert_eq!(decisions(text, &asked), Ok(expected));
        assert!(decisions(text, &["kinesis:ListShards"]).is_err());
        assert!(decisions("<EvalActionName>a</EvalActionName><EvalDecision>perhaps</EvalDecision>", &["a"]).is_err());
        assert!(decisions("<EvalActionName>", &["a"]).is_err());
    }

    #[test]
    fn a_refusal_is_told_by_its_code_or_its_status() {
        let text = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>";
        assert_eq!(refusal(403, text).to_string(), "AccessDenied: not you");
        assert_eq!(refusal(502, "<html>").to_string(), "HTTP 502: IAM gave no reason");
    }

    #[test]
    fn a_form_carries_arns_whole() {
        assert_eq!(form_encoded("arn:aws:iam::1:role/a+b"), "arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fa%2Bb");
    }

    #[test]
    fn iam_has_one_endpoint_in_each_partition() {
        assert_eq!(iam_host("aws", false), ("iam.amazonaws.com", "us-east-1"));
        assert_eq!(iam_host("aws", true).0, "iam-fips.amazonaws.com");
        assert_eq!(iam_host("aws-cn", false).1, "cn-north-1");
        assert_eq!(iam_host("aws-us-gov", true), ("iam.us-gov.amazonaws.com", "us-gov-west-1"));
    }
}
