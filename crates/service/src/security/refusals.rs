//! What is said of those who are refused: once a minute for each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Between two lines of the log about one address.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// Addresses that are told apart; all others are one.
const ADDRESSES_LIMIT: usize = 1024;

/// When each address was last spoken of.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    addresses: HashMap<Option<IpAddr>, Refused>,
}

#[derive(Debug)]
struct Refused {
    told_at: Instant,
    /// Refusals that nothing was said of since.
    untold: u64,
}

impl RefusalLog {
    /// Notes a refusal. Where it is to be said: how many of the address were not said before it.
    pub(super) fn note(&mut self, address: Option<IpAddr>) -> Option<u64> {
        let now = Instant::now();
        let is_known = self.addresses.contains_key(&address);
        if !is_known && self.addresses.len() >= ADDRESSES_LIMIT {
            self.addresses.retain(|_, refused| now - refused.told_at < TELL_INTERVAL);
        }
        let address = if is_known || self.addresses.len() < ADDRESSES_LIMIT { address } else { None };
        match self.addresses.get_mut(&address) {
            Some(refused) if now - refused.told_at < TELL_INTERVAL => {
                refused.untold += 1;
                None
            }
            Some(refused) => {
                refused.told_at = now;
                Some(std::mem::take(&mut refused.untold))
            }
            None => {
                self.addresses.insert(address, Refused { told_at: now, untold: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_is_spoken_of_once_a_minute() {
        let mut log = RefusalLog::default();
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|text| Some(text.parse().unwrap()));
        assert_eq!(log.note(one), Some(0));
        assert_eq!(log.note(one), None);
        assert_eq!(log.note(one), None);
        assert_eq!(log.note(other), Some(0));
        tokio::time::advance(TELL_INTERVAL).await;
        assert_eq!(log.note(one), Some(2), "two that were not said");
        assert_eq!(log.note(one), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_addresses_takes_no_more_room_than_there_is() {
        let mut log = RefusalLog::default();
        let told = (0..10_000u32).filter(|n| log.note(Some(IpAddr::from(n.to_be_bytes()))).is_some()).count();
        assert_eq!(told, ADDRESSES_LIMIT + 1, "all others are one");
        assert_eq!(log.addresses.len(), ADDRESSES_LIMIT + 1);
        tokio::time::advance(TELL_INTERVAL).await;
        assert_eq!(log.note(Some("10.1.0.1".parse().unwrap())), Some(0));
        assert_eq!(log.addresses.len(), 1);
    }
}
