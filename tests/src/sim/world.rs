//! The simulated world: PID 1 and its dispatcher, workloads, registry, operators, and everything that befalls them.
//!
//! In: a seed. Out: [`World::run`]'s verdict. Must not: decide what the machine should; every effect is carried out as the
//! supervisor does it, well or badly, at once or late.

mod blow;
mod boot;
mod deed;
mod perform;
mod runs;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use fastrand::Rng;
use molt_core::{
    code::Code,
    generation::Record,
    ids::{Digest, Generation, UpdateId},
    journal::{Journal, Slot},
    machine::{Effect, Event, Mark, Moment, Phase, Run, State, step},
};

use self::{blow::Blow, deed::Deed};
use super::{
    coverage::Coverage,
    disk::{Disk, Odds, ROOT},
    judge::{Broken, Judge, Truth},
    store::{File, Shared},
};

/// A bug put into the way effects are carried out, which the promises must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// The slot is written and not synced.
    NoSlotSync,
    /// Folders, and the store as a whole, are not synced.
    NoFolderSync,
    /// The trial is recorded after the first signal.
    TrialAfterSignal,
    /// What probes say is said before they were asked.
    ConfirmBeforeProof,
    /// Both slots are written to the same place.
    OnePlace,
}

/// What a program of the simulated images does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// Never healthy.
    Sick,
    /// Ends soon.
    Dies,
    /// Takes Molt along.
    KillsMolt,
    /// Cannot be executed.
    NoExec,
    /// Cannot be armed.
    NoArm,
    /// Ends long after it was healthy.
    EndsLate,
    /// Must be killed.
    Stubborn,
    /// Says that it ended, and stays.
    Lingers,
}

/// What is still to come.
#[derive(Debug, Clone)]
enum Item {
    /// An answer, and the attempt it belongs to.
    Answer(Option<UpdateId>, Event),
    Resolved(UpdateId, u8),
    Fetched(UpdateId),
    Staged {
        id: UpdateId,
        number: Generation,
        heard: bool,
    },
    Armed(Run, Option<Code>),
    Said(u64, Event),
    Timer(u64),
    Dies {
        instance: u64,
        status: i32,
        told: bool,
        asked: bool,
    },
    Gone(u64),
    Remove(Vec<Generation>, BTreeMap<Generation, Record>),
    KillIfThere,
    Deed(Deed),
    Boot,
    Calm,
}

/// What an attempt has gathered.
#[derive(Debug, Clone)]
struct Work {
    tag: u8,
    record: Option<(Record, String)>,
}

/// One life of PID 1.
#[derive(Debug)]
struct Life {
    state: State,
    journal: Journal<File>,
    work: BTreeMap<UpdateId, Work>,
    untidy: Option<UpdateId>,
    removing: u64,
    prober: u64,
    timer: u64,
    postponed: Option<(Slot, Mark)>,
}

/// The world.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Debug)]
pub struct World {
    rng: Rng,
    disk: Shared,
    plant: Option<Plant>,
    /// Milliseconds.
    now: u64,
    wall: i64,
    up_since: u64,
    kernel: u32,
    epoch: u32,
    serial: u64,
    queue: BTreeMap<(u64, u64), (Option<u32>, Item)>,
    life: Option<Life>,
    runs: BTreeMap<u64, Truth>,
    judge: Judge,
    fates: [Fate; 8],
    calm: bool,
    odds: Odds,
    /// Out of 100 effects.
    mishap: u32,
    own_root: bool,
    spec_image: u8,
    auto_rollback: bool,
    external: bool,
    completes: bool,
    keep: usize,
    copy: Option<(Disk, Judge)>,
    restore: bool,
    damage: bool,
    rotten: bool,
    fused: Option<Blow>,
    broken: Option<Broken>,
    /// What was seen.
    pub coverage: Coverage,
    trace: Option<Vec<String>>,
    items: u64,
    /// Starts of PID 1.
    pub starts: u64,
    /// Blows that fell.
    pub blows: u64,
}

/// More never happens in a world that comes to rest.
const MOST_ITEMS: u64 = 50_000;
/// How long operators, faults and blows go on.
const STORM_MS: u64 = 90_000;
/// How long everything may take to settle afterwards: the longest back-off, and some.
const CALM_MS: u64 = 3_600_000;

