//! A client that never stops asking: what an update looks like from outside.
//!
//! In: the address of a daemon that answers `GET /` with `{"version": …}`. Out: [`Gap`], the time
//! without an answer at each change of version. One new connection a millisecond; every time is
//! monotonic. Must not: retry inside a request, or share a connection between two.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http;

const PERIOD: Duration = Duration::from_millis(1);
const TIMEOUT: Duration = Duration::from_secs(2);

/// One request.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When the connection was begun.
    pub begun: Instant,
    /// When the answer, or the failure, was complete.
    pub ended: Instant,
    /// The version that answered with 200, or how it failed.
    pub outcome: Result<String, Failure>,
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens.
    Refused,
    /// Cut off in the middle.
    Reset,
    /// No answer in two seconds.
    Timeout,
    /// An answer other than 200 with a version.
    Answer,
}

/// The time between the last good answer of one version and the first of the next.
#[derive(Debug, Clone)]
pub struct Gap {
    /// Version before.
    pub from: String,
    /// Version after.
    pub to: String,
    /// Last good answer of the old to first good answer of the new.
    pub length: Duration,
    /// Requests that failed in between.
    pub failures: Vec<Failure>,
    /// The longest that any one request took in between, or at its edge.
    pub worst: Duration,
}

/// A prober at work; [`Prober::stop`] ends it.
#[derive(Debug)]
pub struct Prober {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Prober {
    /// Starts asking.
    pub fn start(address: SocketAddr) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let outcome = ask(address);
                samples.push(Sample { begun, ended: Instant::now(), outcome });
                std::thread::sleep(PERIOD.saturating_sub(begun.elapsed()));
            }
            samples
        });
        Self { done, thread }
    }

    /// Stops asking; every request, oldest first.
    pub fn stop(self) -> Vec<Sample> {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("the prober never panics")
    }
}

fn ask(address: SocketAddr) -> Result<String, Failure> {
    let response = http::get(address, "/", TIMEOUT).map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Failure::Refused,
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Failure::Timeout,
        _ => Failure::Reset,
    })?;
    let version = response.json().ok().and_then(|value| Some(value.get("version")?.as_str()?.to_owned()));
    version.filter(|_| response.status == 200).ok_or(Failure::Answer)
}

/// The gap at every place where the answer changes from one start of the daemon to another version.
pub fn gaps(samples: &[Sample]) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut last: Option<&Sample> = None;
    let mut between: Vec<&Sample> = Vec::new();
    for sample in samples {
        let Ok(version) = &sample.outcome else {
            between.push(sample);
            continue;
        };
        if let Some((old, from)) = last.and_then(|old| Some((old, old.outcome.as_ref().ok()?)))
            && from != version
        {
            let took = |one: &&Sample| one.ended - one.begun;
            gaps.push(Gap {
                from: from.clone(),
                to: version.clone(),
                length: sample.ended - old.ended,
                failures: between.iter().filter_map(|one| one.outcome.clone().err()).collect(),
                worst: between.iter().map(took).chain([took(&sample)]).max().unwrap_or_default(),
            });
        }
        between.clear();
        last = Some(sample);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_runs_from_the_last_old_answer_to_the_first_new_one() {
        let zero = Instant::now();
        let at = |begun: u64, ended: u64, outcome: Result<&str, Failure>| Sample {
            begun: zero + Duration::from_millis(begun),
            ended: zero + Duration::from_millis(ended),
            outcome: outcome.map(str::to_owned),
        };
        let samples = [
            at(0, 1, Ok("v1")),
            at(2, 3, Err(Failure::Refused)),
            at(3, 4, Ok("v1")),
            at(5, 6, Err(Failure::Reset)),
            at(7, 8, Err(Failure::Refused)),
            at(9, 12, Ok("v2")),
            at(13, 14, Ok("v2")),
        ];
        let gaps = gaps(&samples);
        assert_eq!(gaps.len(), 1);
        assert_eq!((gaps[0].from.as_str(), gaps[0].to.as_str()), ("v1", "v2"));
        assert_eq!(gaps[0].length, Duration::from_millis(8));
        assert_eq!(gaps[0].failures, [Failure::Reset, Failure::Refused]);
        assert_eq!(gaps[0].worst, Duration::from_millis(3));
    }
}
