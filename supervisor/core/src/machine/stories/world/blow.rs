//! What can befall an effect, where, and how its answer says so.
//!
//! In: an effect that is struck. Out: the answer that a supervisor would give, or the end of PID 1. Must not: know what
//! the machine makes of it.

use super::World;
use crate::{
    code::Code,
    machine::{Effect, Event, HookName, Phase},
};

/// What an effect is, without its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Doing {
    Resolve,
    Plan,
    Fetch,
    /// The hook that runs before the new root is made.
    PreStage,
    Stage,
    Arm,
    /// Nothing: it waits for somebody.
    Wait,
    PreStop,
    Record,
    Stop,
    Open,
    Probe,
    Hook(HookName),
    Collect,
}

/// What befalls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum How {
    /// It answers that it failed.
    Error,
    /// PID 1 is killed before it is done.
    Kill,
    /// The same, and each start after it is killed as soon as its program runs; at the tenth nobody does any more.
    KillForEver,
    /// It never answers; what its deadline makes of that.
    Hang,
}

/// Where: the phase, and what is being done in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Blow {
    pub(in super::super) phase: Phase,
    pub(in super::super) doing: Doing,
    pub(in super::super) how: How,
}

/// Starts that are killed in [`How::KillForEver`].
pub(in super::super) const FOR_EVER: u32 = 10;

impl World {
    pub(super) fn strikes(&self, doing: Doing) -> Option<How> {
        let blow = self.blow?;
        let here = blow.doing == doing && blow.phase == self.state().phase;
        (here && self.met == 0).then_some(blow.how)
    }

    /// The blow falls; an answer that says so is `failed`'s.
    pub(super) fn strike(&mut self, doing: Doing, failed: Option<Event>) {
        let how = self.strikes(doing).expect("it was asked for");
        self.met += 1;
        match how {
            How::Error | How::Hang => {
                if how == How::Hang {
                    self.seen.push("(waits)".to_owned());
                }
                if how == How::Hang && doing == Doing::Record {
                    // PID 1 itself stands still in its one write.
                    self.frozen = true;
                    self.queue.clear();
                }
                self.queue.extend(failed);
            }
            How::Kill | How::KillForEver => {
                if how == How::KillForEver {
                    self.kills_left = FOR_EVER - 1;
                }
                self.end_of_life("killed");
            }
        }
    }

    /// How an effect says that it failed, or what its deadline makes of its silence. What has no deadline says nothing.
    pub(super) fn failed(&self, effect: &Effect, doing: Doing, how: How) -> Option<Event> {
        let hangs = how == How::Hang;
        let message = || if hangs { "not done in time".to_owned() } else { "it failed".to_owned() };
        let code = |code: Code| if hangs { Code::DeadlineExceeded } else { code };
        let at_ns = self.up_ms * 1_000_000;
        Some(match effect {
            Effect::Resolve(id) => {
                Event::Failed { id: *id, code: code(Code::RegistryUnreachable), message: message(), refused: false }
            }
            Effect::Plan(id) => Event::Failed { id: *id, code: Code::NoSpace, message: message(), refused: true },
            Effect::Fetch(id) => {
                Event::Failed { id: *id, code: code(Code::RegistryUnavailable), message: message(), refused: false }
            }
            Effect::Stage { id, .. } if doing == Doing::PreStage => {
                Event::Failed { id: *id, code: Code::HookFailed, message: message(), refused: false }
            }
            Effect::Stage { id, .. } => {
                Event::Failed { id: *id, code: code(Code::StoreUnusable), message: message(), refused: false }
            }
            Effect::PreStop { id, .. } => {
                Event::Failed { id: *id, code: Code::HookFailed, message: message(), refused: false }
            }
            Effect::Arm(run) => {
                Event::NotArmed { instance: run.instance, code: code(Code::ConfinementFailed), message: message() }
            }
            // A disk that answers nothing at all holds PID 1 up.
            Effect::Record(..) if hangs => return None,
            Effect::Record(..) => Event::NotRecorded { message: message() },
            Effect::Stop(run, _) if hangs => Event::NotGone { instance: run.instance },
            Effect::Stop(run, _) => Event::Gone { instance: run.instance, at_ns },
            Effect::Open(run) => {
                Event::NotExeced { instance: run.instance, code: code(Code::ExecFailed), message: message() }
            }
            Effect::Probe(run, _) => Event::Unhealthy { instance: run.instance, message: message() },
            // Those can only warn.
            _ => return None,
        })
    }

    /// What becomes of what waits for somebody: it is cancelled, or rejected; or nobody comes.
    pub(super) fn given_up(&mut self) -> Option<Event> {
        let hangs = self.strikes(Doing::Wait) == Some(How::Hang);
        match self.state().phase {
            Phase::AwaitingConfirm if hangs => {
                self.timer(None);
                Some(Event::Waited)
            }
            Phase::AwaitingConfirm => Some(Event::Reject),
            _ => Some(Event::Cancel).filter(|_| !hangs),
        }
    }
}
