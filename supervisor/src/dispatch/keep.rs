//! What the dispatcher keeps over a restart beside the journal: the hold, requests under way, keys of requests, numbers.
//!
//! In: commands on terms, holds. Out: answers; what is remembered in the store. Must not: write between the first signal to
//! the old workload and the exec of the new one: what wants to is put off until then.

use std::time::Duration;

use molt_core::{
    code::Code,
    ids::{Generation, UpdateId},
    machine::{Back, Event, Phase, Target},
    memory::{Held, UnderWay},
    wire::{Accepted, Difference, HoldView, Problem},
};

use super::{Dispatcher, own};
use crate::{
    aside, clock,
    command::{Command, Reply, Terms},
    effects::difference::{self, Side},
    store::memory::Known,
    timer,
};

/// Commands that wait for the end of a gap, at most.
const PUT_OFF: usize = 64;
/// Longest words of a request that are remembered, in bytes.
const WORDS: usize = 2048;

impl Dispatcher {
    /// Takes a command whose terms are met.
    pub(super) fn on(&mut self, terms: Terms, command: Command) {
        if let Some((key, request)) = terms.key {
            match self.remembered.known(&key, &request) {
                Some(Known::Same(id)) => return command.repeat(Accepted { id, after_seq: 0 }),
                Some(Known::Other(id)) => {
                    let why = format!(
                        "this Idempotency-Key came with another request before, which became {id}; a new request needs a \
                         new key"
                    );
                    return command.refuse(Problem::new(Code::KeyReused, why));
                }
                None => {}
            }
        }
        let revision = self.revision();
        if terms.revisions.as_ref().is_some_and(|wanted| !wanted.contains(&revision)) {
            let why = format!(
                "If-Match: the sandbox is at {revision} by now (last request, generation that serves); nothing was done. \
                 GET /v1/status has what is, and its ETag"
            );
            return command.refuse(Problem::new(Code::Stale, why));
        }
        if let Some((key, request)) = terms.key {
            if self.quiet() {
                return self.put_off(Command::On { terms, command: Box::new(command) });
            }
            // Before it is taken: what is taken is known by its key, whenever Molt dies.
            if let Err(why) = self.remembered.remember(key, request, UpdateId(self.state.next_update)) {
                return command.refuse(Problem::new(Code::StoreUnusable, format!("{why}; nothing was done")));
            }
        }
        self.command(command);
    }

    /// From the first signal to a workload to the exec of the next one, also where that one has to be armed first.
    pub(super) fn quiet(&self) -> bool {
        self.in_gap() || self.state.phase == Phase::RollingBack(Back::Arming)
    }

    /// Takes it when the gap is over.
    fn put_off(&mut self, command: Command) {
        if self.put_off.len() >= PUT_OFF {
            return command.refuse(Problem::new(Code::Busy, "a workload is being changed; try again in a moment"));
        }
        self.put_off.push_back(command);
    }

    /// Does what had to wait for the end of the gap.
    pub(super) fn catch_up(&mut self) {
        if self.quiet() {
            return;
        }
        if std::mem::take(&mut self.forgetful) {
            self.save();
        }
        if self.wishes.are_due() {
            self.keep_own();
        }
        self.remembered.number(self.context.events.last());
        while !self.quiet()
            && let Some(command) = self.put_off.pop_front()
        {
            self.command(command);
        }
    }

    /// The last request that was taken, and what serves: what `If-Match` is compared with.
    pub(super) fn revision(&self) -> String {
        let serves = self.state.serving.map_or_else(|| "-".to_owned(), |run| run.generation.to_string());
        format!("u{}.g{serves}", self.state.next_update.saturating_sub(1))
    }

