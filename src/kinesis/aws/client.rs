//! Builds the SDK client of one stream: region, credentials, timeouts, and nothing that retries.
//!
//! Called on the first use of a stream, and again after its credentials were refused, never before. Every network lookup in here has its own short limit,
//! because a laptop or a container without a role answers the instance metadata address by silence.
//! Failure: no region found is a configuration error; missing credentials show themselves at the first signature.

use std::sync::Arc;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{Credentials, IdentityCache, SharedCredentialsProvider, StalledStreamProtectionConfig};

use super::credentials::Renewed;
use super::{Target, classify};
use crate::host::RealClock;
use crate::kinesis::PutError;

/// Longest time for TCP and TLS to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time that one call waits for credentials, all places asked.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time for one question to the instance metadata service, which answers within milliseconds where it exists.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);

/// What all clients of a stream have in common: region, switches of the endpoints, and credentials, which are those of the
/// role where one is configured.
///
/// # Errors
/// Configuration, when no region is named anywhere, or the machine has no root certificates.
pub(super) async fn session(target: &Target, fixed: Option<Credentials>) -> Result<SdkConfig, PutError> {
    // The SDK's client panics without any, which would end an agent that can take events all the same.
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err(classify::no_root_certificates());
    }
    let metadata = imds::Client::builder()
        .configure(&ProviderConfig::without_region())
        .connect_timeout(METADATA_TIMEOUT)
        .read_timeout(METADATA_TIMEOUT)
        .operation_timeout(2 * METADATA_TIMEOUT)
        .max_attempts(2)
        .build();
    let region = match (target.named_region(), &fixed) {
        (Some(region), _) => Region::new(region.to_owned()),
        (None, Some(_)) => Region::from_static("us-east-1"),
        (None, None) => find_region(target, metadata.clone()).await.ok_or_else(|| classify::no_region(&target.stream))?,
    };

    let mut loader = aws_config::defaults(BehaviorVersion::latest()).region(region.clone()).no_credentials();
    if let Some(profile) = &target.profile {
        loader = loader.profile_name(profile);
    }
    let shared = loader.load().await;
    if let Some(credentials) = fixed {
        return Ok(with_credentials(&shared, SharedCredentialsProvider::new(credentials)));
    }

    // The chain asks a token service too (web identity, roles of profiles), by the same kind of endpoint as all else.
    let switches = ProviderConfig::without_region().with_use_fips(shared.use_fips()).with_use_dual_stack(shared.use_dual_stack());
    let mut chain = DefaultCredentialsChain::builder().configure(switches).region(region.clone()).imds_client(metadata);
    if let Some(profile) = &target.profile {
        chain = chain.profile_name(profile);
    }
    let mut credentials = SharedCredentialsProvider::new(chain.build().await);
    if let Some(role) = &target.role_arn {
        let mut assumed = AssumeRoleProvider::builder(role).session_name("forebay").region(region).configure(&shared);
        if let Some(id) = &target.external_id {
            assumed = assumed.external_id(id);
        }
        credentials = SharedCredentialsProvider::new(assumed.build_from_provider(credentials).await);
    }
    let renewed = Renewed::new(credentials, Arc::new(RealClock::default()));
    Ok(with_credentials(&shared, SharedCredentialsProvider::new(renewed)))
}

fn with_credentials(shared: &SdkConfig, credentials: SharedCredentialsProvider) -> SdkConfig {
    shared.to_builder().credentials_provider(credentials).build()
}

/// The client for `target`, with what [`session`] found.
pub(super) fn kinesis(shared: &SdkConfig, target: &Target) -> Client {
    let mut config = aws_sdk_kinesis::config::Builder::from(shared)
        // Order is known in `dispatch`, so it retries and nobody else does.
        .retry_config(RetryConfig::disabled())
        // The answer's limit is set by the caller, from the departure on.
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .identity_cache(IdentityCache::lazy().load_timeout(CREDENTIALS_TIMEOUT).build())
        // Its watch over slow bodies would cut a request whose outcome is then unknown; the request timeout suffices.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = &target.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

/// Environment, profile, instance metadata: the order of the AWS tools.
async fn find_region(target: &Target, metadata: imds::Client) -> Option<Region> {
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &target.profile {
        profile = profile.profile_name(name);
    }
    RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build())
        .or_else(ImdsRegionProvider::builder().configure(&ProviderConfig::without_region()).imds_client(metadata).build())
        .region()
        .await
}
