//! What befalls PID 1 as a whole, and who is blamed.
//!
//! In: a blow, or a fuse of the file system that has burnt down. Out: no PID 1, what the disk kept, and a start to come.
//! Must not: tell the next start anything that is not on the disk.

use molt_core::ids::Generation;

use super::{Item, World};

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGKILL of the container.
    Kill,
    /// The power goes.
    Power,
}

impl World {
    /// The file system's fuse has burnt down: the process that called it is gone.
    pub(super) fn struck(&mut self) {
        if self.disk.borrow().crashed {
            let blow = self.fused.take().unwrap_or(Blow::Kill);
            self.strike(blow);
        }
    }

    /// The end of PID 1 and of everything below it.
    pub(super) fn strike(&mut self, blow: Blow) {
        self.note(|| format!("!! {blow:?}"));
        self.blows += 1;
        // Whoever ran may have been the reason.
        let ran: Vec<Generation> =
            self.runs.values().filter(|run| run.ran && !run.gone).map(|run| run.generation).collect();
        for generation in ran {
            self.blame(generation);
        }
        self.end_of_life();
        let mut disk = self.disk.borrow_mut();
        match blow {
            Blow::Kill => disk.kill(),
            Blow::Power => {
                disk.power_cut();
                self.kernel += 1;
                self.up_since = self.now;
            }
        }
    }

    pub(super) fn end_of_life(&mut self) {
        self.life = None;
        self.epoch += 1;
        self.runs.clear();
        self.fused = None;
        let pause = self.rng.u64(10..4_000);
        self.queue.retain(|_, (_, item)| !matches!(item, Item::Boot));
        self.push(pause, None, Item::Boot);
    }

    pub(super) fn blame(&mut self, generation: Generation) {
        let record = self.life.as_ref().and_then(|life| life.state.known.get(&generation));
        self.judge.blamed.extend(record.and_then(|record| record.digest));
    }
}
