//! The rights that forebay needs, as IAM documents: who must be allowed what, and whom a role must trust.
//!
//! Place: `forebay iam-policy` prints these, `forebay check` shows the one statement that is missing. Pure: what is not
//! known (an account, a key) is asked by the caller, and stands as `*` until then.
//!
//! *LEAST*: the four actions that the agent calls on the streams that it writes, the key's one action where a stream is
//! encrypted with a customer's key, and AssumeRole on exactly the roles that are configured. Nothing else, so that
//! nobody has to take something out again. A role trusts one principal, and asks for the external ids that are
//! configured.
//!
//! Absent on purpose: session policies, key policies (they belong to the key's owner), and any call.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What the agent calls on a stream. PutRecord is the way out where only that is allowed.
pub const STREAM_ACTIONS: [&str; 4] =
    ["kinesis:DescribeStreamSummary", "kinesis:ListShards", "kinesis:PutRecord", "kinesis:PutRecords"];

/// What a writer needs on the key of an encrypted stream.
pub const KEY_ACTION: &str = "kms:GenerateDataKey";

/// What stands for a part of an ARN that is not known.
const ANY: &str = "*";

/// The partition that a region belongs to: the second part of each of its ARNs.
#[must_use]
pub fn partition_of(region: &str) -> &'static str {
    let begins = |prefix: &str| region.starts_with(prefix);
    match () {
        () if begins("cn-") => "aws-cn",
        () if begins("us-gov-") => "aws-us-gov",
        () if begins("us-isob-") => "aws-iso-b",
        () if begins("us-isof-") => "aws-iso-f",
        () if begins("us-iso-") => "aws-iso",
        () if begins("eu-isoe-") => "aws-iso-e",
        () if begins("eusc-") => "aws-eusc",
        () => "aws",
    }
}

/// The account in an ARN: its fifth part, where that has twelve digits.
#[must_use]
pub fn account_in(arn: &str) -> Option<&str> {
    arn.split(':').nth(4).filter(|account| is_account(account))
}

/// Whether this is an account's number.
#[must_use]
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// A stream's ARN, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamArn {
    /// `aws`, `aws-cn`, `aws-us-gov`, …
    pub partition: String,
    /// `None`: not known.
    pub region: Option<String>,
    /// Twelve digits. `None`: not known.
    pub account: Option<String>,
    /// The stream's plain name.
    pub name: String,
}

impl StreamArn {
    /// Of a stream as it is configured, by name or ARN. What an ARN says wins; `account` fills its gap.
    #[must_use]
    pub fn new(configured: &str, region: Option<&str>, account: Option<&str>) -> Self {
        let mut parts = configured.splitn(6, ':');
        if let (Some("arn"), Some(partition), Some("kinesis"), Some(region), Some(account), Some(resource)) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        {
            return Self {
                partition: partition.to_owned(),
                region: Some(region.to_owned()),
                account: Some(account.to_owned()),
                name: resource.strip_prefix("stream/").unwrap_or(resource).to_owned(),
            };
        }
        Self {
            partition: region.map_or("aws", partition_of).to_owned(),
            region: region.map(str::to_owned),
            account: account.map(str::to_owned),
            name: configured.to_owned(),
        }
    }

    /// Whether no `*` stands in it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.region.is_some() && self.account.is_some()
    }
}

impl fmt::Display for StreamArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, region, account, name } = self;
        let [region, account] = [region, account].map(|part| part.as_deref().unwrap_or(ANY));
        write!(f, "arn:{partition}:kinesis:{region}:{account}:stream/{name}")
    }
}

/// What is configured of a stream, as far as rights depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The stream.
    pub stream: StreamArn,
    /// The key that encrypts it, as the service tells it: an ARN, an id or an alias. `None`: none, or not known.
    pub key: Option<String>,
    /// Role that is assumed for it.
    pub role_arn: Option<String>,
    /// External id that goes with the role.
    pub external_id: Option<String>,
    /// Profile of the credentials that it begins with.
    pub profile: Option<String>,
}

/// A policy document, in the order in which people read one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    version: &'static str,
    statement: Vec<Statement>,
}

/// One statement of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    sid: &'static str,
    effect: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<BTreeMap<&'static str, String>>,
    action: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resource: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<BTreeMap<&'static str, BTreeMap<&'static str, Vec<String>>>>,
}

impl Statement {
    fn allow(sid: &'static str, actions: &[&str], resource: Vec<String>) -> Self {
        let action = actions.iter().map(|&action| action.to_owned()).collect();
        Self { sid, effect: "Allow", principal: None, action, resource, condition: None }
    }

    fn on_condition(mut self, operator: &'static str, key: &'static str, values: Vec<String>) -> Self {
        self.condition = Some(BTreeMap::from([(operator, BTreeMap::from([(key, values)]))]));
        self
    }

