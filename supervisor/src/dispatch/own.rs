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

use super::{Dispatcher, heard::PAUSE};
use crate::{clock, command::Wish, timer::Instant};

/// Whose hold it is.
const OWNER: &str = "workload";
/// How everybody begins who asks on a workload's own socket, and nobody else: `by` of `api::peer`.
const ASKER: &str = "workload of generation ";

/// What the loop remembers of the workload's wishes.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// When the first of its holds in a row began.
    held_since: Option<Instant>,
    /// When it asked for an update last.
    asked: Option<Instant>,
    /// When what it did to its hold was written last.
    written: Option<Instant>,
    /// What it did since is written then.
    due: Option<Instant>,
}

impl Wishes {
    /// There is something to write, and it has waited for long enough.
    pub(super) fn are_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// All that is remembered was written.
    pub(super) fn are_kept(&mut self) {
        self.due = None;
    }
}

/// Whether this is a workload that asks for itself.
pub(super) fn asks(by: &str) -> bool {
    by.starts_with(ASKER)
}

/// Whether a hold is the workload's own. An operator may have given one of its own that owner's name.
pub(super) fn is(hold: &Held) -> bool {
    hold.owner == OWNER && asks(&hold.by)
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
            Wish::Release => self.release_own(&by),
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

    /// Its own hold alone, whatever name another one has.
    fn release_own(&mut self, by: &str) -> Answer {
        match &self.remembered.facts.hold {
            // Nothing to end is no reason for a line in the history.
            None => Ok(None),
            Some(hold) if is(hold) => self.release(Some(OWNER), by).map(|()| None),
            Some(_) => match self.held("nothing was released") {
                Some(problem) => Err(problem),
                None => refuse(Code::Busy, "this is not the workload's hold"),
            },
        }
    }

    /// Writes what the workload did to its hold; not more than once a second, as it does it as often as it likes and PID 1
    /// waits for the disk. A crash takes back what was done in that second.
    pub(super) fn save_own(&mut self) {
        let now = Instant::now();
        match self.wishes.written.map(|written| written + PAUSE).filter(|due| now < *due) {
            None => {
                self.wishes.written = Some(now);
                self.save();
            }
            Some(due) => {
                if self.wishes.due.replace(due).is_none() {
                    self.heard.wake_at(due);
                }
            }
        }
    }

    /// Writes what [`Dispatcher::save_own`] put off.
    pub(super) fn keep_own(&mut self) {
        if self.wishes.due.is_some() {
            self.wishes.written = Some(Instant::now());
            self.save();
        }
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

#[cfg(test)]
mod tests {
    use molt_core::machine::table::typical;

    use super::{super::fake, *};
    use crate::timer;

    const BY: &str = "workload of generation 1, pid 7";

    fn dispatcher() -> Dispatcher {
        fake::dispatcher(typical(Phase::Idle), "image: localhost/app:1\napi: {workload: {hold: 1h}}")
    }

    fn ask(dispatcher: &mut Dispatcher, wish: Wish) -> Result<(), Code> {
        let instance = dispatcher.state.serving.unwrap().instance;
        dispatcher.wish(instance, wish, BY.to_owned()).map(drop).map_err(|problem| problem.code)
    }

    fn wish(ttl_ms: u64) -> Wish {
        Wish::Hold { ttl_ms, reason: None }
    }

    fn operator(owner: &str, ttl_ms: u64) -> Held {
        let by = "uid 0, pid 9 via operator socket".to_owned();
        Held { owner: owner.to_owned(), by, reason: None, since_ms: clock::unix_ms(), ttl_ms }
    }

    #[tokio::test]
    async fn a_workload_that_holds_and_lets_go_without_a_pause_is_written_once_a_second() {
        let mut dispatcher = dispatcher();
        for turn in 0..200 {
            ask(&mut dispatcher, wish(if turn % 2 == 0 { 1000 } else { 60_000 })).unwrap();
            if turn % 3 == 0 {
                ask(&mut dispatcher, Wish::Release).unwrap();
            }
            dispatcher.catch_up();
        }
        let written = |dispatcher: &Dispatcher| dispatcher.remembered.facts.sequence;
        // One of the numbers of events.
        assert_eq!(written(&dispatcher), 2);
        assert!(dispatcher.hold_view().is_some(), "it is in force all the same");
        // The last one is written when its time has come: nobody else has to wake the loop for it.
        timer::timeout(2 * PAUSE, dispatcher.heard.woken()).await.unwrap();
        dispatcher.catch_up();
        assert_eq!(written(&dispatcher), 3);
        dispatcher.catch_up();
        assert_eq!(written(&dispatcher), 3);
        // What an operator does is written at once, and with it what was put off.
        ask(&mut dispatcher, wish(1000)).unwrap();
        dispatcher.release(None, "uid 0, pid 9 via operator socket").unwrap();
        assert_eq!(written(&dispatcher), 4);
        dispatcher.hold(operator("ci", 1000)).unwrap();
        dispatcher.release(Some("ci"), "uid 0, pid 9 via operator socket").unwrap();
        assert_eq!(written(&dispatcher), 6);
    }

    #[tokio::test]
    async fn a_hold_of_an_operator_s_that_has_the_workload_s_name_is_not_the_workload_s() {
        let mut dispatcher = dispatcher();
        // As an older Molt let an operator ask for it.
        dispatcher.remembered.facts.hold = Some(operator(OWNER, 3_600_000));
        dispatcher.restore_hold();
        let before = dispatcher.remembered.facts.hold.clone();
        assert_eq!(ask(&mut dispatcher, wish(1)), Err(Code::Held));
        assert_eq!(ask(&mut dispatcher, Wish::Release), Err(Code::Held));
        assert_eq!(dispatcher.remembered.facts.hold, before);
        assert!(dispatcher.state.hold);
        dispatcher.release(None, "uid 0, pid 9 via operator socket").unwrap();
        // Its own is, after a restart too.
        dispatcher.remembered.facts.hold = Some(Held { by: BY.to_owned(), ..operator(OWNER, 3_600_000) });
        dispatcher.restore_hold();
        assert_eq!(ask(&mut dispatcher, wish(60_000)), Ok(()));
        assert_eq!(dispatcher.hold(operator(OWNER, 1)).map_err(|problem| problem.code), Err(Code::Held));
        assert_eq!(ask(&mut dispatcher, Wish::Release), Ok(()));
        assert!(!dispatcher.state.hold);
    }
}
