//! Every state of the machine, and what befalls it: the table of `docs/INTERRUPTIONS.md`, and the bugs of others.
//!
//! In: nothing. Out: tests. Must not: pass where a blow never fell.

mod regressions;
mod world;

use std::fmt::Write as _;

use world::{Blow, Doing, FOR_EVER, How, World};

use super::{Back, Event, HookName, Phase};
use crate::{code::Code, ids::Generation, wire::Outcome};

/// What is under way when the blow falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    FirstBoot,
    Boot,
    Update,
    HeldUpdate,
    /// `confirm: external`.
    External,
    SickUpdate,
    /// The way back fails, too.
    BothSick,
    /// The start after a kill in a trial.
    Recovery,
    Rollback,
    Restart,
    Stop,
}

impl Scene {
    const fn title(self) -> &'static str {
        match self {
            Self::FirstBoot => "First start, an image in the spec",
            Self::Boot => "Start of a confirmed generation",
            Self::Update => "Update from generation 1 to 4",
            Self::HeldUpdate => "Update that is held",
            Self::External => "Update that waits for `molt confirm`",
            Self::SickUpdate => "Update whose program is never healthy",
            Self::BothSick => "Update where neither program is healthy",
            Self::Recovery => "Start after a kill in the trial of an update",
            Self::Rollback => "Rollback by hand from generation 1 to 3",
            Self::Restart => "Restart of a generation that failed its liveness",
            Self::Stop => "Stop by SIGTERM",
        }
    }

    fn begin(self, blow: Blow) -> World {
        let mut world = match self {
            Self::FirstBoot => World::empty(),
            Self::Boot => World::new(),
            _ => World::running(),
        };
        if matches!(self, Self::External | Self::Recovery) {
            world.settings.confirm_within_ms = Some(60_000);
            world.kill();
        }
        if self == Self::Recovery {
            world.update("2");
        }
        (world.seen, world.ended) = (vec![], vec![]);
        world.blow = Some(blow);
        match self {
            Self::FirstBoot | Self::Boot => world.boot(),
            Self::Update | Self::External => world.update("2"),
            Self::HeldUpdate => {
                world.send(Event::Hold);
                world.update("2");
            }
            Self::SickUpdate => {
                world.sick = vec![Generation(4)];
                world.update("2");
            }
            Self::BothSick => {
                world.sick = vec![Generation(1), Generation(4)];
                world.update("2");
            }
            Self::Recovery => world.kill(),
            Self::Rollback => world.rollback(),
            Self::Restart => {
                let instance = world.state().serving.unwrap().instance;
                world.send(Event::Unhealthy { instance, message: "no answer".into() });
            }
            Self::Stop => world.send(Event::Terminate { signal: 15 }),
        }
        world
    }

    /// What follows by itself, and by somebody who is patient: until nothing more happens.
    fn rest(self, world: &mut World) {
        if self == Self::HeldUpdate && world.exit.is_none() && world.state().phase == Phase::Held {
            world.send(Event::Release);
        }
        world.let_go();
        if world.exit.is_none() && world.state().behind {
            // What could not be written is written when anything happens.
            world.seen.push("(written after all)".to_owned());
            world.send(Event::Collected { removed: vec![] });
        }
        for round in 0..12 {
            if self == Self::BothSick && round == 3 {
                world.seen.push("mended".to_owned());
                world.sick.clear();
            }
            if world.exit.is_some() && self != Self::Stop {
                world.seen.push("started again".to_owned());
                world.boot();
            }
            if world.exit.is_none() && world.state().phase == Phase::AwaitingConfirm && world.met > 0 {
                world.send(Event::Confirm);
            }
            if !world.ring() {
                break;
            }
        }
    }
}

