//! Connections of those who have not been let in yet: they have a share of the places, and a few seconds.
//!
//! In: connections, from where they come. Out: which of them have to go. Must not: refuse a newcomer, who may be the one that
//! is waited for: the place is taken from who has had his time, and first from an address that has many.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// From the end of the handshake to a request that is let in.
const FIRST: Duration = Duration::from_secs(5);

/// All of them.
#[derive(Debug)]
pub(super) struct Strangers {
    most: usize,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    /// By age: the oldest has the lowest number.
    waiting: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
    last: u64,
}

/// One of them, until it is let in or ends.
#[derive(Debug)]
pub(super) struct Stranger {
    number: u64,
    of: Arc<Strangers>,
    gone: Arc<Notify>,
}

impl Strangers {
    /// At most so many at once.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, all: Mutex::default() })
    }

    /// One more, in the place of another where there are too many: the oldest of the address that has most.
    pub(super) fn comes(self: &Arc<Self>, from: IpAddr) -> Stranger {
        let gone = Arc::new(Notify::new());
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.waiting.len() >= self.most
            && let Some((_, goes)) = all.crowding().and_then(|number| all.waiting.remove(&number))
        {
            goes.notify_one();
        }
        all.last += 1;
        let number = all.last;
        all.waiting.insert(number, (network(from), Arc::clone(&gone)));
        Stranger { number, of: Arc::clone(self), gone }
    }

    fn remove(&self, number: u64) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&number);
    }
}

impl All {
    fn crowding(&self) -> Option<u64> {
        let mut by: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
        for (number, (from, _)) in &self.waiting {
            by.entry(*from).or_insert((0, *number)).0 += 1;
        }
        by.into_values().max_by_key(|(count, oldest)| (*count, std::cmp::Reverse(*oldest))).map(|(_, oldest)| oldest)
    }
}

impl Stranger {
    /// It is known who that is: the place is his.
    pub(super) fn let_in(&self) {
        self.of.remove(self.number);
    }

    /// Ends when another one needs the place; never for one who was let in.
    pub(super) async fn has_to_go(&self) {
        self.gone.notified().await;
    }

    /// The same, and when nothing that is let in was asked in time.
    pub(super) async fn overstays(&self) {
        if timeout(FIRST, self.has_to_go()).await.is_ok() || self.waits() {
            return;
        }
        self.has_to_go().await;
    }

    fn waits(&self) -> bool {
        self.of.all.lock().unwrap_or_else(PoisonError::into_inner).waiting.contains_key(&self.number)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.let_in();
    }
}

/// Whoever has one address of a network of IPv6 has all 2^64.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn goes(stranger: &Stranger) -> bool {
        timeout(Duration::from_millis(20), stranger.has_to_go()).await.is_ok()
    }

    #[tokio::test]
    async fn the_oldest_of_the_address_that_has_most_goes() {
        let strangers = Strangers::new(4);
        let alone = strangers.comes(address("192.0.2.1"));
        let many: Vec<_> = (1..4).map(|number| strangers.comes(address(&format!("2001:db8::{number}")))).collect();
        let newcomer = strangers.comes(address("192.0.2.2"));
        assert!(goes(&many[0]).await && !goes(&many[1]).await && !goes(&many[2]).await);
        assert!(!goes(&alone).await && !goes(&newcomer).await);
    }

    #[tokio::test]
    async fn who_was_let_in_or_has_ended_is_none() {
        let strangers = Strangers::new(2);
        let known = strangers.comes(address("192.0.2.1"));
        known.let_in();
        drop(strangers.comes(address("192.0.2.1")));
        let (first, second) = (strangers.comes(address("192.0.2.1")), strangers.comes(address("192.0.2.1")));
        assert!(!goes(&known).await && !goes(&first).await && !goes(&second).await);
        let _third = strangers.comes(address("192.0.2.1"));
        assert!(goes(&first).await && !goes(&second).await && !goes(&known).await);
    }
}