impl World {
    /// The world that `seed` makes.
    pub fn new(seed: u64, plant: Option<Plant>, traced: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut disk = Disk::new(rng.u64(..));
        disk.no_file_sync = plant == Some(Plant::NoSlotSync);
        disk.no_folder_sync = plant == Some(Plant::NoFolderSync);
        let disk_faults = rng.u32(..3) == 0;
        let some = |rng: &mut Rng, most: u32| if disk_faults { rng.u32(..=most) } else { 0 };
        let odds = Odds { no_space: some(&mut rng, 60), io: some(&mut rng, 25) };
        let mut fates = [Fate::Good; 8];
        for fate in fates.iter_mut().skip(2) {
            *fate = match rng.u32(..16) {
                0..6 => Fate::Good,
                6..8 => Fate::Sick,
                8..10 => Fate::Dies,
                10 => Fate::KillsMolt,
                11 => Fate::NoExec,
                12 => Fate::NoArm,
                13 => Fate::EndsLate,
                14 => Fate::Stubborn,
                _ => Fate::Lingers,
            };
        }
        let mut world = Self {
            mishap: *[0, 3, 12].get(rng.usize(..3)).unwrap_or(&0),
            own_root: rng.u32(..3) == 0,
            spec_image: 1,
            auto_rollback: rng.u32(..8) != 0,
            external: rng.u32(..4) == 0,
            completes: rng.u32(..6) == 0,
            keep: rng.usize(1..4),
            disk: Rc::new(RefCell::new(disk)),
            rng,
            plant,
            now: 1_000,
            wall: 1_800_000_000_000,
            up_since: 0,
            kernel: 1,
            epoch: 1,
            serial: 0,
            queue: BTreeMap::new(),
            life: None,
            runs: BTreeMap::new(),
            judge: Judge::default(),
            fates,
            calm: false,
            odds,
            copy: None,
            restore: false,
            damage: false,
            rotten: false,
            fused: None,
            broken: None,
            coverage: Coverage::default(),
            trace: traced.then(Vec::new),
            items: 0,
            starts: 0,
            blows: 0,
        };
        world.plan();
        world
    }

    /// Sets the wall clock by so many milliseconds.
    pub fn set_clock(&mut self, by: i64) {
        self.wall += by;
    }

    /// Everything that will be done to this world.
    fn plan(&mut self) {
        self.push(0, None, Item::Boot);
        for _ in 0..self.rng.u32(3..16) {
            let at = self.rng.u64(500..STORM_MS);
            let deed = self.deed();
            self.push(at, None, Item::Deed(deed));
        }
        self.push(STORM_MS, None, Item::Calm);
    }

    fn push(&mut self, after: u64, epoch: Option<u32>, item: Item) {
        self.serial += 1;
        self.queue.insert((self.now + after, self.serial), (epoch, item));
    }

    /// As [`World::push`], for this life of PID 1 alone.
    fn later(&mut self, after: u64, item: Item) {
        self.push(after, Some(self.epoch), item);
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = self.trace.as_mut() {
            trace.push(format!("{now:>9} ms  {}", text()));
        }
    }

    fn must(&mut self, verdict: Result<(), Broken>) {
        if let Err(broken) = verdict {
            self.broken.get_or_insert(broken);
        }
    }

    /// Runs to the end, or to the first broken promise.
    pub fn run(&mut self) -> Result<(), Broken> {
        while self.broken.is_none() {
            let Some(((at, _), (epoch, item))) = self.queue.pop_first() else { break };
            self.items += 1;
            if self.items > MOST_ITEMS {
                return Err("it runs in circles".to_owned());
            }
            if at > STORM_MS + CALM_MS {
                break;
            }
            self.now = self.now.max(at);
            if epoch.is_none_or(|epoch| epoch == self.epoch) {
                self.happens(item);
            }
            self.struck();
        }
        match self.broken.take() {
            Some(broken) => Err(broken),
            None => self.settled(),
        }
    }

    /// The trace, if there is one.
    pub fn trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    /// Calls of the file system, and faults it answered.
    pub fn figures(&self) -> (u64, u64) {
        let disk = self.disk.borrow();
        (disk.calls, disk.faults)
    }

    /// With all faults gone, everything ends well and something serves.
    fn settled(&self) -> Result<(), Broken> {
        let Some(life) = &self.life else { return Err("PID 1 does not run in the end".to_owned()) };
        let state = &life.state;
        // Without autoRollback somebody must decide; nobody does any more.
        let undecided = state.phase == Phase::AwaitingConfirm && !self.auto_rollback;
        let at_rest = matches!(state.phase, Phase::Idle | Phase::Held) || undecided;
        if !at_rest {
            return Err(format!("it never ends: {:?} with {:?}", state.phase, state.attempt));
        }
        if state.queued.is_some() && !undecided {
            return Err("somebody waits for ever".to_owned());
        }
        let serving = state.serving.and_then(|run| self.runs.get(&run.instance));
        if !serving.is_some_and(|run| run.open && run.ran && !run.ended && !run.gone) {
            return Err(format!("nothing serves in the end: {serving:?} in {:?}", state.phase));
        }
        let serves = serving.map(|run| run.generation);
        if serves != state.slot.confirmed && !undecided {
            return Err(format!("{serves:?} runs in the end, and {:?} is confirmed", state.slot.confirmed));
        }
        Ok(())
    }