/// Every state, and what is done in it.
const POINTS: &[(Scene, Phase, Doing)] = &[
    (Scene::FirstBoot, Phase::Resolving, Doing::Resolve),
    (Scene::FirstBoot, Phase::Planning, Doing::Plan),
    (Scene::FirstBoot, Phase::Fetching, Doing::Fetch),
    (Scene::FirstBoot, Phase::Staging, Doing::Stage),
    (Scene::FirstBoot, Phase::Arming, Doing::Arm),
    (Scene::FirstBoot, Phase::Swapping, Doing::Open),
    (Scene::FirstBoot, Phase::Idle, Doing::Record),
    (Scene::FirstBoot, Phase::Idle, Doing::Probe),
    (Scene::Boot, Phase::Arming, Doing::Record),
    (Scene::Boot, Phase::Arming, Doing::Arm),
    (Scene::Boot, Phase::Swapping, Doing::Open),
    (Scene::Boot, Phase::Idle, Doing::Probe),
    (Scene::Update, Phase::Resolving, Doing::Record),
    (Scene::Update, Phase::Resolving, Doing::Resolve),
    (Scene::Update, Phase::Planning, Doing::Plan),
    (Scene::Update, Phase::Fetching, Doing::Fetch),
    (Scene::Update, Phase::Staging, Doing::PreStage),
    (Scene::Update, Phase::Staging, Doing::Stage),
    (Scene::Update, Phase::Arming, Doing::Arm),
    (Scene::HeldUpdate, Phase::Held, Doing::Wait),
    (Scene::Update, Phase::PreStop, Doing::PreStop),
    (Scene::Update, Phase::Recording, Doing::Record),
    (Scene::Update, Phase::Quiescing, Doing::Stop),
    (Scene::Update, Phase::Swapping, Doing::Open),
    (Scene::Update, Phase::Proving, Doing::Hook(HookName::PostStart)),
    (Scene::Update, Phase::Proving, Doing::Record),
    (Scene::Update, Phase::Proving, Doing::Arm),
    (Scene::Update, Phase::Proving, Doing::Probe),
    (Scene::Update, Phase::Confirming, Doing::Record),
    (Scene::Update, Phase::Idle, Doing::Hook(HookName::PostConfirm)),
    (Scene::Update, Phase::Idle, Doing::Collect),
    (Scene::External, Phase::AwaitingConfirm, Doing::Wait),
    (Scene::SickUpdate, Phase::RollingBack(Back::Stopping), Doing::Stop),
    (Scene::SickUpdate, Phase::RollingBack(Back::Opening), Doing::Open),
    (Scene::SickUpdate, Phase::RollingBack(Back::Proving), Doing::Probe),
    (Scene::SickUpdate, Phase::RollingBack(Back::Recording), Doing::Record),
    (Scene::SickUpdate, Phase::Idle, Doing::Hook(HookName::OnRollback)),
    (Scene::SickUpdate, Phase::Idle, Doing::Collect),
    (Scene::BothSick, Phase::Degraded, Doing::Record),
    (Scene::BothSick, Phase::Degraded, Doing::Stop),
    (Scene::BothSick, Phase::Degraded, Doing::Arm),
    (Scene::BothSick, Phase::Degraded, Doing::Open),
    (Scene::BothSick, Phase::Degraded, Doing::Probe),
    (Scene::Recovery, Phase::RollingBack(Back::Arming), Doing::Record),
    (Scene::Recovery, Phase::RollingBack(Back::Arming), Doing::Arm),
    (Scene::Recovery, Phase::RollingBack(Back::Opening), Doing::Open),
    (Scene::Recovery, Phase::RollingBack(Back::Proving), Doing::Probe),
    (Scene::Recovery, Phase::RollingBack(Back::Recording), Doing::Record),
    (Scene::Rollback, Phase::Arming, Doing::Arm),
    (Scene::Rollback, Phase::PreStop, Doing::PreStop),
    (Scene::Rollback, Phase::Recording, Doing::Record),
    (Scene::Rollback, Phase::Quiescing, Doing::Stop),
    (Scene::Rollback, Phase::Swapping, Doing::Open),
    (Scene::Rollback, Phase::Proving, Doing::Probe),
    (Scene::Rollback, Phase::Confirming, Doing::Record),
    (Scene::Restart, Phase::Arming, Doing::Arm),
    (Scene::Restart, Phase::Quiescing, Doing::Stop),
    (Scene::Restart, Phase::Swapping, Doing::Open),
    (Scene::Restart, Phase::Idle, Doing::Probe),
    (Scene::Stop, Phase::Stopping, Doing::Stop),
];