    /// Allows `actions` of those that the agent calls on streams.
    #[must_use]
    pub fn on_stream(actions: &[&str], stream: &StreamArn) -> Self {
        Self::allow("ForebayDelivers", actions, vec![stream.to_string()])
    }

    /// Allows a writer's use of the key that encrypts `stream`. `None` for the service's own key, which every writer of
    /// the account may use without being told so.
    #[must_use]
    pub fn on_key(key: &str, stream: &StreamArn) -> Option<Self> {
        const SID: &str = "ForebayEncrypts";
        let StreamArn { partition, region, account, .. } = stream;
        let [region, account] = [region, account].map(|part| part.as_deref().unwrap_or(ANY));
        let keys = |id: &str| vec![format!("arn:{partition}:kms:{region}:{account}:key/{id}")];
        let alias = key.find("alias/").filter(|&at| at == 0 || key.starts_with("arn:")).map(|at| &key[at..]);
        match alias {
            Some("alias/aws/kinesis") => None,
            // An alias is no resource that a policy could name; it can ask that the key has it.
            Some(alias) => Some(Self::allow(SID, &[KEY_ACTION], keys(ANY)).on_condition(
                "ForAnyValue:StringEquals",
                "kms:ResourceAliases",
                vec![alias.to_owned()],
            )),
            None if key.starts_with("arn:") => Some(Self::allow(SID, &[KEY_ACTION], vec![key.to_owned()])),
            None => Some(Self::allow(SID, &[KEY_ACTION], keys(key))),
        }
    }

    /// Allows the caller to assume `roles`.
    #[must_use]
    pub fn on_roles(roles: Vec<String>) -> Self {
        Self::allow("ForebayAssumesItsRoles", &["sts:AssumeRole"], roles)
    }

    /// Lets `principal` assume the role that trusts it; with external ids, only by one of them.
    #[must_use]
    pub fn of_trust(principal: String, external_ids: Vec<String>) -> Self {
        let mut statement = Self::allow("ForebayIsTrusted", &["sts:AssumeRole"], Vec::new());
        statement.principal = Some(BTreeMap::from([("AWS", principal)]));
        if external_ids.is_empty() {
            return statement;
        }
        statement.on_condition("StringEquals", "sts:ExternalId", external_ids)
    }

    /// The first of what it is about; `*` where it names nothing.
    #[must_use]
    pub fn first_resource(&self) -> &str {
        self.resource.first().map_or(ANY, String::as_str)
    }

    /// As JSON on one line, to be pasted into the `Statement` of a policy.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and lists become JSON")
    }
}

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DocumentKind {
    /// What its owner may do.
    Policy,
    /// Who may assume the role.
    Trust,
}

/// A document and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Document {
    /// A role's ARN, or words for the principal that runs the agent.
    pub attach_to: String,
    /// Its kind.
    pub kind: DocumentKind,
    /// Its text.
    pub document: Policy,
}

/// All documents that `needs` ask for: one policy for each principal that the agent begins with, then the policy and
/// the trust of each role, in the order of the configuration. `principal` is whom the roles trust; not known, it is the
/// account of the role, where each principal's own policy then decides.
#[must_use]
pub fn documents(needs: &[Need], principal: Option<&str>) -> Vec<Document> {
    let mut all = Vec::new();
    for profile in distinct(needs.iter().map(|need| &need.profile)) {
        let mine: Vec<&Need> = needs.iter().filter(|need| need.profile == *profile).collect();
        let own: Vec<&Need> = mine.iter().copied().filter(|need| need.role_arn.is_none()).collect();
        let mut statement = on_streams(&own);
        let roles = distinct(mine.iter().filter_map(|need| need.role_arn.as_ref()));
        if !roles.is_empty() {
            statement.push(Statement::on_roles(roles.into_iter().cloned().collect()));
        }
        let attach_to = match profile {
            Some(profile) => format!("the principal of profile {profile}"),
            None => "the principal that forebay runs as".to_owned(),
        };
        all.push(Document { attach_to, kind: DocumentKind::Policy, document: policy(statement) });
    }
    for role in distinct(needs.iter().filter_map(|need| need.role_arn.as_ref())) {
        let mine: Vec<&Need> = needs.iter().filter(|need| need.role_arn.as_ref() == Some(role)).collect();
        all.push(Document { attach_to: role.clone(), kind: DocumentKind::Policy, document: policy(on_streams(&mine)) });
        let trust = Statement::of_trust(principal.map_or_else(|| account_root(role), str::to_owned), external_ids(&mine));
        all.push(Document { attach_to: role.clone(), kind: DocumentKind::Trust, document: policy(vec![trust]) });
    }
    all
}

fn policy(statement: Vec<Statement>) -> Policy {
    Policy { version: "2012-10-17", statement }
}

