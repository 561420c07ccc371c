//! What an error means: service codes, HTTP statuses and connection faults become one [`ErrorClass`].
//!
//! The table stands in [`class_of_code`] and [`class_of_status`], and nowhere else. Its rule: where the service may
//! have stored a record without our knowing, the outcome is unknown; only what surely was not stored is transient.
//! Messages name what to mend, and hold no event data: the service's own texts carry codes, names and ids.

use std::error::Error as StdError;
use std::time::Duration;

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};

use super::Target;
use crate::kinesis::{ErrorClass, PutError};

/// Longest message that is passed on; the rest is cut. Chains of the SDK can run to kilobytes.
const MESSAGE_BYTES_MAX: usize = 600;

/// Our code for "there are no credentials to sign with".
const NO_CREDENTIALS: &str = "NoCredentials";

/// A code without its namespace, what is behind a colon, and the suffix `Exception`.
fn bare(code: &str) -> &str {
    let code = code.rsplit_once('#').map_or(code, |(_, code)| code);
    let code = code.split_once(':').map_or(code, |(code, _)| code);
    code.strip_suffix("Exception").unwrap_or(code)
}

/// The class of a service error code, where it says anything. Namespaces and the suffix `Exception` are ignored.
#[must_use]
fn class_of_code(code: &str) -> Option<ErrorClass> {
    Some(match bare(code) {
        "ProvisionedThroughputExceeded"
        | "LimitExceeded"
        | "KMSThrottling"
        | "Throttling"
        | "ThrottledRequest"
        | "RequestThrottled"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "SlowDown"
        | "BandwidthLimitExceeded" => ErrorClass::Throttle,

        "ResourceNotFound"
        | "KMSDisabled"
        | "KMSInvalidState"
        | "KMSAccessDenied"
        | "KMSNotFound"
        | "KMSOptInRequired"
        | "OptInRequired"
        | "SubscriptionRequired"
        | "IncompleteSignature"
        | "NotAuthorized"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "UnknownOperation"
        | "InvalidAction" => ErrorClass::Configuration,
        denied if denied.starts_with("AccessDenied") || refuses_credentials(denied) => ErrorClass::Configuration,

        "InvalidArgument" | "Validation" | "Serialization" | "RequestEntityTooLarge" => ErrorClass::Poison,

        // Reading only, and ListShards while a stream is being made: nothing was asked to be stored.
        "ExpiredIterator" | "ExpiredNextToken" | "ResourceInUse" => ErrorClass::Transient,

        _ => return None,
    })
}

/// The class of an answer whose code says nothing.
#[must_use]
const fn class_of_status(status: u16) -> ErrorClass {
    match status {
        429 => ErrorClass::Throttle,
        // A proxy or gateway that wants to be told who we are, before the service saw anything.
        401 | 407 => ErrorClass::Configuration,
        413 => ErrorClass::Poison,
        _ => ErrorClass::UnknownOutcome,
    }
}

/// Whether the credentials themselves were refused or could not be had, so that others may have to be looked for. Where they
/// only lack a right, new ones would lack it too.
#[must_use]
pub(super) fn doubts_credentials(error: &PutError) -> bool {
    let code = bare(&error.code);
    code == NO_CREDENTIALS || refuses_credentials(code)
}

/// Codes, without `Exception`, that say something against the credentials themselves.
fn refuses_credentials(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken"
            | "UnrecognizedClient"
            | "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "InvalidToken"
            | "InvalidSignature"
            | "SignatureDoesNotMatch"
            | "MissingAuthenticationToken"
            | "AuthFailure"
    )
}

/// One record of an answered request.
pub(super) fn entry(code: String, message: String) -> PutError {
    let class = match code.as_str() {
        // Stated for this record by the service that did not store it.
        "InternalFailure" | "InternalFailureException" => ErrorClass::Transient,
        code => class_of_code(code).unwrap_or(ErrorClass::UnknownOutcome),
    };
    refusal(PutError { class, code, message: cut(message) })
}

/// An error after the request was handed to the connection.
pub(super) fn answered<E>(error: &SdkError<E, HttpResponse>) -> PutError
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    match error {
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            let status = error.raw_response().map(|response| response.status().as_u16());
            let code = error.code().filter(|code| !code.is_empty());
            let class = code.and_then(class_of_code).or_else(|| Some(class_of_status(status?)));
            let code =
                code.map_or_else(|| status.map_or_else(|| "answer".into(), |status| format!("HTTP {status}")), str::to_owned);
            let message = match error.message() {
                Some(message) => message.to_owned(),
                None => chain(error),
            };
            refusal(PutError { class: class.unwrap_or(ErrorClass::UnknownOutcome), code, message: cut(message) })
        }
        // TCP, DNS or TLS: the request itself never left.
        _ if find::<hyper_util::client::legacy::Error>(error).is_some_and(hyper_util::client::legacy::Error::is_connect) => {
            PutError { class: ErrorClass::Transient, code: "connect".into(), message: chain(error) }
        }
        SdkError::TimeoutError(_) => {
            PutError { class: ErrorClass::UnknownOutcome, code: "timeout".into(), message: chain(error) }
        }
        _ => PutError { class: ErrorClass::UnknownOutcome, code: "connection".into(), message: chain(error) },
    }
}

