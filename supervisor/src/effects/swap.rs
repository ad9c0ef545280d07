//! `Swapping`: after the gate, the exec pipe says whether the program runs.
//!
//! In: the read end of the exec pipe. Out: `Execed` or `NotExeced`. Must not: do anything else in the gap.

use std::os::fd::OwnedFd;

use molt_core::machine::{Event, Run};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::Answers;
use crate::clock::mono_ns;

/// Waits for the end of the pipe: CLOEXEC closes it when exec has happened; four bytes before it are an errno.
pub(crate) async fn swap(pipe: AsyncFd<OwnedFd>, run: Run, program: String, answers: Answers) {
    let mut said = Vec::new();
    let mut chunk = [0; 8];
    let at_ns = loop {
        let Ok(mut ready) = pipe.readable().await else { break mono_ns() };
        match rustix::io::read(pipe.get_ref(), &mut chunk) {
            Ok(0) => break mono_ns(),
            Ok(length) => said.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => break mono_ns(),
        }
    };
    let instance = run.instance;
    let event = match <[u8; 4]>::try_from(said.as_slice()) {
        Ok(bytes) => {
            let errno = Errno::from_raw_os_error(i32::from_ne_bytes(bytes));
            Event::NotExeced { instance, message: format!("failed to execute {program}: {errno}") }
        }
        Err(_) => Event::Execed { instance, at_ns },
    };
    let _ = answers.send(event);
}
