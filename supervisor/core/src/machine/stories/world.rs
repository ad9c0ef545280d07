//! A sandbox in memory, whose every effect answers at once: a script says which one is struck, and how.
//!
//! In: what an operator does, which generations are sick, one [`Blow`]. Out: what somebody who watches `molt status` sees,
//! line by line, over all starts. Must not: know what the machine should do.

mod blow;
mod disk;
mod perform;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(super) use self::blow::{Blow, Doing, FOR_EVER, How};
use self::disk::Disk;
use crate::{
    code::Code,
    generation::Record,
    ids::Generation,
    journal::{Journal, Opened, Shelved, Slot, recover},
    machine::{Effect, Ended, Event, Found, Kind, Moment, Phase, Run, Settings, State, Target, step, table},
    wire::{Outcome, PhaseName},
};

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
