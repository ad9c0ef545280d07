//! A sandbox in memory, whose every effect answers at once: a script says which one is struck, and how.
//!
//! In: what an operator does, which generations are sick, one [`Blow`]. Out: what somebody who watches `molt status` sees,
//! line by line, over all starts. Must not: know what the machine should do.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use crate::{
    code::Code,
    generation::Record,
    ids::{Digest, Generation},
    journal::{Journal, Medium, Opened, Shelved, Slot, recover},
    machine::{
        Effect, Ended, Event, Found, HookName, Kind, Mark, Moment, Patience, Phase, Purpose, Run, Settings, State,
        Target, step, table,
    },
    wire::{Outcome, PhaseName},
};

/// The journal's file, as a disk that loses nothing.
#[derive(Debug, Clone, Default)]
struct Disk(Rc<RefCell<Vec<u8>>>);

impl Medium for Disk {
    type Error = &'static str;

    fn load(&mut self) -> Result<Vec<u8>, Self::Error> {
        Ok(self.0.borrow().clone())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Self::Error> {
        let (at, mut file) = (usize::try_from(offset).unwrap(), self.0.borrow_mut());
        let length = file.len().max(at + bytes.len());
        file.resize(length, 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn sync_name(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// What an effect is, without its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
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
pub(super) enum How {
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
pub(super) struct Blow {
    pub(super) phase: Phase,
    pub(super) doing: Doing,
    pub(super) how: How,
}

#[derive(Debug)]
struct Life {
    state: State,
    journal: Journal<Disk>,
    timer: Option<u64>,
}

/// The sandbox, and all that outlives PID 1.
#[derive(Debug)]
pub(super) struct World {
    disk: Disk,
    marks: BTreeSet<Generation>,
    shelf: BTreeMap<Generation, Record>,
    up_ms: u64,
    unix_ms: u64,
    pub(super) settings: Settings,
    /// The spec's image.
    pub(super) image: Option<&'static str>,
    /// Generations whose program is never healthy.
    pub(super) sick: Vec<Generation>,
    pub(super) blow: Option<Blow>,
    /// Where nothing is answered until [`World::go_on`].
    pub(super) pause: Option<(Phase, Doing)>,
    paused: Option<Effect>,
    /// How often the blow fell, and starts that are still to be killed.
    pub(super) met: u32,
    kills_left: u32,
    life: Option<Life>,
    queue: VecDeque<Event>,
    pub(super) ended: Vec<Ended>,
    /// What only the journal knew.
    completed: Option<Outcome>,
    /// What PID 1 ended with.
    pub(super) exit: Option<i32>,
    pub(super) seen: Vec<String>,
    /// Every generation whose gate was opened, in order.
    pub(super) opened: Vec<Generation>,
    /// What was signalled while the slot on disk knew no trial.
    pub(super) early: Vec<Run>,
    /// The disk answers nothing.
    frozen: bool,
    /// What could not be killed, and is still there.
    stuck: Option<Run>,
    digests: BTreeMap<String, u8>,
    /// What the tags `latest` lead to now.
    pub(super) floating: u8,
    last: (Option<PhaseName>, Option<Generation>),
}

/// Starts that are killed in [`How::KillForEver`].
pub(super) const FOR_EVER: u32 = 10;

impl World {
    /// Generation 1 confirmed, 3 before it, nothing runs yet.
    pub(super) fn new() -> Self {
        let typical = table::typical(Phase::Idle);
        let mut known = typical.known;
        known.remove(&Generation(2));
        let mut world = Self {
            disk: Disk::default(),
            marks: known.keys().copied().collect(),
            shelf: known,
            up_ms: 1_000,
            unix_ms: 1_800_000_000_000,
            settings: Settings::default(),
            image: None,
            sick: vec![],
            blow: None,
            pause: None,
            paused: None,
            met: 0,
            kills_left: 0,
            life: None,
            queue: VecDeque::new(),
            ended: vec![],
            completed: None,
            exit: None,
            seen: vec![],
            opened: vec![],
            early: vec![],
            stuck: None,
            frozen: false,
            digests: BTreeMap::new(),
            floating: 60,
            last: (None, None),
        };
        let mut journal = Journal::open(world.disk.clone()).unwrap().0;
        journal.record(&typical.slot).unwrap();
        world.last.0 = None;
        world
    }

    /// The same, running and healthy.
    pub(super) fn running() -> Self {
        let mut world = Self::new();
        world.boot();
        (world.seen, world.opened, world.ended) = (vec![], vec![], vec![]);
        world
    }

    /// An empty store, and an image in the spec.
    pub(super) fn empty() -> Self {
        let mut world = Self::new();
        (world.disk, world.marks, world.shelf) = (Disk::default(), BTreeSet::new(), BTreeMap::new());
        world.image = Some("registry.example.com/app:first");
        world
    }

    pub(super) fn state(&self) -> &State {
        &self.life.as_ref().expect("PID 1 runs").state
    }

    /// What the next start would read.
    pub(super) fn slot(&self) -> Slot {
        crate::journal::read(&self.disk.0.borrow()).unwrap().slot.unwrap()
    }

    /// The wall clock is set.
    pub(super) fn set_clock(&mut self, by_ms: i64) {
        self.unix_ms = self.unix_ms.saturating_add_signed(by_ms);
    }

    /// Kills PID 1 and everything below it, and starts it again.
    pub(super) fn kill(&mut self) {
        self.end_of_life("killed");
        self.boot();
    }

    fn end_of_life(&mut self, how: &str) {
        (self.life, self.stuck, self.paused) = (None, None, None);
        self.queue.clear();
        self.last = (None, None);
        self.seen.push(how.to_owned());
    }

    /// Starts PID 1 on what is there.
    pub(super) fn boot(&mut self) {
        self.exit = None;
        self.up_ms += 5_000;
        let (journal, opened) = Journal::open(self.disk.clone()).unwrap();
        assert!(!matches!(opened, Opened::Damaged), "the journal cannot be read");
        let highest = self.shelf.keys().last().map_or(0, |number| number.0);
        let marked = self.marks.iter().filter(|mark| self.shelf.contains_key(mark)).max().copied();
        let recovered = recover(opened, Shelved { marked, highest });
        assert!(recovered.reset.is_none(), "{:?}", recovered.reset);
        // As the history: an end that nobody was told of is told by the next start.
        if let Some(verdict) = recovered.slot.verdict.as_ref().filter(|verdict| verdict.kind != "boot")
            && !self.ended.iter().any(|ended| ended.attempt.id == verdict.update)
            && self.completed.is_none()
        {
            self.completed = Some(verdict.outcome);
            self.seen.push(format!("told: {:?}", verdict.outcome));
        }
        let state = State::new(recovered.slot, self.shelf.clone(), self.settings.clone());
        self.life = Some(Life { state, journal, timer: None });
        let found = Found {
            spec: Some(crate::machine::Wanted {
                image: self.image.map(|image| image.parse().unwrap()),
                ..Default::default()
            }),
            up_ms: self.up_ms,
        };
        self.send(Event::Boot(found));
    }

    /// An update to `registry.example.com/app:TAG`.
    pub(super) fn update(&mut self, tag: &str) {
        self.intend(tag, false, false);
    }

    pub(super) fn intend(&mut self, tag: &str, force: bool, stage_only: bool) {
        let image = format!("registry.example.com/app:{tag}").parse().unwrap();
        let target = Target::Image { image, policy: None, stage_only, force, allow_wider: false, spec: None };
        self.send(Event::Intent { target, by: "operator".into(), note: None });
    }

    pub(super) fn rollback(&mut self) {
        self.send(Event::Intent { target: Target::Back(None), by: "operator".into(), note: None });
    }

    /// An event, and everything that follows until nothing happens by itself.
    pub(super) fn send(&mut self, event: Event) {
        self.queue.push_back(event);
        self.drain();
    }

    /// The timer that runs rings, if there is one.
    pub(super) fn ring(&mut self) -> bool {
        let Some(after) = self.life.as_mut().and_then(|life| life.timer.take()) else { return false };
        self.up_ms += after;
        self.send(Event::Waited);
        true
    }

    /// What was not answered is answered now.
    pub(super) fn go_on(&mut self) {
        self.pause = None;
        if let Some(effect) = self.paused.take() {
            self.do_well(effect);
            self.drain();
        }
    }

    /// What could not be killed ends after all.
    pub(super) fn let_go(&mut self) {
        let Some(run) = self.stuck.take() else { return };
        self.seen.push("(gone at last)".to_owned());
        let at_ns = self.up_ms * 1_000_000;
        self.queue.push_back(Event::Exited { instance: run.instance, status: 137, at_ns });
        self.send(Event::Gone { instance: run.instance, at_ns });
    }

    fn drain(&mut self) {
        let mut fuel = 2_000;
        while let Some(event) = self.queue.pop_front() {
            fuel -= 1;
            assert!(fuel > 0, "it runs in circles: {:?}", self.seen);
            let now = Moment { mono_ns: self.up_ms * 1_000_000, unix_ms: self.unix_ms };
            let Some(life) = self.life.as_mut() else { return };
            let effects = step(&mut life.state, now, event);
            self.look();
            for effect in effects {
                self.perform(effect);
                if self.life.is_none() || self.frozen {
                    break;
                }
            }
            if self.life.is_some() && self.strikes(Doing::Wait).is_some() {
                let failed = self.given_up();
                self.strike(Doing::Wait, failed);
            }
            if self.life.is_none() && self.exit.is_none() {
                self.boot();
                return;
            }
        }
    }

    /// What `molt status` shows, if it is another than before.
    fn look(&mut self) {
        let state = self.state();
        let now = (Some(state.phase.name()), state.serving.map(|run| run.generation));
        if now.0 != self.last.0 {
            self.seen.push(format!("{:?}", state.phase.name()));
        }
        self.last = now;
    }

    fn strikes(&self, doing: Doing) -> Option<How> {
        let blow = self.blow?;
        let here = blow.doing == doing && blow.phase == self.state().phase;
        (here && self.met == 0).then_some(blow.how)
    }

    /// The blow falls; an answer that says so is `failed`'s.
    fn strike(&mut self, doing: Doing, failed: Option<Event>) {
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

    fn perform(&mut self, effect: Effect) {
        let doing = match &effect {
            Effect::Resolve(_) => Some(Doing::Resolve),
            Effect::Plan(_) => Some(Doing::Plan),
            Effect::Fetch(_) => Some(Doing::Fetch),
            Effect::Stage { .. } if self.strikes(Doing::PreStage).is_some() => Some(Doing::PreStage),
            Effect::Stage { .. } => Some(Doing::Stage),
            Effect::Arm(_) => Some(Doing::Arm),
            Effect::PreStop { .. } => Some(Doing::PreStop),
            Effect::Record(..) => Some(Doing::Record),
            Effect::Stop(..) => Some(Doing::Stop),
            Effect::Open(_) => Some(Doing::Open),
            Effect::Probe(_, Purpose::Trial | Purpose::Boot) => Some(Doing::Probe),
            Effect::Hook(name, _) => Some(Doing::Hook(*name)),
            Effect::Collect(_) => Some(Doing::Collect),
            _ => None,
        };
        if doing.is_some_and(|doing| self.pause == Some((self.state().phase, doing))) {
            self.paused = Some(effect);
            return;
        }
        match doing.and_then(|doing| Some((doing, self.strikes(doing)?))) {
            Some((doing, how)) => {
                if let (Effect::Stop(run, _), How::Hang) = (&effect, how) {
                    self.stuck = Some(*run);
                }
                let failed = self.failed(&effect, doing, how);
                self.strike(doing, failed);
            }
            None => self.do_well(effect),
        }
    }

    /// How an effect says that it failed, or what its deadline makes of its silence. What has no deadline says nothing.
    fn failed(&self, effect: &Effect, doing: Doing, how: How) -> Option<Event> {
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
    fn given_up(&mut self) -> Option<Event> {
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

    fn do_well(&mut self, effect: Effect) {
        let at_ns = self.up_ms * 1_000_000;
        match effect {
            Effect::Resolve(id) => self.queue.push_back(Event::Resolved { id }),
            Effect::Plan(id) => {
                let event = self.planned(id);
                self.queue.push_back(event);
            }
            Effect::Fetch(id) => self.queue.push_back(Event::Fetched { id }),
            Effect::Stage { id, as_number } => {
                let record = Record { generation: as_number, ..self.draft() };
                self.shelf.insert(as_number, record.clone());
                self.queue.push_back(Event::Staged { id, record: Box::new(record) });
            }
            Effect::Arm(run) => self.queue.push_back(Event::Armed { instance: run.instance }),
            Effect::PreStop { id, .. } => self.queue.push_back(Event::PreStopDone { id }),
            Effect::Record(slot, mark) => self.record(&slot, mark),
            Effect::Stop(run, patience) => {
                if self.slot().trial.is_none() && self.state().phase == Phase::Quiescing && patience != Patience::Kill {
                    let restart = self.state().attempt.as_ref().is_some_and(|of| of.kind == Kind::Restart);
                    self.early.extend(Some(run).filter(|_| !restart));
                }
                self.queue.push_back(Event::Exited { instance: run.instance, status: 0, at_ns });
                self.queue.push_back(Event::Gone { instance: run.instance, at_ns });
            }
            Effect::Open(run) => {
                self.opened.push(run.generation);
                self.seen.push(format!("{} runs", run.generation));
                if self.kills_left > 0 {
                    self.kills_left -= 1;
                    return self.end_of_life("killed");
                }
                self.queue.push_back(Event::Execed { instance: run.instance, at_ns });
            }
            Effect::Probe(run, Purpose::Trial | Purpose::Boot) if self.sick.contains(&run.generation) => {
                self.queue.push_back(Event::Unhealthy { instance: run.instance, message: "sick".into() });
            }
            Effect::Probe(run, Purpose::Trial | Purpose::Boot) => {
                self.queue.push_back(Event::Ready { instance: run.instance, ready: true, at_ns });
                self.queue.push_back(Event::Proven { instance: run.instance });
            }
            Effect::Wait(ms) => self.timer(Some(ms)),
            Effect::Unwait => self.timer(None),
            Effect::End(ended) => {
                if ended.attempt.kind != Kind::Boot {
                    let why = ended.reason.map(|code| format!(", {code}")).unwrap_or_default();
                    self.seen.push(format!("told: {:?}{why}", ended.outcome));
                }
                self.ended.push(*ended);
            }
            Effect::Exit(status) => {
                self.exit = Some(status);
                self.end_of_life(&format!("PID 1 ends with {status}"));
            }
            Effect::Collect(_)
            | Effect::Hook(..)
            | Effect::Warn(_)
            | Effect::Probe(_, Purpose::Watch)
            | Effect::Unprobe
            | Effect::Disarm(_)
            | Effect::Cancel(_) => {}
        }
    }

    fn timer(&mut self, timer: Option<u64>) {
        if let Some(life) = self.life.as_mut() {
            life.timer = timer;
        }
    }

    /// As the supervisor: the mark first, then the slot, then the mark that goes.
    fn record(&mut self, slot: &Slot, mark: Mark) {
        if let Mark::Set(generation) = mark {
            self.marks.insert(generation);
        }
        let Some(life) = self.life.as_mut() else { return };
        life.journal.record(slot).unwrap();
        if let Mark::Clear(generation) = mark {
            self.marks.remove(&generation);
        }
        self.queue.push_front(Event::Recorded);
    }

    /// The record of what the attempt under way wants: a digest for each tag, another each time for `latest`.
    fn draft(&mut self) -> Record {
        let image = self.state().attempt.as_ref().and_then(|attempt| attempt.image.clone());
        let tag = image.as_ref().map(ToString::to_string).unwrap_or_default();
        let next = 100 + u8::try_from(self.digests.len()).unwrap();
        let of = match tag.rsplit(':').next().unwrap_or_default() {
            "latest" => self.floating,
            // The same bytes as the one that runs in the beginning.
            "one-again" => 1,
            _ => *self.digests.entry(tag.clone()).or_insert(next),
        };
        let like = table::typical(Phase::Idle).known.into_values().next().unwrap();
        Record { image, digest: Some(Digest::from_bytes([of; 32])), ..like }
    }

    fn planned(&mut self, id: crate::ids::UpdateId) -> Event {
        let draft = self.draft();
        let state = self.state();
        let (digest, policy) = (draft.digest.unwrap(), draft.policy_digest);
        let force = state.attempt.as_ref().is_some_and(|attempt| attempt.force);
        if state.slot.bad(digest, policy).is_some() && !force {
            return Event::Failed { id, code: Code::KnownBad, message: "known".into(), refused: true };
        }
        let runs = state.serving.and_then(|run| state.known.get(&run.generation));
        let noop = runs.is_some_and(|now| now.same_triple(draft.digest, policy, draft.settings_digest));
        Event::Planned { id, noop }
    }

    /// How the last update or rollback ended, as it was told.
    pub(super) fn outcome(&self) -> Option<(Outcome, Option<Code>)> {
        let ours = |ended: &&Ended| matches!(ended.attempt.kind, Kind::Update | Kind::Rollback);
        let told = self.ended.iter().rev().find(ours).map(|ended| (ended.outcome, ended.reason));
        told.or(self.completed.map(|outcome| (outcome, None)))
    }

    pub(super) fn serving(&self) -> Option<Generation> {
        self.life.as_ref()?.state.serving.map(|run| run.generation)
    }
}
