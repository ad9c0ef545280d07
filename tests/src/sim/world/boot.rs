//! A start of PID 1 in the simulated world, as `supervisor/src/boot.rs` does it.
//!
//! In: whatever the last life left on disk. Out: a life, or another try later. Must not: mend what it finds.

use std::{collections::BTreeMap, rc::Rc};

use molt_core::{
    generation::{Program, Record, VERSION},
    ids::{Generation, ImageRef},
    machine::{Event, Found, Settings, State, Wanted},
    publish,
};

use super::{Life, Plant, World, digest};
use crate::sim::store::{self, Folder};

/// Policy text of the spec.
pub(super) const POLICY: &str = "policy 0";

impl World {
    pub(super) fn boot(&mut self) {
        self.before_start();
        self.starts += 1;
        self.note(|| "== start".to_owned());
        self.disk.borrow_mut().odds = self.odds;
        if let Err(why) = self.start() {
            self.note(|| format!("the start failed: {why}"));
            if !self.disk.borrow().crashed {
                // Exit status 120; the platform tries again.
                self.end_of_life();
            }
        }
    }

    /// What the world does between two starts.
    fn before_start(&mut self) {
        self.disk.borrow_mut().read_only = false;
        if std::mem::take(&mut self.restore)
            && let Some((disk, judge)) = self.copy.clone()
        {
            self.note(|| "the volume is an older copy of itself".to_owned());
            *self.disk.borrow_mut() = disk;
            let blamed = std::mem::replace(&mut self.judge, judge).blamed;
            self.judge.blamed.extend(blamed);
        }
    }

    fn start(&mut self) -> Result<(), String> {
        let damaged = self.damaged();
        let started = store::start(&self.disk, self.plant == Some(Plant::OnePlace))?;
        let (recovered, mut known) = (started.recovered, started.known);
        if let Some(reset) = &recovered.reset {
            self.note(|| reset.clone());
        }
        let verdict = self.judge.started(&self.disk.borrow(), &recovered.slot, recovered.reset.is_some(), damaged);
        self.must(verdict);
        let found = self.found(&mut known)?;
        let settings = Settings {
            auto_rollback: self.auto_rollback,
            confirm_within_ms: self.external.then_some(20_000),
            completes: self.completes,
            durable: true,
            boot_id: format!("kernel {}", self.kernel),
        };
        self.life = Some(Life {
            state: State::new(recovered.slot, known, settings),
            journal: started.journal,
            work: BTreeMap::new(),
            untidy: None,
            removing: 0,
            prober: 0,
            timer: 0,
            postponed: None,
        });
        self.take(Event::Boot(found));
        Ok(())
    }

    /// Somebody else wrote over the journal.
    fn damaged(&mut self) -> bool {
        let Some(node) = self.at_root("journal") else { return false };
        if std::mem::take(&mut self.damage) {
            let mut disk = self.disk.borrow_mut();
            disk.rot(node, 40);
            disk.rot(node, 4096 + 40);
            drop(disk);
            self.rotten = true;
            self.note(|| "the journal is damaged".to_owned());
        }
        self.rotten && store::look(self.disk.borrow().cached()).is_none()
    }

    /// As `own_root` in `supervisor/src/boot.rs`.
    fn found(&mut self, known: &mut BTreeMap<Generation, Record>) -> Result<Found, String> {
        let image = if self.own_root {
            let record = record(Generation(0), None, 0);
            let same = |old: &Record| old.same_triple(None, record.policy_digest, record.settings_digest);
            if !known.get(&Generation(0)).is_some_and(same) {
                let mut disk = self.disk.borrow_mut();
                publish::publish(&mut Folder(&mut disk), &record, POLICY).map_err(|fault| fault.to_string())?;
            }
            self.judge.policies.insert(Generation(0), POLICY.to_owned());
            known.insert(Generation(0), record);
            None
        } else {
            image(self.spec_image)
        };
        Ok(Found { spec: Some(wanted(image, self.spec_image)), up_ms: self.now - self.up_since })
    }

    /// The disk of this world.
    pub(super) fn shared(&self) -> crate::sim::store::Shared {
        Rc::clone(&self.disk)
    }
}

/// Image `tag`.
pub(super) fn image(tag: u8) -> Option<ImageRef> {
    format!("registry.example.com/app:{tag}").parse().ok()
}

/// A spec that asks for image `tag`, or for none.
pub(super) fn wanted(image: Option<ImageRef>, tag: u8) -> Wanted {
    let text = image.is_some().then(|| digest(tag));
    Wanted { image, policy: POLICY.to_owned(), texts: (text, Some(digest(0))) }
}

/// Generation `number` of image `tag`.
pub(super) fn record(number: Generation, tag: Option<u8>, policy: u8) -> Record {
    let layer =
        |name: String| molt_core::generation::LayerName { diff_id: molt_core::ids::DiffId(digest(9)), folder: name };
    Record {
        version: VERSION,
        generation: number,
        image: tag.and_then(|tag| format!("registry.example.com/app:{tag}").parse().ok()),
        digest: tag.map(digest),
        layers: tag.map(|tag| vec![layer(format!("app-{tag}")), layer("base".to_owned())]).unwrap_or_default(),
        policy_digest: digest(policy),
        settings_digest: digest(0),
        program: Program::default(),
        since: String::new(),
    }
}
