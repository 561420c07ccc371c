//! Credentials that are renewed well before they end, and kept while they cannot be.
//!
//! Place: `client` puts it around whatever hands out credentials (the chain, or an assumed role); the SDK's cache asks it
//! whenever what it was given last has come near its expiry. So the expiry that is handed on is earlier than the real one:
//! there is time for another attempt, and for a token service that is away for minutes.
//!
//! *NEVER-PAST*: no credentials are handed on with an expiry later than their own. Failure: the error of the renewal,
//! but only when the old credentials are over too. Absent on purpose: retries (the next request asks again), storage.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::provider::{Result, future};
use aws_sdk_kinesis::config::{Credentials, ProvideCredentials, SharedCredentialsProvider};

use super::classify;
use crate::host::Clock;
use crate::metrics::locked;

/// How long before their end credentials are renewed; of shorter ones it is the last quarter.
const AHEAD: Duration = Duration::from_secs(300);

/// How long the old ones serve before a renewal that failed is tried again. The SDK's cache asks 5 to 10 s earlier.
const RETRY_AFTER: Duration = Duration::from_secs(40);

/// Whatever hands out credentials, and the last that it handed out.
#[derive(Debug)]
pub(super) struct Renewed {
    inner: SharedCredentialsProvider,
    clock: Arc<dyn Clock>,
    /// With their real expiry.
    last: Mutex<Option<Credentials>>,
}

impl Renewed {
    pub(super) fn new(inner: SharedCredentialsProvider, clock: Arc<dyn Clock>) -> Self {
        Self { inner, clock, last: Mutex::default() }
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.clock.wall_ms())
    }

    async fn renew(&self) -> Result {
        match self.inner.provide_credentials().await {
            Ok(fresh) => {
                *locked(&self.last) = Some(fresh.clone());
                Ok(ahead(fresh, self.now()))
            }
            Err(error) => {
                let Some(old) = self.old() else { return Err(error) };
                tracing::warn!(error = %classify::chain(&error), "credentials could not be renewed; the old ones still hold");
                Ok(old)
            }
        }
    }

    /// The last credentials if they still hold, to be asked for again soon.
    fn old(&self) -> Option<Credentials> {
        let mut old = locked(&self.last).clone()?;
        let (now, end) = (self.now(), old.expiry()?);
        if end <= now {
            return None;
        }
        *old.expiry_mut() = Some(end.min(now + RETRY_AFTER));
        Some(old)
    }
}

impl ProvideCredentials for Renewed {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.renew())
    }

    /// When the renewal takes too long.
    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.old().or_else(|| self.inner.fallback_on_interrupt())
    }
}

/// The same credentials with an earlier end.
fn ahead(mut credentials: Credentials, now: SystemTime) -> Credentials {
    if let Some(end) = credentials.expiry() {
        let lifetime = end.duration_since(now).unwrap_or_default();
        *credentials.expiry_mut() = Some(end - AHEAD.min(lifetime / 4));
    }
    credentials
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use aws_credential_types::provider::error::CredentialsError;

    use super::*;

    #[derive(Debug, Default)]
    struct Hands(AtomicU64);

    impl Clock for Hands {
        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.wall_ms())
        }
        fn wall_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Hands out credentials for an hour, unless it is away.
    #[derive(Debug)]
    struct Service {
        clock: Arc<Hands>,
        away: Arc<AtomicBool>,
    }

    impl ProvideCredentials for Service {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::ready(match self.away.load(Ordering::Relaxed) {
                true => Err(CredentialsError::provider_error("away")),
                false => Ok(Credentials::new("id", "secret", None, Some(at(self.clock.wall_ms() / 1000 + 3600)), "test")),
            })
        }
    }

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    #[tokio::test]
    async fn credentials_are_renewed_ahead_and_kept_while_that_fails_but_never_past_their_end() {
        let (clock, away) = (Arc::new(Hands::default()), Arc::new(AtomicBool::new(false)));
        let service = Service { clock: Arc::clone(&clock), away: Arc::clone(&away) };
        let renewed = Renewed::new(SharedCredentialsProvider::new(service), Arc::clone(&clock) as Arc<dyn Clock>);
        let expiry = async || renewed.provide_credentials().await.map(|credentials| credentials.expiry().unwrap());

        assert_eq!(expiry().await.unwrap(), at(3300), "five minutes ahead of the hour");
        away.store(true, Ordering::Relaxed);
        for (now, asked_again) in [(3300, 3340), (3555, 3595), (3590, 3600)] {
            clock.0.store(now * 1000, Ordering::Relaxed);
            assert_eq!(expiry().await.unwrap(), at(asked_again), "at {now}");
            assert_eq!(renewed.fallback_on_interrupt().unwrap().expiry(), Some(at(asked_again)), "at {now}");
        }
        clock.0.store(3_600_000, Ordering::Relaxed);
        assert!(expiry().await.is_err());
        assert_eq!(renewed.fallback_on_interrupt(), None);
        away.store(false, Ordering::Relaxed);
        assert_eq!(expiry().await.unwrap(), at(3600 + 3300));
    }

    #[test]
    fn credentials_of_a_few_minutes_are_renewed_in_their_last_quarter_and_endless_ones_never() {
        let ending = |end: Option<u64>| ahead(Credentials::new("id", "secret", None, end.map(at), "test"), at(0)).expiry();
        assert_eq!(ending(Some(900)), Some(at(675)));
        assert_eq!(ending(Some(43_200)), Some(at(42_900)));
        assert_eq!(ending(None), None);
    }
}