    /// Remembers a request that is about to be taken, until it has ended.
    pub(super) fn remember(&mut self, target: &Target, by: &str, note: Option<&String>) {
        let (kind, image) = match target {
            Target::Image { image, .. } => ("update", Some(image.to_string())),
            Target::Back(_) | Target::BackBelow(_) => ("rollback", None),
        };
        let known = [&self.state.attempt, &self.state.queued].map(|one| one.as_ref().map(|attempt| attempt.id));
        let short = |text: &str| -> String {
            let whole = (0..=WORDS.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.get(..whole).unwrap_or_default().to_owned()
        };
        let under_way = &mut self.remembered.facts.under_way;
        under_way.retain(|one| known.contains(&Some(one.update)));
        under_way.push(UnderWay {
            update: UpdateId(self.state.next_update),
            kind: kind.to_owned(),
            image: image.map(|image| short(&image)),
            by: short(by),
            note: note.map(|note| short(note)),
            since_ms: clock::unix_ms(),
        });
        self.save();
    }

    /// Requests that ended so long ago that the history surely has them: a start that looks only at its newest lines must
    /// not take them for interrupted. Not at once: until its line is on disk, this is all that knows of an end.
    pub(super) fn forget_ended(&mut self, ended: &[UpdateId]) {
        let under_way = &mut self.remembered.facts.under_way;
        let before = under_way.len();
        under_way.retain(|one| !ended.contains(&one.update));
        self.forgetful |= under_way.len() != before;
    }

    /// Writes what is remembered, now or after the gap. What cannot be written is known as long as Molt runs.
    pub(super) fn save(&mut self) {
        self.wishes.are_kept();
        if self.quiet() {
            self.forgetful = true;
        } else if let Err(why) = self.remembered.save() {
            tracing::warn!("{why}");
        }
    }

    /// The hold that was in force when Molt ended.
    pub(super) fn restore_hold(&mut self) {
        let Some(hold) = self.remembered.facts.hold.clone() else { return };
        let left = hold.left_ms(clock::unix_ms());
        if left == 0 {
            self.remembered.facts.hold = None;
            return;
        }
        tracing::info!(owner = hold.owner, by = hold.by, left_ms = left, "updates are held, as before this start");
        self.keep_hold(left);
        self.take(Event::Hold);
    }

    /// Ends the hold in time.
    fn keep_hold(&mut self, left_ms: u64) {
        let answers = self.answers.clone();
        let timer = tokio::spawn(async move {
            timer::sleep(Duration::from_millis(left_ms)).await;
            let _ = answers.send(Event::Release);
        });
        if let Some(old) = self.hold_timer.replace(timer.abort_handle()) {
            old.abort();
        }
    }

    /// The hold in force.
    pub(super) fn hold_view(&self) -> Option<HoldView> {
        self.remembered.facts.hold.as_ref().filter(|_| self.state.hold).map(view)
    }

    /// Why something is not done while updates are held: who, until when.
    pub(super) fn held(&self, what: &str) -> Option<Problem> {
        let hold = self.remembered.facts.hold.as_ref().filter(|_| self.state.hold)?;
        let view = view(hold);
        let why = hold.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let text = format!("{what}: {} holds updates until {}{why}; `molt release` ends that", hold.owner, view.until);
        let (hold, ttl_ms) = (Some(Box::new(view)), Some(hold.left_ms(clock::unix_ms())));
        Some(Problem { hold, ttl_ms, ..Problem::new(Code::Held, text) })
    }

    pub(super) fn hold(&mut self, hold: Held) -> Result<HoldView, Problem> {
        let own = own::is(&hold);
        let other = |old: &Held| self.state.hold && (old.owner != hold.owner || own::is(old) != own);
        if self.remembered.facts.hold.as_ref().is_some_and(other)
            && let Some(problem) = self.held("nothing was changed")
        {
            return Err(problem);
        }
        if !own {
            tracing::info!(owner = hold.owner, by = hold.by, ttl_ms = hold.ttl_ms, "updates are held");
        }
        let why = hold.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let detail = format!("by {} for {} s{why}", hold.owner, hold.ttl_ms / 1000);
        if own {
            self.context.audit.asked_often(&hold.by, "hold", Some(detail));
        } else {
            self.context.audit.asked(&hold.by, "hold", None, Some(detail));
        }
        let view = view(&hold);
        self.keep_hold(hold.ttl_ms);
        self.remembered.facts.hold = Some(hold);
        if own {
            self.save_own();
        } else {
            self.save();
        }
        self.take(Event::Hold);
        Ok(view)
    }

    pub(super) fn release(&mut self, owner: Option<&str>, by: &str) -> Result<(), Problem> {
        let mine = self.remembered.facts.hold.as_ref().is_none_or(|hold| owner.is_none_or(|owner| hold.owner == owner));
        if !mine && let Some(problem) = self.held("nothing was released") {
            return Err(problem);
        }
        if own::asks(by) {
            self.context.audit.asked_often(by, "release", None);
        } else {
            tracing::info!(by, "hold released");
            self.context.audit.asked(by, "release", None, None);
        }
        if let Some(timer) = self.hold_timer.take() {
            timer.abort();
        }
        self.let_updates_go();
        if !own::asks(by) {
            self.keep_own();
        }
        self.take(Event::Release);
        Ok(())
    }

    /// Forgets the hold: it was released, or has ended by itself.
    pub(super) fn let_updates_go(&mut self) {
        if let Some(hold) = self.remembered.facts.hold.take() {
            if own::is(&hold) {
                self.save_own();
            } else {
                self.save();
            }
        }
    }

    pub(super) fn compare(&self, from: Generation, to: Generation, reply: Reply<Difference>) {
        let context = std::sync::Arc::clone(&self.context);
        let [from_record, to_record] = [from, to].map(|number| self.state.known.get(&number).cloned());
        aside::start("compare", move || {
            let side = |number: Generation, record: Option<molt_core::generation::Record>| {
                let missing =
                    || Problem::new(Code::NotFound, format!("no generation {number} in the store: see molt history"));
                Side::of(&context, record.as_ref()).ok_or_else(missing)
            };
            let difference = side(from, from_record).and_then(|from| {
                let to = side(to, to_record)?;
                difference::between(&context, &from, &to).map_err(|fault| Problem::new(fault.code, fault.message))
            });
            let _ = reply.send(difference);
        });
    }
}

fn view(hold: &Held) -> HoldView {
    HoldView {
        owner: hold.owner.clone(),
        by: hold.by.clone(),
        reason: hold.reason.clone(),
        since: clock::text(hold.since_ms),
        until: clock::text(hold.until_ms()),
    }
}
