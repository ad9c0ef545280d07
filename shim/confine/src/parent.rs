//! Dying with PID 1.
//!
//! In: the control socket. Out: SIGKILL when the parent ends. Must not: be called once only where ids change in between:
//! that clears the signal (prctl(2)).

use std::os::fd::AsFd;

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Signal, set_parent_process_death_signal},
};

use crate::step::{At as _, Step, refuse};

/// KILL when the parent dies, and a look whether it already has: its end of `control` is closed then.
pub fn arm_death_signal(control: impl AsFd) -> Step<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).at("pdeathsig", "kill")?;
    let mut fds = [PollFd::new(&control, PollFlags::empty())];
    let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&zero)).at("poll", "control")?;
    let [control] = &fds;
    if control.revents().intersects(PollFlags::HUP | PollFlags::ERR) {
        return Err(refuse("pdeathsig", "the supervisor is gone"));
    }
    Ok(())
}
