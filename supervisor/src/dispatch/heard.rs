//! What the program that serves says of itself between two events: it wakes the loop, so that the snapshot has it.
//!
//! In: what its notify socket heard. Out: a wake-up, at most one in each [`PAUSE`], however much is said. Must not: keep a run
//! that is gone from being let go.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use super::Dispatcher;
use crate::{
    timer::{self, Instant},
    workload::notify::Said,
};

/// Between two wake-ups, and between two writes, that a workload can bring about as often as it likes.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Whom the loop listens to.
#[derive(Debug, Default)]
pub(super) struct Heard {
    wake: Arc<Notify>,
    /// The run, and who listens to it.
    run: Option<(u64, AbortHandle)>,
}

impl Heard {
    /// There is something to look at.
    pub(super) fn woken(&self) -> impl Future<Output = ()> + use<> {
        Arc::clone(&self.wake).notified_owned()
    }

    /// Has the loop look at itself then.
    pub(super) fn wake_at(&self, then: Instant) {
        let wake = Arc::clone(&self.wake);
        drop(tokio::spawn(async move {
            timer::sleep_until(then).await;
            wake.notify_one();
        }));
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        if let Some((_, listener)) = self.run.take() {
            listener.abort();
        }
    }
}

impl Dispatcher {
    /// Listens to the run that serves, and to no other one.
    pub(super) fn listen(&mut self) {
        let serving = self.serving().map(|live| (live.run.instance, live.said.clone()));
        if serving.as_ref().map(|(instance, _)| *instance) == self.heard.run.as_ref().map(|(instance, _)| *instance) {
            return;
        }
        let wake = Arc::clone(&self.heard.wake);
        let new = serving.map(|(instance, said)| (instance, tokio::spawn(pass_on(said, wake)).abort_handle()));
        // Whoever listens keeps the run's socket.
        if let Some((_, old)) = std::mem::replace(&mut self.heard.run, new) {
            old.abort();
        }
    }
}

async fn pass_on(mut said: watch::Receiver<Said>, wake: Arc<Notify>) {
    while said.changed().await.is_ok() {
        wake.notify_one();
        timer::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_of_words_wakes_the_loop_once_and_the_last_one_is_heard() {
        let (sender, said) = watch::channel(Said::default());
        let heard = Heard::default();
        let began = Instant::now();
        let listener = tokio::spawn(pass_on(said, Arc::clone(&heard.wake)));
        let flood = tokio::spawn(async move {
            for number in 0..1000 {
                sender.send_modify(|said| said.status = Some(number.to_string()));
                tokio::task::yield_now().await;
            }
            sender
        });
        heard.woken().await;
        let sender = flood.await.unwrap();
        // What was said meanwhile wakes it once more, when the pause is over.
        assert_eq!(timer::timeout(PAUSE / 4, heard.woken()).await, Err(timer::Late));
        heard.woken().await;
        assert!(began.elapsed() >= PAUSE);
        assert_eq!(sender.borrow().status.as_deref(), Some("999"));
        assert_eq!(timer::timeout(PAUSE + PAUSE / 4, heard.woken()).await, Err(timer::Late));
        // It ends with the run.
        drop(sender);
        listener.await.unwrap();
    }
}
