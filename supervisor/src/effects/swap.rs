//! `Swapping`: after the gate, the exec pipe says whether the program runs.
//!
//! In: the read end of the exec pipe. Out: `Execed` or `NotExeced`. Must not: do anything else in the gap, or wait for ever.

use std::{os::fd::OwnedFd, time::Duration};

use molt_core::{
    code::Code,
    machine::{Event, Run},
};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::Answers;
use crate::{clock::mono_ns, timer::timeout, workload::run::Swapping};

/// From the gate to the exec. It takes a millisecond; what takes this long has been stopped, or waits for a disk.
const EXECED_WITHIN: Duration = Duration::from_secs(5);

/// Waits for the end of the pipe: CLOEXEC closes it when exec has happened; four bytes before it are an errno. While
/// `swapping` is held no exit of the run is told.
pub(crate) async fn swap(pipe: AsyncFd<OwnedFd>, run: Run, program: String, answers: Answers, swapping: Swapping) {
    let instance = run.instance;
    let event = if let Ok((at_ns, said)) = timeout(EXECED_WITHIN, end(&pipe)).await {
        if let Ok(bytes) = <[u8; 4]>::try_from(said.as_slice()) {
            let errno = Errno::from_raw_os_error(i32::from_ne_bytes(bytes));
            let message = format!("failed to execute {program}: {errno}");
            Event::NotExeced { instance, code: Code::ExecFailed, message }
        } else {
            Event::Execed { instance, at_ns }
        }
    } else {
        let message = format!("{program} was not executed within {} s of its gate", EXECED_WITHIN.as_secs());
        Event::NotExeced { instance, code: Code::DeadlineExceeded, message }
    };
    let _ = answers.send(event);
    drop(swapping);
}

/// When the pipe ended, and what came before.
async fn end(pipe: &AsyncFd<OwnedFd>) -> (u64, Vec<u8>) {
    let mut said = Vec::new();
    let mut chunk = [0; 8];
    loop {
        let Ok(mut ready) = pipe.readable().await else { return (mono_ns(), said) };
        match rustix::io::read(pipe.get_ref(), &mut chunk) {
            Ok(0) => return (mono_ns(), said),
            Ok(length) => said.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => return (mono_ns(), said),
        }
    }
}
