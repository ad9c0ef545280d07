//! `Quiescing`: signal, grace, kill, and the proof that nothing is left.
//!
//! In: a run. Out: `NotGone` if the kernel cannot get rid of it; its end is reported by whoever follows it. Must not:
//! allocate a process or a thread on the way to the kill.

use std::{sync::Arc, time::Duration};

use molt_core::machine::{Event, Patience, Run};

use super::Answers;
use crate::{timer::timeout, workload::run::Init};

/// After SIGKILL to the init of a PID namespace, the kernel kills all of it; only a process stuck in the kernel stays.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// Stops `run`.
pub(crate) async fn stop(
    init: Arc<Init>,
    run: Run,
    signal: i32,
    grace: Duration,
    patience: Patience,
    answers: Answers,
) {
    let mut gone = init.gone();
    let wait = |limit: Duration, mut gone: tokio::sync::watch::Receiver<bool>| async move {
        timeout(limit, gone.wait_for(|gone| *gone)).await.is_ok()
    };
    // What an operator runs there is not the workload's to wait for.
    init.shut();
    if let Patience::Grace(asked) = patience {
        init.stop(asked.unwrap_or(signal));
        if wait(grace, gone.clone()).await {
            return;
        }
        tracing::warn!(generation = run.generation.0, "the workload did not end within its grace period; it is killed");
    }
    init.kill();
    if *gone.borrow_and_update() || wait(KILLED_WITHIN, gone).await {
        return;
    }
    let _ = answers.send(Event::NotGone { instance: run.instance });
}
