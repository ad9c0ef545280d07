//! From an image's name to a generation in the store: resolve, plan, fetch, stage.
//!
//! In: the attempt. Out: tasks of its own, and their answers. Must not: block, or touch what runs.

use std::sync::Arc;

use molt_core::{
    code::Code,
    ids::{Generation, UpdateId},
    machine::{Event, Kind},
    wire::What,
};

use super::{Brought, Dispatcher, perform::failed};
use crate::effects::{Fault, fetch, hook, plan, resolve, stage};

impl Dispatcher {
    pub(super) fn resolve(&mut self, id: UpdateId) {
        let Some(image) = self.state.attempt.as_ref().and_then(|attempt| attempt.image.clone()) else { return };
        let (context, brought) = (Arc::clone(&self.context), self.brought.clone());
        let task = tokio::spawn(async move {
            let resolved = resolve::resolve(&context, Some(id), &image).await.map(Box::new);
            let _ = brought.send(Brought::Resolved(id, resolved));
        });
        self.task = Some((id, task));
    }

    /// The policy an attempt asks for: its own, the spec's at boot, or the one in force.
    fn policy_of(&self, attempt: &molt_core::machine::Attempt) -> String {
        if let Some(policy) = &attempt.policy {
            return policy.clone();
        }
        if attempt.kind == Kind::Boot {
            return self.context.policy.clone();
        }
        self.policy_in_force()
    }

    /// The text of the policy of what runs; else of what is confirmed; else the spec's.
    pub(super) fn policy_in_force(&self) -> String {
        let store = self.context.store.as_ref();
        let in_force = self.state.serving.map(|run| run.generation).or(self.state.slot.confirmed);
        store
            .zip(in_force)
            .and_then(|(store, generation)| store.policy(generation).ok())
            .unwrap_or_else(|| self.context.policy.clone())
    }

    pub(super) fn plan(&mut self, id: UpdateId) -> Event {
        match self.planned(id) {
            Ok(noop) => Event::Planned { id, noop },
            Err(fault) => failed(id, fault),
        }
    }

    fn planned(&mut self, id: UpdateId) -> Result<bool, Fault> {
        let gone = || Fault::new(Code::Internal, "the attempt is gone");
        let attempt = self.state.attempt.clone().ok_or_else(gone)?;
        let image = attempt.image.clone().ok_or_else(gone)?;
        let policy = self.policy_of(&attempt);
        let work = self.work.get_mut(&id).ok_or_else(gone)?;
        let resolved = work.resolved.as_ref().ok_or_else(gone)?;
        let draft = plan::draft(&self.context, &image, resolved, &policy)?;
        for message in &draft.warnings {
            self.context.events.publish(Some(id), What::Warning { message: message.clone() });
        }
        plan::refuse_bad(&self.state.slot, &draft.record, attempt.force)?;
        let record = &draft.record;
        plan::refuse_below(&self.state.slot, &self.state.known, record)?;
        let noop = self
            .state
            .serving
            .and_then(|run| self.state.known.get(&run.generation))
            .is_some_and(|now| now.same_triple(record.digest, record.policy_digest, record.settings_digest));
        if !noop {
            plan::view(&self.context, resolved, &draft, noop)?;
        }
        work.draft = Some(draft);
        Ok(noop)
    }

    pub(super) fn fetch(&mut self, id: UpdateId) {
        let Some(resolved) = self.work.get(&id).and_then(|work| work.resolved.clone()) else {
            let _ = self.answers.send(failed(id, Fault::new(Code::Internal, "the plan of this update is gone")));
            return;
        };
        let (context, brought) = (Arc::clone(&self.context), self.brought.clone());
        let task = tokio::spawn(async move {
            let untidy = Arc::clone(&context.tidy).read_owned().await;
            let layers = Box::pin(fetch::fetch(&context, id, &resolved)).await.map(|layers| (layers, untidy));
            let _ = brought.send(Brought::Fetched(id, layers));
        });
        self.task = Some((id, task));
    }

    pub(super) fn stage(&mut self, id: UpdateId, number: Generation) {
        let Some((draft, layers)) = self.work.remove(&id).and_then(|work| Some((work.draft?, work.layers))) else {
            let _ = self.answers.send(failed(id, Fault::new(Code::Internal, "the plan of this update is gone")));
            return;
        };
        let (context, answers) = (Arc::clone(&self.context), self.answers.clone());
        let before = self.context.spec.hooks.pre_stage.clone().zip(self.serving_init());
        let env = hook::environment("preStage", self.state.attempt.as_ref());
        let task = tokio::spawn(async move {
            if let Some((hook, init)) = before
                && let Err(why) = hook::run(&hook, &init, env).await
            {
                let fault = Fault::new(Code::HookFailed, format!("the preStage hook failed: {why}"));
                let _ = answers.send(failed(id, fault));
                return;
            }
            let event = match stage::stage(&context, draft, layers, number).await {
                Ok(record) => Event::Staged { id, record: Box::new(record) },
                Err(fault) => failed(id, fault),
            };
            let _ = answers.send(event);
        });
        self.task = Some((id, task));
    }
}