const HOWS: [(How, &str); 4] =
    [(How::Error, "fails"), (How::Kill, "killed"), (How::KillForEver, "killed for ever"), (How::Hang, "hangs")];

/// Exit status of `molt update`, as the client makes it of the outcome; none where the connection went with PID 1.
fn status(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Confirmed | Outcome::Noop | Outcome::Staged => 0,
        Outcome::Aborted => 1,
        Outcome::RolledBack => 3,
        Outcome::Degraded => 4,
        Outcome::Refused => 6,
    }
}

/// One line of the table, and what must be so whatever it says.
fn line(scene: Scene, phase: Phase, doing: Doing, how: How, name: &str) -> String {
    let at = format!("{scene:?} {phase:?} {doing:?} {how:?}");
    let mut world = scene.begin(Blow { phase, doing, how });
    // What is only done when it is tried again is struck then.
    for _ in 0..3 {
        if world.met == 0 {
            world.ring();
        }
    }
    assert!(world.met == 1, "{at}: the blow never fell: {:?}", world.seen);
    // A disk that answers nothing holds everything up: nothing is promised but that what runs runs on.
    let stuck = how == How::Hang && doing == Doing::Record;
    if !stuck {
        scene.rest(&mut world);
        assert_promises(scene, how, &world, &at);
    }
    assert!(world.early.is_empty(), "{at}: signalled before the trial was durable");
    let told = match world.outcome() {
        Some((outcome, _)) => format!("{outcome:?} ({})", status(outcome)),
        None => "–".to_owned(),
    };
    let runs = match (world.serving(), world.exit) {
        (Some(generation), _) => generation.to_string(),
        (None, Some(_)) => "ended".to_owned(),
        (None, None) => "nothing".to_owned(),
    };
    format!("| {name} | {} | {told} | {runs} |\n", shorten(&world.seen))
}

fn assert_promises(scene: Scene, how: How, world: &World, at: &str) {
    let seen = &world.seen;
    if scene == Scene::Stop {
        return;
    }
    let state = world.state();
    let serving = world.serving();
    assert!(serving.is_some() && state.phase == Phase::Idle, "{at}: {:?}, {serving:?} runs: {seen:?}", state.phase);
    let slot = world.slot();
    assert_eq!(slot.confirmed, serving, "{at}: {seen:?}");
    assert_eq!(slot.trial, None, "{at}: {seen:?}");
    assert!(state.queued.is_none() && state.attempt.is_none(), "{at}: {seen:?}");
    // The update's image alone can be to blame, and only if its program ran, or is none.
    let ran = world.opened.contains(&Generation(4)) && scene != Scene::Rollback;
    let blamed = slot.bad.iter().find(|bad| !ran && bad.reason != Code::ExecFailed);
    assert!(blamed.is_none(), "{at}: {blamed:?}: {seen:?}");
    // What is told is what is, until three starts in vain lead to the generation before.
    match world.outcome().filter(|_| how != How::KillForEver) {
        Some((Outcome::Confirmed, _)) if scene == Scene::Rollback => {
            assert!(serving == Some(Generation(3)), "{at}: {seen:?}");
        }
        Some((Outcome::Confirmed, _)) => assert!(serving == Some(Generation(4)), "{at}: {seen:?}"),
        Some(_) => assert!(serving != Some(Generation(4)), "{at}: {seen:?}"),
        None => {}
    }
}

/// What repeats is said once.
fn shorten(seen: &[String]) -> String {
    let mut parts: Vec<(String, usize)> = Vec::new();
    let mut rest = seen;
    while let Some(first) = rest.first() {
        // The longest unit first, so that a whole start is one.
        let best = (1..=8)
            .filter(|length| rest.len() >= 2 * length)
            .map(|length| (length, rest.chunks(length).take_while(|chunk| *chunk == &rest[..length]).count()))
            .filter(|(_, times)| *times > 1)
            .max_by_key(|(length, times)| length * times);
        let (length, times) = best.unwrap_or((1, 1));
        let text = if length == 1 { first.clone() } else { rest[..length].join(", ") };
        parts.push((text, times));
        rest = &rest[length * times..];
    }
    let part = |(text, times): (String, usize)| if times == 1 { text } else { format!("{times}x ({text})") };
    parts.into_iter().map(part).collect::<Vec<_>>().join(", ")
}

