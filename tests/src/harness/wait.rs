//! Waiting for a state, with a deadline; nothing in the bed sleeps and hopes.
//!
//! In: a question, asked again and again. Out: its first answer, or an error that says what was
//! awaited and what was seen last.

use std::time::{Duration, Instant};

/// Asks `question` until it returns `Ok`, at growing intervals of 1 to 25 ms.
pub fn until_ok<T>(what: &str, limit: Duration, mut question: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match question() {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() >= limit => {
                return Err(error.context(format!("waited {limit:?} for {what}")));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}

/// Asks `question` until it returns `Some`.
pub fn until_some<T>(what: &str, limit: Duration, mut question: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    until_ok(what, limit, || question().ok_or_else(|| anyhow::anyhow!("not yet")))
}

/// Asks `question` until it is true.
pub fn until(what: &str, limit: Duration, mut question: impl FnMut() -> bool) -> anyhow::Result<()> {
    until_some(what, limit, || question().then_some(()))
}
