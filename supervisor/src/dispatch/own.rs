//! What a workload asks for of itself, on the socket of its run.
//!
//! In: a wish and the run it comes from. Out: the same events an operator's request becomes. Must not: let a run that does
//! not serve ask for anything; let a workload end, shorten or outlast what an operator asked for; take more than the spec
//! lets it.

use std::time::Duration;

use molt_core::{
    code::Code,
    ids::ImageRef,
    machine::{Event, Kind, Phase, Target},
    memory::Held,
    wire::{Accepted, Problem},
};

use super::Dispatcher;
use crate::{clock, command::Wish, timer::Instant};

/// Whose hold it is.
pub(super) const OWNER: &str = "workload";

/// What the loop remembers of the workload's wishes.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// When the first of its holds in a row began.
    held_since: Option<Instant>,
    /// When it asked for an update last.
    asked: Option<Instant>,
}

type Answer = Result<Option<Accepted>, Problem>;

fn refuse<T>(code: Code, why: &str) -> Result<T, Problem> {
    let mut problem = Problem::new(code, why);
    if code == Code::Unauthorized {
        problem.status = 403;
    }
    Err(problem)
}

impl Dispatcher {
    pub(super) fn wish(&mut self, instance: u64, wish: Wish, by: String) -> Answer {
        let Some(own) = self.context.spec.api.workload.clone() else {
            return refuse(Code::Unauthorized, "the spec has no api.workload");
        };
        if self.state.serving.is_none_or(|run| run.instance != instance) {
            return refuse(Code::Unauthorized, "this is not the generation that serves");
        }
        match wish {
            Wish::Hold { ttl_ms, reason } => self.hold_own(ttl_ms, own.hold.as_duration(), by, reason),
            // Nothing to end is no reason for a line in the history.
            Wish::Release if self.remembered.facts.hold.is_none() => Ok(None),
            Wish::Release => self.release(Some(OWNER), &by).map(|()| None),
            Wish::Confirm | Wish::Reject if !own.trial => {
                refuse(Code::Unauthorized, "the spec does not let the workload judge its trial (api.workload.trial)")
            }
            Wish::Confirm => self.judge_own(Event::Confirm, &by).map(Some),
            Wish::Reject => self.judge_own(Event::Reject, &by).map(Some),
            Wish::Update { image, reason } => match own.update {
                None => refuse(Code::Unauthorized, "the spec does not let the workload ask for updates"),
                Some(rule) => self.update_own(&rule, image, by, reason).map(Some),
            },
        }
    }

    /// Holds in a row last no longer than the spec says, and as long again passes before the next ones.
    fn hold_own(&mut self, ttl_ms: u64, longest: Duration, by: String, reason: Option<String>) -> Answer {
        if longest.is_zero() {
            return refuse(Code::Unauthorized, "the spec does not let the workload hold updates (api.workload.hold)");
        }
        let now = Instant::now();
        let since = match self.wishes.held_since {
            Some(since) if now < since + longest => since,
            Some(since) if now < since + longest + longest => {
                return refuse(Code::Busy, "updates were held as long as the spec lets the workload; not again yet");
            }
            _ => now,
        };
        let left = (since + longest).saturating_duration_since(now);
        let ttl_ms = ttl_ms.min(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)).max(1);
        let hold = Held { owner: OWNER.to_owned(), by, reason, since_ms: clock::unix_ms(), ttl_ms };
        self.hold(hold)?;
        self.wishes.held_since = Some(since);
        Ok(None)
    }

    fn judge_own(&mut self, event: Event, by: &str) -> Result<Accepted, Problem> {
        let attempt = self.state.attempt.as_ref();
        let serving = self.state.serving.map(|run| run.generation);
        let own = attempt.is_some_and(|attempt| attempt.to == serving && attempt.kind != Kind::Restart);
        let trial = own && matches!(self.state.phase, Phase::Proving | Phase::AwaitingConfirm);
        self.nudge(trial, event, by, "no trial of this generation is under way")
    }

    /// Only while nothing else is asked for: it supersedes nobody.
    fn update_own(
        &mut self,
        rule: &molt_core::spec::OwnUpdate,
        image: ImageRef,
        by: String,
        reason: Option<String>,
    ) -> Result<Accepted, Problem> {
        if let Some(why) = rule.refuses(&image) {
            return refuse(Code::Unauthorized, why);
        }
        if self.state.phase != Phase::Idle || self.state.attempt.is_some() || self.state.queued.is_some() {
            return refuse(Code::Busy, "something else is under way");
        }
        let now = Instant::now();
        if self.wishes.asked.is_some_and(|asked| now < asked + rule.every.as_duration()) {
            return refuse(
                Code::Busy,
                "the workload asked for an update a short while ago (api.workload.update.every)",
            );
        }
        self.wishes.asked = Some(now);
        let target =
            Target::Image { image, policy: None, stage_only: false, force: false, allow_wider: false, spec: None };
        Ok(self.intent(target, by, reason))
    }
}
