//! The one loop: every input becomes an event, `step` answers, the journal is written, effects run.
//!
//! In: answers of effects, signals, commands. Out: effects, the snapshot others read. Must not: decide what the machine
//! should; wait for anything but its inputs (the journal apart, which is why it is small).

mod commands;
mod ending;
mod exec;
#[cfg(test)]
mod fake;
mod heard;
mod keep;
mod order;
mod own;
mod perform;
mod prepare;
mod spec;
mod view;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};

use molt_core::{
    ids::{Generation, UpdateId},
    machine::{Effect, Event, Phase, State, step},
    wire::{UpdateView, What},
};
use molt_oci::Resolved;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinHandle},
};

use crate::{
    clock,
    command::{Command, View},
    effects::{Context, Fault, plan::Draft, prove::Transcript},
    observe::now::Now,
    rootfs::Rootfs,
    store::{journal::Journal, memory::Remembered},
    timer,
    triggers::signal::{Asked, Signals},
    workload::run::Live,
};

/// What effects bring back beside an event.
pub(crate) enum Brought {
    /// An image was resolved.
    Resolved(UpdateId, Result<Box<Resolved>, Fault>),
    /// Layers are there.
    Fetched(UpdateId, Result<(Vec<molt_core::generation::LayerName>, Untidy), Fault>),
    /// A run is at its gate, or not.
    Armed(molt_core::machine::Run, Result<Box<Live>, Fault>),
    /// Nothing else is at the store: what was asked for can be cleaned up.
    Alone(Tidy, crate::command::Reply<molt_core::wire::Collected>),
    /// A signed order was read.
    Order(Box<order::Read>),
    /// The spec was read again for somebody, or could not be taken.
    Spec(String, Result<Box<spec::Reread>, String>),
}

/// How long PID 1 waits for output that is still in its pipes when it exits.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);

/// While it is held, nothing is cleaned up.
pub(crate) type Untidy = tokio::sync::OwnedRwLockReadGuard<()>;

/// While it is held, nothing is fetched.
pub(crate) type Tidy = tokio::sync::OwnedRwLockWriteGuard<()>;

/// What an attempt has gathered before its gate.
#[derive(Debug, Default)]
struct Work {
    resolved: Option<Box<Resolved>>,
    draft: Option<Draft>,
    layers: Vec<molt_core::generation::LayerName>,
}

/// The loop's own memory.
pub(crate) struct Dispatcher {
    context: Arc<Context>,
    state: State,
    journal: Option<Journal>,
    live: HashMap<u64, Live>,
    /// Runs that are gone, with their roots and namespaces, let go when the next one is ready.
    retired: Vec<Live>,
    /// Tells those who arm beside a starting workload that there is no more reason to wait.
    hurry: Arc<Notify>,
    /// Output of runs that are gone which may still be on its way.
    pumps: Vec<JoinHandle<()>>,
    roots: HashMap<Generation, Weak<Rootfs>>,
    work: HashMap<UpdateId, Work>,
    untidy: Option<(UpdateId, Untidy)>,
    task: Option<(UpdateId, JoinHandle<()>)>,
    arming: HashMap<u64, JoinHandle<()>>,
    prober: Option<JoinHandle<()>>,
    transcripts: HashMap<u64, Transcript>,
    timer: Option<JoinHandle<()>>,
    hold_timer: Option<AbortHandle>,
    remembered: Remembered,
    /// What is remembered differs from what is in the store, and waits for the end of a gap.
    forgetful: bool,
    /// Commands that wait for the same.
    put_off: VecDeque<Command>,
    now: Now,
    /// Signed orders that are being read.
    unread_orders: usize,
    reading: spec::Reading,
    wishes: own::Wishes,
    heard: heard::Heard,
    answers: mpsc::UnboundedSender<Event>,
    brought: mpsc::UnboundedSender<Brought>,
    view: watch::Sender<Arc<View>>,
    board: view::Board,
    history: VecDeque<UpdateView>,
    /// What the confinement of the generation armed last lacks.
    degraded: Vec<String>,
    /// Whether the gateway answers, where there is one and it was called.
    gateway: Option<Result<(), String>>,
    exit: Option<i32>,
}

/// The receiving ends.
pub(crate) struct Inputs {
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) brought: mpsc::UnboundedReceiver<Brought>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) signals: Signals,
}

/// What the dispatcher is started with.
pub(crate) struct Start {
    pub(crate) context: Arc<Context>,
    pub(crate) state: State,
    pub(crate) journal: Option<Journal>,
    pub(crate) answers: mpsc::UnboundedSender<Event>,
    pub(crate) brought: mpsc::UnboundedSender<Brought>,
    pub(crate) view: watch::Sender<Arc<View>>,
    pub(crate) history: VecDeque<UpdateView>,
    pub(crate) remembered: Remembered,
    pub(crate) now: Now,
    pub(crate) facts: view::Facts,
}

pub(crate) use view::{Facts, empty_view};