/// A refusal that names the stream has nothing to do with the records. Any other may show what it refuses, which is an
/// event's: the values in it are left out.
fn refusal(error: PutError) -> PutError {
    if error.class != ErrorClass::Poison {
        return error;
    }
    if ["'streamName'", "'streamARN'", "StreamName", "StreamARN", "'streamId'"].iter().any(|name| error.message.contains(name)) {
        return PutError { class: ErrorClass::Configuration, ..error };
    }
    PutError { message: without_values(&error.message), ..error }
}

/// `Value '…' at 'records.1.member.partitionKey' failed …`, and `Specified value was …`, as the service writes them.
fn without_values(message: &str) -> String {
    let mut text = message;
    if let Some(at) = text.find("pecified value") {
        text = &text[..at + "pecified value".len()];
    }
    let Some(begin) = text.find("Value '") else { return text.to_owned() };
    // Whatever stands in the value: the last place that can end it.
    let end = text.rfind("' at '").filter(|end| *end > begin);
    let rest = end.map_or("", |end| &text[end..]);
    format!("{}Value '…{rest}", &text[..begin])
}

/// An error before the request was signed: nobody but this machine, or who gives out credentials, is concerned.
pub(super) fn never_left<E>(error: &SdkError<E, HttpResponse>, target: &Target) -> PutError
where
    E: StdError + 'static,
{
    let cause = chain(error);
    let lower = cause.to_ascii_lowercase();
    let (code, remedy) = if lower.contains("credential") || lower.contains("identity") || lower.contains("token") {
        let remedy = match (&target.role_arn, &target.profile) {
            (Some(role), _) => format!(
                "could not assume {role}: see that its trust policy names this caller{}, and that base credentials exist",
                if target.external_id.is_some() { " and this external_id" } else { "" }
            ),
            (None, Some(profile)) => {
                format!("no credentials from profile {profile:?}: see ~/.aws/config and ~/.aws/credentials, or sign in again")
            }
            (None, None) if target.is_loopback() => "no AWS credentials found: an emulator takes any, so set \
                                                     AWS_ACCESS_KEY_ID=dev and AWS_SECRET_ACCESS_KEY=dev"
                .into(),
            (None, None) => "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile or \
                             role_arn for the stream, or run where a role is attached (EC2, ECS, EKS, Lambda)"
                .into(),
        };
        (NO_CREDENTIALS, remedy)
    } else {
        ("NotSent", "the request could not be prepared: see the stream's region and endpoint".to_owned())
    };
    PutError { class: ErrorClass::Configuration, code: code.into(), message: cut(format!("{remedy} ({cause})")) }
}

/// No answer in time.
pub(super) fn overdue(after: Duration) -> PutError {
    let message = format!("no answer within {after:?} (request_timeout); the records may have been stored");
    PutError { class: ErrorClass::UnknownOutcome, code: "timeout".into(), message }
}

/// A success that does not say what it must.
pub(super) fn bad_answer(what: String) -> PutError {
    PutError { class: ErrorClass::UnknownOutcome, code: "answer".into(), message: format!("the answer has {what}") }
}

/// No region anywhere.
pub(super) fn no_region(stream: &str) -> PutError {
    let message = format!(
        "no region for stream {stream:?}: set its `region`, give its ARN as name, or set AWS_REGION or the profile's region"
    );
    PutError { class: ErrorClass::Configuration, code: "NoRegion".into(), message }
}

/// Nobody's certificate could be checked.
pub(super) fn no_root_certificates() -> PutError {
    let message = "there are no root certificates on this machine, without which no AWS endpoint can be trusted: install the package ca-certificates, or name a file of them in SSL_CERT_FILE";
    PutError { class: ErrorClass::Configuration, code: "NoRootCertificates".into(), message: message.to_owned() }
}

/// An error and its causes, outermost first.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    causes(error).find_map(|error| error.downcast_ref())
}

/// The texts of an error and its causes, each once.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for error in causes(error) {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
    }
    cut(text)
}

fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_service_has_its_class() {
        use ErrorClass::{Configuration, Poison, Throttle, Transient};
        for (code, class) in [
            ("ProvisionedThroughputExceededException", Throttle),
            ("LimitExceededException", Throttle),
            ("KMSThrottlingException", Throttle),
            ("ThrottlingException", Throttle),
            ("AccessDenied", Configuration),
            ("AccessDeniedException", Configuration),
            ("ResourceNotFoundException", Configuration),
            ("KMSDisabledException", Configuration),
            ("KMSInvalidStateException", Configuration),
            ("KMSAccessDeniedException", Configuration),
            ("KMSNotFoundException", Configuration),
            ("KMSOptInRequired", Configuration),
            ("ExpiredToken", Configuration),
            ("ExpiredTokenException", Configuration),
            ("UnrecognizedClientException", Configuration),
            ("InvalidClientTokenId", Configuration),
            ("InvalidSignatureException", Configuration),
            ("MissingAuthenticationTokenException", Configuration),
            ("InvalidArgumentException", Poison),
            ("ValidationException", Poison),
            ("SerializationException", Poison),
            ("com.amazonaws.kinesis.v20131202#InvalidArgumentException", Poison),
            ("ResourceNotFoundException:http://internal.amazon.com/", Configuration),
            ("ExpiredIteratorException", Transient),
        ] {
            assert_eq!(class_of_code(code), Some(class), "{code}");
        }
        for unknown in ["InternalFailure", "InternalServerError", "ServiceUnavailable", "SomethingNewException", ""] {
            assert_eq!(class_of_code(unknown), None, "{unknown} must leave the outcome unknown at request level");
        }
    }

    #[test]
    fn refused_credentials_are_doubted_and_missing_rights_are_not() {
        let doubts = |code: &str| {
            let error = PutError { class: ErrorClass::Configuration, code: code.into(), message: String::new() };
            doubts_credentials(&error)
        };
        for code in ["ExpiredTokenException", "UnrecognizedClientException", "com.amazon.coral.service#ExpiredTokenException"] {
            assert!(doubts(code), "{code}");
        }
        for code in ["AccessDeniedException", "ResourceNotFoundException", "KMSAccessDeniedException", "timeout", ""] {
            assert!(!doubts(code), "{code}");
        }
    }

    #[test]
    fn statuses_that_say_nothing_leave_the_outcome_unknown() {
        for status in [400, 403, 404, 500, 502, 503, 504] {
            assert_eq!(class_of_status(status), ErrorClass::UnknownOutcome, "{status}");
        }
        assert_eq!(class_of_status(429), ErrorClass::Throttle);
        assert_eq!(class_of_status(413), ErrorClass::Poison);
    }

    #[test]
    fn a_records_internal_failure_was_surely_not_stored() {
        assert_eq!(entry("InternalFailure".into(), String::new()).class, ErrorClass::Transient);
        assert_eq!(entry("ProvisionedThroughputExceededException".into(), String::new()).class, ErrorClass::Throttle);
        assert_eq!(entry("KMSThrottlingException".into(), String::new()).class, ErrorClass::Throttle);
        assert_eq!(entry("KMSDisabledException".into(), String::new()).class, ErrorClass::Configuration);
        assert_eq!(entry("NewTrouble".into(), String::new()).class, ErrorClass::UnknownOutcome);
    }

    #[test]
    fn a_refusal_shows_no_value_of_an_event_and_one_that_names_the_stream_is_no_poison() {
        let refused = |code: &str, message: &str| entry(code.into(), message.into());
        for (message, told) in [
            (
                "1 validation error detected: Value 'jo' at 'x' secret' at 'records.1.member.partitionKey' failed to satisfy \
                 constraint: Member must have length less than or equal to 256",
                "1 validation error detected: Value '…' at 'records.1.member.partitionKey' failed to satisfy constraint: Member \
                 must have length less than or equal to 256",
            ),
            (
                "Invalid ExplicitHashKey. It must be in the range: [0, 2^128-1]. Specified value was secret",
                "Invalid ExplicitHashKey. It must be in the range: [0, 2^128-1]. Specified value",
            ),
            ("Value 'secret and cut", "Value '…"),
        ] {
            let error = refused("ValidationException", message);
            assert_eq!((error.class, error.message.as_str()), (ErrorClass::Poison, told));
        }
        let error = refused("ValidationException", "Value 'no such name' at 'streamName' failed to satisfy constraint");
        assert_eq!(error.class, ErrorClass::Configuration);
        assert!(error.message.contains("no such name"), "the person needs it: {error}");
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let text = cut("é".repeat(MESSAGE_BYTES_MAX));
        assert!(text.len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
        assert!(text.ends_with('…'));
    }
}
