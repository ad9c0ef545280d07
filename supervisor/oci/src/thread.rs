//! A thread for work that blocks.
//!
//! In: work. Out: a thread that does it, or the work back and why there is none. Must not: panic where the sandbox has no
//! process left to give, as the runtime's own pool does.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

/// Starts `work` at once, on a thread of its own. Gives it back when the kernel refuses one.
pub fn start<W: FnOnce() + Send + 'static>(name: &str, work: W) -> Result<(), (W, io::Error)> {
    let place = Arc::new(Mutex::new(Some(work)));
    let taken = Arc::clone(&place);
    let run = move || {
        let work = taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = work {
            work();
        }
    };
    match std::thread::Builder::new().name(name.to_owned()).spawn(run) {
        Ok(_) => Ok(()),
        Err(error) => match place.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(work) => Err((work, error)),
            // A thread that was not started took nothing.
            None => Ok(()),
        },
    }
}
