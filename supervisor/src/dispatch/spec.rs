//! The spec, read again: on SIGHUP, when a watched file changes.
//!
//! In: who asks. Out: an event for the machine where the whole of it is valid; else a word about what is wrong with it. Must
//! not: read a file in the loop; let anything of a spec that is not valid count; change what holds from the start only.

use std::sync::Arc;

use molt_core::{machine::Event, wire::What};

use super::{Brought, Dispatcher};
use crate::{
    aside,
    effects::plan::sha256,
    triggers::{signal::HANGUP, spec::differing},
};

/// What the loop knows of the spec beside what is in force.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// It is being read.
    under_way: bool,
    /// Who asked since.
    again: Option<String>,
}

/// A spec that was read again.
#[derive(Debug)]
pub(crate) struct Reread {
    wanted: molt_core::machine::Wanted,
    /// Names it.
    digest: molt_core::ids::Digest,
    /// The spec as it reads now.
    shown: serde_json::Value,
    /// What in it differs from what is in force and cannot change while Molt runs.
    later: Vec<String>,
}

impl Dispatcher {
    /// SIGHUP.
    pub(super) fn hangup(&mut self, pid: u32, uid: u32) {
        if self.context.spec.watch.hangup && self.context.source.file().is_some() {
            self.reread(if pid == 0 { "SIGHUP".to_owned() } else { format!("SIGHUP from uid {uid}, pid {pid}") });
        } else {
            self.forward(HANGUP);
        }
    }

    /// Has the spec read, beside the loop: one reading at a time, and one more for all who asked meanwhile.
    pub(super) fn reread(&mut self, by: String) {
        if self.reading.under_way {
            self.reading.again = Some(by);
            return;
        }
        self.reading.under_way = true;
        let (context, brought) = (Arc::clone(&self.context), self.brought.clone());
        aside::start("spec", move || {
            let result = context.source.read().and_then(|taken| {
                let wanted = taken.wanted();
                let wanted = wanted.ok_or_else(|| taken.astray.clone().unwrap_or_default())?;
                let mut document = taken.spec.to_document();
                let digest = sha256(format!("{document}\n{}", taken.policy).as_bytes());
                let shown = document.get_mut("spec").map(serde_json::Value::take).unwrap_or_default();
                Ok(Box::new(Reread { wanted, digest, shown, later: differing(&context.spec, &taken.spec) }))
            });
            let _ = brought.send(Brought::Spec(by, result));
        });
    }

    /// What came of it.
    pub(super) fn read_again(&mut self, by: String, result: Result<Box<Reread>, String>) {
        self.reading.under_way = false;
        let again = self.reading.again.take();
        match result {
            Err(why) => {
                let message = format!("{by}: the spec is not taken, and what was read before holds: {why}");
                self.board.ignore(Some(("Invalid", why)));
                self.warn(message);
            }
            Ok(read) => self.taken(by, *read),
        }
        if let Some(by) = again {
            self.reread(by);
        }
    }

    fn taken(&mut self, by: String, read: Reread) {
        let news = self.remembered.facts.spec.replace(read.digest) != Some(read.digest);
        tracing::info!(by, news, "the spec was read again");
        let later = read.later.join(", ");
        self.board.ignore((!later.is_empty()).then(|| {
            let message = format!("{later}: changed in the spec; that holds from the next start of the container");
            ("RestartNeeded", message)
        }));
        if news {
            self.remembered.facts.revision += 1;
            self.save();
            self.context.events.publish(None, What::Note { message: format!("{by}: the spec was read again") });
            if !later.is_empty() {
                let message = format!("{by}: {later} changed in the spec; that holds from the next start");
                self.context.events.publish(None, What::Warning { message });
            }
            self.board.show(&read.shown, read.wanted.image.clone());
        }
        self.take(Event::Reread { wanted: read.wanted, by });
    }
}

#[cfg(test)]
mod tests {
    use molt_core::machine::{Phase, Wanted, table::typical};

    use super::{super::fake, *};

    fn reread(number: u8) -> Reread {
        let image: molt_core::ids::ImageRef = format!("registry.example.com/app:{number}").parse().unwrap();
        let shown = serde_json::json!({"image": image});
        let texts = (Some(sha256(image.to_string().as_bytes())), None);
        let wanted = Wanted { image: Some(image), policy: String::new(), texts };
        Reread { wanted, digest: sha256(&[number]), shown, later: Vec::new() }
    }

    #[tokio::test]
    async fn what_drifts_is_measured_by_the_spec_that_was_read_last() {
        let mut dispatcher = fake::dispatcher(typical(Phase::Idle), "image: registry.example.com/app:1");
        let drifted = |dispatcher: &mut Dispatcher| {
            dispatcher.publish();
            let view = dispatcher.view.borrow().clone();
            let condition = view.document.status.conditions.iter().find(|one| one.r#type == "Drifted").cloned();
            (condition.unwrap().message, view.document.spec["image"].clone())
        };
        assert_eq!(drifted(&mut dispatcher).0, "");
        // It asks for another one, of which nothing comes.
        dispatcher.taken("a test".to_owned(), reread(2));
        let (message, image) = drifted(&mut dispatcher);
        assert_eq!(image, "registry.example.com/app:2");
        assert_eq!(message, "the spec names registry.example.com/app:2, registry.example.com/app:1 is confirmed");
        dispatcher.state.slot.confirmed = Some(molt_core::ids::Generation(2));
        assert_eq!(drifted(&mut dispatcher).0, "");
    }
}
