//! Work that blocks, beside the thread that serves.
//!
//! In: work. Out: what comes of it, later. Must not: fail for want of a thread. Each piece gets one of its own; where the
//! kernel has none to give, because the workload has used up the sandbox's processes, one that was started with PID 1 and
//! never ends does them in turn.

use std::{
    io,
    sync::{Condvar, Mutex, OnceLock, PoisonError, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

static KEPT: OnceLock<mpsc::Sender<Work>> = OnceLock::new();
static UNDER_WAY: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// Counts what is under way.
struct Place;

impl Place {
    fn new() -> Self {
        *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_all();
    }
}

/// Starts the thread that is there when no other can be had. To be called once, when signals are blocked.
pub(crate) fn keep_a_thread() -> io::Result<()> {
    let (sender, receiver) = mpsc::channel::<Work>();
    let serve = move || receiver.iter().for_each(|work| work());
    molt_oci::thread::start("kept", serve).map_err(|(_, error)| error)?;
    let _ = KEPT.set(sender);
    Ok(())
}

/// Does `work`; nobody waits for it.
pub(crate) fn start(name: &'static str, work: impl FnOnce() + Send + 'static) {
    let place = Place::new();
    let placed = move || {
        work();
        drop(place);
    };
    if let Err((work, error)) = molt_oci::thread::start(name, placed) {
        tracing::debug!(name, %error, "no thread of its own");
        match KEPT.get().map(|kept| kept.send(Box::new(work))) {
            Some(Ok(())) => {}
            Some(Err(mpsc::SendError(work))) => work(),
            None => tracing::error!(name, "there is no thread to do it"),
        }
    }
}

/// Does `work` and hands over what comes of it.
pub(crate) async fn run<T: Send + 'static>(name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    start(name, move || drop(sender.send(work())));
    receiver.await.ok()
}

/// Waits until all that was started is done, no longer than `limit`.
pub(crate) fn finish(limit: Duration) {
    let under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    // What is not done by then ends with PID 1.
    drop(ENDED.wait_timeout_while(under_way, limit, |count| *count > 0));
}
