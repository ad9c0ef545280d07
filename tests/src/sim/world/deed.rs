//! What an operator, the platform or the world does, at some time.
//!
//! In: the seed's numbers. Out: deeds, and the events they are. Must not: know what the machine makes of them.

use molt_core::{
    code::Code,
    ids::{Generation, UpdateId},
    machine::{Event, Phase, Target},
};

use super::{Blow, Item, World, boot};

/// One deed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    Update {
        tag: u8,
        policy: Option<u8>,
        stage_only: bool,
        force: bool,
    },
    Rollback(Option<u32>),
    Confirm,
    Reject,
    Hold(u64),
    Release,
    Cancel,
    Apply,
    Gc,
    Forget,
    /// `docker stop`: TERM, and KILL after thirty seconds.
    Stop,
    Strike(Blow),
    /// A blow at so many calls of the file system from now.
    Fuse(u32, Blow),
    /// The volume is copied.
    Snapshot,
    /// The next start finds the copy.
    Restore,
    /// The next start finds a journal nobody can read.
    Damage,
    /// There is another image in the spec, which is read at once or found by the next start.
    Spec(u8, bool),
    /// The wall clock is set.
    Clock(i64),
}

impl World {
    pub(super) fn deed(&mut self) -> Deed {
        let rng = &mut self.rng;
        let blow = if rng.bool() { Blow::Kill } else { Blow::Power };
        match rng.u32(..60) {
            0..22 => Deed::Update {
                tag: rng.u8(1..8),
                policy: (rng.u32(..5) == 0).then(|| rng.u8(..3)),
                stage_only: rng.u32(..8) == 0,
                force: rng.u32(..4) == 0,
            },
            22..27 => Deed::Rollback((rng.u32(..3) == 0).then(|| rng.u32(..6))),
            27..30 => Deed::Confirm,
            30..32 => Deed::Reject,
            32..34 => Deed::Hold(rng.u64(500..20_000)),
            34 => Deed::Release,
            35..37 => Deed::Cancel,
            37..39 => Deed::Apply,
            39 => Deed::Gc,
            40 => Deed::Forget,
            41..45 => Deed::Stop,
            45..50 => Deed::Strike(blow),
            50..55 => Deed::Fuse(rng.u32(..60), blow),
            55 => Deed::Snapshot,
            56 => Deed::Restore,
            57 => Deed::Damage,
            58 => Deed::Spec(rng.u8(1..8), rng.u8(..4) > 0),
            _ => Deed::Clock(rng.i64(-100_000_000_000..100_000_000_000)),
        }
    }

    pub(super) fn deed_done(&mut self, deed: Deed) {
        self.note(|| format!("** {deed:?}"));
        match deed {
            Deed::Strike(blow) => self.strike(blow),
            Deed::Fuse(calls, blow) => {
                self.disk.borrow_mut().fuse = Some(calls);
                self.fused = Some(blow);
            }
            Deed::Snapshot => {
                // A copy of a volume is what a power cut would leave of it.
                let mut copy = self.disk.borrow().clone();
                copy.power_cut();
                let mut judge = self.judge.clone();
                // Whoever finds the copy finds a trial that was not stopped.
                let known = self.life.as_ref().map(|life| &life.state.known);
                let ran = self.runs.values().filter(|run| run.ran && !run.gone);
                judge.blamed.extend(ran.filter_map(|run| known?.get(&run.generation)?.digest));
                self.copy = Some((copy, judge));
            }
            Deed::Restore => self.restore = self.copy.is_some(),
            Deed::Damage => self.damage = true,
            Deed::Spec(tag, read) => {
                self.spec_image = tag;
                if read && self.life.is_some() {
                    let image = boot::image(tag).filter(|_| !self.own_root);
                    self.take(Event::Reread { wanted: boot::wanted(image, tag), by: "spec".to_owned() });
                }
            }
            Deed::Clock(jump) => self.wall += jump,
            Deed::Stop => {
                if self.life.is_some() {
                    self.later(30_000, Item::KillIfThere);
                    self.take(Event::Terminate { signal: 15 });
                }
            }
            _ if self.life.is_none() => {}
            Deed::Update { tag, policy, stage_only, force } => {
                let Ok(image) = format!("registry.example.com/app:{tag}").parse() else { return };
                let policy = policy.map(|policy| format!("policy {policy}"));
                let target = Target::Image { image, policy, stage_only, force, allow_wider: true, spec: None };
                self.take(Event::Intent { target, by: "operator".to_owned(), note: None });
            }
            Deed::Rollback(to) => {
                let target = Target::Back(to.map(Generation));
                self.take(Event::Intent { target, by: "operator".to_owned(), note: None });
            }
            other => self.command(&other),
        }
    }

    /// Requests that the dispatcher answers itself unless they fit.
    pub(super) fn command(&mut self, deed: &Deed) {
        let Some(life) = self.life.as_ref() else { return };
        let state = &life.state;
        let (trial, busy) = (matches!(state.phase, Phase::Proving | Phase::AwaitingConfirm), state.attempt.is_some());
        let serving = state.serving.map(|run| run.instance);
        match deed {
            Deed::Confirm if trial => {
                self.judge.vouched = serving;
                self.take(Event::Confirm);
            }
            Deed::Reject if trial => self.take(Event::Reject),
            Deed::Cancel if busy && state.phase.before_gate() => self.take(Event::Cancel),
            Deed::Apply if busy && state.phase == Phase::Held && !state.hold => self.take(Event::Apply),
            Deed::Hold(ttl) => {
                self.later(*ttl, Item::Answer(None, Event::Release));
                self.take(Event::Hold);
            }
            Deed::Release => self.take(Event::Release),
            Deed::Gc if !busy => self.gc(),
            Deed::Forget => self.forget(),
            _ => {}
        }
    }

    /// Short phases see little by themselves: now and then somebody does something at once, or a word comes late.
    pub(super) fn meddle(&mut self) {
        if !self.chance(6) {
            return;
        }
        let after = self.rng.u64(0..25);
        if self.rng.u32(..4) == 0 {
            let deed = self.deed();
            if !matches!(deed, Deed::Strike(_) | Deed::Fuse(..) | Deed::Restore | Deed::Damage | Deed::Snapshot) {
                self.push(after, None, Item::Deed(deed));
            }
            return;
        }
        // What was given up, or belongs to a run that is no more, may still be in the channel.
        let (id, instance, message) = (UpdateId(0), 0, "late".to_owned());
        let (at_ns, code) = (self.moment().mono_ns, Code::DeadlineExceeded);
        let late = match self.rng.u32(..15) {
            0 => Event::Resolved { id },
            1 => Event::Fetched { id },
            2 | 3 => Event::Failed { id, code, message, refused: false },
            4 => Event::PreStopDone { id },
            5 => Event::NotArmed { instance, code, message },
            6 => Event::Exited { instance, status: 1, at_ns },
            7 => Event::Gone { instance, at_ns },
            8 => Event::NotGone { instance },
            9 => Event::Execed { instance, at_ns },
            10 => Event::NotExeced { instance, code: Code::ExecFailed, message },
            11 => Event::Ready { instance, ready: true, at_ns },
            12 => Event::Proven { instance },
            13 => Event::Unhealthy { instance, message },
            _ => {
                let Some(known) = self.life.as_ref().and_then(|life| life.state.known.values().next().cloned()) else {
                    return;
                };
                Event::Staged { id, record: Box::new(known) }
            }
        };
        self.later(after, Item::Answer(None, late));
    }
}