fn what(doing: Doing) -> String {
    match doing {
        Doing::Resolve => "the tag is looked up".to_owned(),
        Doing::Plan => "facts are gathered".to_owned(),
        Doing::Fetch => "layers are fetched".to_owned(),
        Doing::PreStage => "the preStage hook".to_owned(),
        Doing::Stage => "the new root is made and synced".to_owned(),
        Doing::Arm => "a shim goes to its gate".to_owned(),
        Doing::Wait => "it waits at its gate".to_owned(),
        Doing::PreStop => "the preStop hook".to_owned(),
        Doing::Record => "the slot is written and synced".to_owned(),
        Doing::Stop => "the workload is stopped".to_owned(),
        Doing::Open => "the gate is opened".to_owned(),
        Doing::Probe => "the program is probed".to_owned(),
        Doing::Hook(name) => format!("the {} hook", hook(name)),
        Doing::Collect => "what nothing needs is removed".to_owned(),
    }
}

const fn hook(name: HookName) -> &'static str {
    match name {
        HookName::PostStart => "postStart",
        HookName::PostConfirm => "postConfirm",
        HookName::OnRollback => "onRollback",
    }
}

fn document() -> (String, usize) {
    let mut text = format!(
        "# Interruptions\n\n\
         Made by running the code: `MOLT_BLESS=1 cargo test -p molt-core`; edit `supervisor/core/src/machine/stories`, not \
         this file.\n\n\
         Each part is something under way: generation 1 is confirmed and runs, 3 is the one before, an update makes 4. Each \
         section is a point of it at which something befalls PID 1: what is being done fails; PID 1 is killed before it is \
         done; the same, and the {} starts after it are killed as soon as their program runs; it never ends, and its \
         deadline passes. Then the sequence that somebody sees who watches `molt status`, over all starts, until nothing \
         more happens by itself; what is told of the update (exit status of the client that waits for it; – where nothing \
         was accepted, or it was cut off before anything had changed); and what runs in the end. Held updates are released \
         and those that wait for `molt confirm` confirmed; a sandbox that ends is started again.\n",
        FOR_EVER - 1
    );
    let (mut count, mut scene, mut broken) = (0, None, Vec::new());
    for (of, phase, doing) in POINTS {
        if scene != Some(*of) {
            let _ = write!(text, "\n## {}\n", of.title());
            scene = Some(*of);
        }
        let _ = write!(text, "\n### {phase:?}: {}\n\n| | seen | told | runs |\n|---|---|---|---|\n", what(*doing));
        for (how, name) in HOWS {
            match std::panic::catch_unwind(|| line(*of, *phase, *doing, how, name)) {
                Ok(line) => text += &line,
                Err(why) => broken.push(why.downcast_ref::<String>().cloned().unwrap_or_default()),
            }
            count += 1;
        }
    }
    assert!(broken.is_empty(), "{} of {count} cases:\n{}", broken.len(), broken.join("\n\n"));
    let _ = write!(text, "\n{} points, {count} cases.\n", POINTS.len());
    (text, count)
}

#[test]
fn at_every_state_every_interruption_ends_as_the_table_says() {
    let (made, count) = document();
    assert!(count >= 80, "{count} cases");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/INTERRUPTIONS.md");
    if std::env::var_os("MOLT_BLESS").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == made, "docs/INTERRUPTIONS.md is stale: MOLT_BLESS=1 cargo test -p molt-core");
}

#[test]
fn every_phase_is_in_the_table() {
    // Nobody can strike any more.
    for phase in Phase::ALL.into_iter().filter(|phase| *phase != Phase::Exited) {
        assert!(POINTS.iter().any(|(_, of, _)| *of == phase), "{phase:?}");
    }
}