impl Dispatcher {
    /// A dispatcher before its first event.
    pub(crate) fn new(start: Start) -> Self {
        let named = start.context.spec.image.clone();
        Self {
            context: start.context,
            state: start.state,
            journal: start.journal,
            live: HashMap::new(),
            retired: Vec::new(),
            hurry: Arc::default(),
            pumps: Vec::new(),
            roots: HashMap::new(),
            work: HashMap::new(),
            untidy: None,
            task: None,
            arming: HashMap::new(),
            prober: None,
            transcripts: HashMap::new(),
            timer: None,
            hold_timer: None,
            remembered: start.remembered,
            forgetful: false,
            put_off: VecDeque::new(),
            now: start.now,
            unread_orders: 0,
            reading: spec::Reading::default(),
            wishes: own::Wishes::default(),
            heard: heard::Heard::default(),
            answers: start.answers,
            brought: start.brought,
            view: start.view,
            board: view::Board::new(start.facts, named),
            history: start.history,
            degraded: Vec::new(),
            gateway: None,
            exit: None,
        }
    }

    /// Runs until PID 1 is to exit, and says with what status.
    pub(crate) async fn run(mut self, first: Event, mut inputs: Inputs) -> i32 {
        self.take(first);
        self.restore_hold();
        loop {
            if let Some(status) = self.exit {
                self.keep_own();
                // The last words of the workload are not lost; whoever keeps a pipe open is not waited for.
                let drained = async {
                    for pump in self.pumps.drain(..) {
                        let _ = pump.await;
                    }
                };
                let _ = timer::timeout(LAST_WORDS, drained).await;
                return status;
            }
            self.catch_up();
            self.publish();
            self.listen();
            tokio::select! {
                biased;
                Some(event) = inputs.events.recv() => self.take(event),
                Some(brought) = inputs.brought.recv() => self.receive(brought),
                asked = inputs.signals.next() => self.asked(asked),
                Some(command) = inputs.commands.recv() => self.command(command),
                // There is something to publish, or to write.
                () = self.heard.woken() => {}
            }
        }
    }

    /// One event, and whatever follows from it at once.
    fn take(&mut self, event: Event) {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            let before = self.state.phase;
            tracing::debug!(phase = ?before, ?event, "event");
            self.heed(&event);
            let effects = step(&mut self.state, clock::now(), event);
            if self.quiet() {
                self.context.audit.hush();
            }
            // The gap comes first: whatever opens a gate is done before anyone is told of it.
            // What follows a write that failed still happens: the machine has moved on.
            let mut written = 0;
            for effect in effects {
                tracing::debug!(?effect, "effect");
                let durable = matches!(effect, Effect::Record(..));
                match self.perform(effect) {
                    // Before anything else, in the order of the writes.
                    Some(answer) if durable => {
                        queue.insert(written, answer);
                        written += 1;
                    }
                    Some(answer) => queue.push_back(answer),
                    None => {}
                }
            }
            self.now.set(self.state.phase.name(), self.state.ready && !self.in_gap());
            self.announce(before);
            if !self.in_gap() {
                self.context.events.speak();
            }
            if !self.quiet() {
                self.context.audit.speak();
            }
        }
    }

    /// What the loop itself keeps up to date with an event.
    fn heed(&mut self, event: &Event) {
        match event {
            Event::Gone { instance, .. } => {
                if let Some(mut live) = self.live.remove(instance) {
                    self.pumps.retain(|pump| !pump.is_finished());
                    self.pumps.append(&mut live.pumps);
                    self.retired.push(live);
                }
                self.hurry.notify_waiters();
            }
            Event::Exited { instance, status, .. } => {
                self.hurry.notify_waiters();
                if self.in_gap() {
                    self.context.events.hush();
                }
                if let Some(live) = self.live.get(instance) {
                    let what = What::WorkloadExited { generation: live.run.generation, status: *status };
                    self.context.events.publish(self.current(), what);
                }
            }
            Event::Ready { instance, ready, .. } => {
                if let Some(live) = self.live.get(instance) {
                    let what = What::Ready { generation: live.run.generation, ready: *ready };
                    self.context.events.publish(self.current(), what);
                }
                self.hurry.notify_waiters();
                self.let_go();
            }
            Event::Release => self.let_updates_go(),
            // From here on the generation's record speaks for its layers.
            Event::Staged { .. } => self.untidy = None,
            Event::Proven { .. } => self.let_go(),
            Event::Unhealthy { message, .. } => {
                self.hurry.notify_waiters();
                self.context.events.publish(None, What::Warning { message: message.clone() });
            }
            _ => {}
        }
    }

    /// Takes apart what gone runs leave, on a thread that nobody waits for.
    fn let_go(&mut self) {
        if !self.retired.is_empty() {
            let retired = std::mem::take(&mut self.retired);
            crate::aside::start("let go", move || drop(retired));
        }
    }

    /// The update that what happens now belongs to.
    fn current(&self) -> Option<UpdateId> {
        self.state.attempt.as_ref().map(|attempt| attempt.id)
    }

    fn announce(&self, before: Phase) {
        let (before, now) = (before.name(), self.state.phase.name());
        if before == now {
            return;
        }
        let message = self.phase_message();
        self.context.events.publish(self.current(), What::Phase { phase: now, message });
    }

    fn asked(&mut self, asked: Asked) {
        match asked {
            Asked::Stop(signal) => self.take(Event::Terminate { signal }),
            Asked::Hangup { pid, uid } => self.hangup(pid, uid),
            Asked::Forward(signal) => self.forward(signal),
        }
    }

    /// Passes a signal on to the workload.
    fn forward(&self, signal: i32) {
        if let Some(live) = self.state.serving.and_then(|run| self.live.get(&run.instance)) {
            live.init.signal(signal);
        }
    }
}