/// What `needs` ask of streams and keys: one statement for the streams, one for each kind of key.
fn on_streams(needs: &[&Need]) -> Vec<Statement> {
    if needs.is_empty() {
        return Vec::new();
    }
    let resource = needs.iter().map(|need| need.stream.to_string()).collect();
    let mut statements = vec![Statement::allow("ForebayDelivers", &STREAM_ACTIONS, resource)];
    for key in needs.iter().filter_map(|need| Statement::on_key(need.key.as_deref()?, &need.stream)) {
        match statements.iter_mut().skip(1).find(|known| known.condition == key.condition) {
            Some(known) => {
                known.resource.extend(key.resource.into_iter().filter(|key| !known.resource.contains(key)).collect::<Vec<_>>())
            }
            None => statements.push(key),
        }
    }
    statements
}

/// The external ids of a role's streams. None where one of them comes without: a trust that asked for one would shut it out.
fn external_ids(needs: &[&Need]) -> Vec<String> {
    if needs.iter().any(|need| need.external_id.is_none()) {
        return Vec::new();
    }
    distinct(needs.iter().filter_map(|need| need.external_id.as_ref())).into_iter().cloned().collect()
}

fn account_root(role: &str) -> String {
    let partition = role.split(':').nth(1).unwrap_or("aws");
    format!("arn:{partition}:iam::{}:root", account_in(role).unwrap_or(ANY))
}

/// Each once, in the order of its first.
fn distinct<'a, T: PartialEq + 'a>(items: impl Iterator<Item = &'a T>) -> Vec<&'a T> {
    items.fold(Vec::new(), |mut seen, item| {
        if !seen.contains(&item) {
            seen.push(item);
        }
        seen
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_tells_its_partition() {
        for (region, partition) in [
            ("eu-west-1", "aws"),
            ("us-east-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("us-isof-south-1", "aws-iso-f"),
            ("eu-isoe-west-1", "aws-iso-e"),
            ("eusc-de-east-1", "aws-eusc"),
        ] {
            assert_eq!(partition_of(region), partition, "{region}");
        }
    }

    #[test]
    fn what_is_not_known_of_a_stream_is_a_star() {
        assert_eq!(StreamArn::new("clicks", None, None).to_string(), "arn:aws:kinesis:*:*:stream/clicks");
        let china = StreamArn::new("clicks", Some("cn-north-1"), Some("123456789012"));
        assert_eq!(china.to_string(), "arn:aws-cn:kinesis:cn-north-1:123456789012:stream/clicks");
        let arn = "arn:aws-us-gov:kinesis:us-gov-west-1:123456789012:stream/clicks";
        assert_eq!(StreamArn::new(arn, Some("us-gov-west-1"), Some("999999999999")).to_string(), arn);
    }

    #[test]
    fn a_key_is_named_by_arn_id_or_alias_and_the_services_own_needs_no_right() {
        let stream = StreamArn::new("clicks", Some("eu-west-1"), Some("123456789012"));
        let json = |key: &str| Statement::on_key(key, &stream).map(|statement| statement.to_json());
        let arn = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        assert!(json(arn).unwrap().contains(&format!("\"Resource\":[\"{arn}\"]")));
        assert_eq!(json("1234abcd-12ab-34cd-56ef-1234567890ab"), json(arn));
        let alias = json("alias/events").unwrap();
        assert!(alias.contains("\"Resource\":[\"arn:aws:kms:eu-west-1:123456789012:key/*\"]"), "{alias}");
        assert!(alias.contains("{\"ForAnyValue:StringEquals\":{\"kms:ResourceAliases\":[\"alias/events\"]}}"), "{alias}");
        assert_eq!(json("arn:aws:kms:eu-west-1:123456789012:alias/events"), Some(alias));
        assert_eq!(json("alias/aws/kinesis"), None);
        assert_eq!(json("arn:aws:kms:eu-west-1:123456789012:alias/aws/kinesis"), None);
    }

    #[test]
    fn a_role_that_one_stream_assumes_without_external_id_cannot_ask_for_one() {
        let need = |name: &str, id: Option<&str>| Need {
            stream: StreamArn::new(name, Some("eu-west-1"), None),
            key: None,
            role_arn: Some("arn:aws:iam::123456789012:role/events".into()),
            external_id: id.map(str::to_owned),
            profile: None,
        };
        let trust = |needs: &[Need]| serde_json::to_string(documents(needs, None).last().unwrap()).unwrap();
        let both = trust(&[need("a", Some("one")), need("b", Some("two")), need("c", Some("one"))]);
        assert!(both.contains("{\"StringEquals\":{\"sts:ExternalId\":[\"one\",\"two\"]}}"), "{both}");
        assert!(both.contains("arn:aws:iam::123456789012:root"), "{both}");
        assert!(!trust(&[need("a", Some("one")), need("b", None)]).contains("Condition"));
    }
}