    fn happens(&mut self, item: Item) {
        match item {
            Item::Boot => self.boot(),
            Item::Calm => self.calm_down(),
            Item::Deed(deed) => self.deed_done(deed),
            Item::KillIfThere => self.strike(Blow::Kill),
            Item::Remove(going, known) => self.remove(&going, &known),
            _ if self.life.is_none() => {}
            // It is told once that a generation is staged, and none is removed before.
            Item::Answer(_, Event::Staged { record, .. }) if !self.knows(record.generation) => {}
            Item::Answer(_, event) => self.take(event),
            Item::Resolved(id, tag) => self.resolved(id, tag),
            Item::Fetched(id) => self.fetched(id),
            Item::Staged { id, number, heard } => self.staged(id, number, heard),
            Item::Armed(run, refused) => self.armed(run, refused),
            Item::Said(prober, event) => self.said(prober, event),
            Item::Timer(number) => {
                if self.life.as_ref().is_some_and(|life| life.timer == number) {
                    self.take(Event::Waited);
                }
            }
            Item::Dies { instance, status, told, asked } => self.dies(instance, status, told, asked),
            Item::Gone(instance) => self.gone(instance),
        }
    }

    /// Everything is mended, and nobody wants anything any more.
    fn calm_down(&mut self) {
        self.note(|| "calm".to_owned());
        self.calm = true;
        self.odds = Odds::default();
        let mut disk = self.disk.borrow_mut();
        (disk.odds, disk.fuse, disk.read_only) = (Odds::default(), None, false);
        drop(disk);
        self.fused = None;
        self.queue.retain(|_, (_, item)| !matches!(item, Item::Deed(_)));
        // What is still on its way to end a program was decided before: it is well from now on.
        self.queue.retain(|_, (_, item)| !matches!(item, Item::Dies { asked: false, .. }));
    }

    /// As `Dispatcher::take`: one event, and whatever follows from it at once.
    fn take(&mut self, event: Event) {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            let moment = self.moment();
            let Some(life) = self.life.as_mut() else { return };
            let before = life.state.clone();
            self.coverage.saw(before.phase, &event);
            let text = self.trace.is_some().then(|| format!("{:?} + {event:?}", before.phase));
            let effects = step(&mut life.state, moment, event);
            let (after, verdict) = (life.state.clone(), self.judge.stepped(&before, &life.state));
            self.must(verdict);
            if let Some(text) = text {
                let shown: Vec<String> = effects.iter().map(brief).collect();
                self.note(|| format!("{text} -> {:?}: {}", after.phase, shown.join(", ")));
            }
            let mut written = 0;
            for effect in effects {
                let durable = matches!(effect, Effect::Record(..));
                match self.perform(effect) {
                    Some(answer) if durable => {
                        queue.insert(written, answer);
                        written += 1;
                    }
                    Some(answer) => queue.push_back(answer),
                    None => {}
                }
                if self.disk.borrow().crashed || self.broken.is_some() {
                    return;
                }
            }
            let verdict = self.judge.heard();
            self.must(verdict);
            self.meddle();
        }
    }

    fn knows(&self, generation: Generation) -> bool {
        self.life.as_ref().is_some_and(|life| life.state.known.contains_key(&generation))
    }

    fn moment(&self) -> Moment {
        let unix = self.wall.saturating_add_unsigned(self.now);
        Moment { mono_ns: (self.now - self.up_since) * 1_000_000, unix_ms: u64::try_from(unix).unwrap_or(0) }
    }

    fn fate(&self, generation: Generation) -> Fate {
        if self.calm {
            return Fate::Good;
        }
        let record = self.life.as_ref().and_then(|life| life.state.known.get(&generation));
        let tag = record.and_then(|record| record.digest).map_or(0, |digest| digest.bytes()[0]);
        self.fates.get(usize::from(tag)).copied().unwrap_or(Fate::Good)
    }

    fn chance(&mut self, of_100: u32) -> bool {
        !self.calm && self.rng.u32(..100) < of_100
    }

    /// Something goes wrong that this seed lets go wrong.
    fn mishap(&mut self) -> bool {
        let mishap = self.mishap;
        self.chance(mishap)
    }

    fn at_root(&self, name: &str) -> Option<u32> {
        self.disk.borrow().find(ROOT, name)
    }
}

fn digest(of: u8) -> Digest {
    Digest::from_bytes([of; 32])
}

fn brief(effect: &Effect) -> String {
    match effect {
        Effect::Record(slot, mark) => format!(
            "Record(confirmed {:?} trial {:?} previous {:?} next {} {} starts {} bad {} {mark:?})",
            slot.confirmed.map(|one| one.0),
            slot.trial.as_ref().map(|one| (one.generation.0, one.suspect, one.clean_stop)),
            slot.previous.map(|one| one.0),
            slot.next_generation,
            slot.next_update,
            slot.starts,
            slot.bad.len(),
        ),
        Effect::End(ended) => {
            format!("End({} {:?} {:?} {:?})", ended.attempt.id, ended.attempt.kind, ended.outcome, ended.message)
        }
        other => format!("{other:?}"),
    }
}
