//! Signed orders: read on a thread of its own, judged here, durable before they are acted on.
//!
//! In: a token, from whatever channel. Out: the same commands that everybody else's requests become. Must not: act on an
//! order whose ratchet is not on disk; write between the first signal to a workload and the exec of the next.

use molt_core::{
    code::Code,
    ids::UpdateId,
    journal::{Came, Revision, Slot},
    machine::Target,
    order::{self, Claims, Facts, Operation, Ratchet, Refusal, Rules},
    wire::{Accepted, AuditView, OrderKeyView, Ordered, OrdersView, Problem, RollbackRequest, UpdateRequest},
};
use tokio::sync::oneshot;

use super::{Brought, Dispatcher};
use crate::{
    aside, clock,
    command::{Command, Reply},
    effects::plan,
    store::audit,
    triggers::order::{self as token, Signed},
};

/// Orders that are read at a time. Reading one costs a thread and a hundred microseconds.
const READING: usize = 4;
/// How long a hold lasts where the order does not say.
const HOLD_S: u64 = 3600;

/// An order that was read.
pub(crate) struct Read {
    signed: Result<Signed, Refusal>,
    by: String,
    /// The revision of a gateway that it came as.
    revision: Option<Revision>,
    reply: Reply<Ordered>,
}

impl Dispatcher {
    /// Has an order read.
    pub(super) fn read_order(
        &mut self,
        jws: Vec<u8>,
        policy: Option<String>,
        by: String,
        revision: Option<Revision>,
        reply: Reply<Ordered>,
    ) {
        if let Err(problem) = self.takes_orders() {
            self.context.audit.refused(&by, "order", problem.code.as_str(), None);
            return drop(reply.send(Err(problem)));
        }
        self.unread_orders += 1;
        let (context, brought) = (std::sync::Arc::clone(&self.context), self.brought.clone());
        drop(tokio::spawn(async move {
            let read = move || token::verify(&context.spec.orders, &jws, policy);
            let gone = || Err(Refusal::Malformed("nobody could read it; send it again".to_owned()));
            let signed = aside::run("order", read).await.unwrap_or_else(gone);
            let _ = brought.send(Brought::Order(Box::new(Read { signed, by, revision, reply })));
        }));
    }

    /// Whether one could be acted on now.
    fn takes_orders(&self) -> Result<(), Problem> {
        if self.context.spec.orders.keys.is_empty() {
            let why = "no key may send orders to this sandbox: spec.orders.keys names none";
            return Err(Problem::new(Code::OrderRefused, why));
        }
        if self.journal.is_none() {
            let why = "there is no usable store to remember orders in, so none is taken; see condition Durable";
            return Err(Problem::new(Code::StoreUnusable, why));
        }
        let later = |why: &str| {
            let why = format!("{why}; nothing was done, send the same order again in a moment");
            Err(Problem { status: 503, ..Problem::new(Code::Busy, why) })
        };
        if self.state.phase.past_signal() {
            return later("a workload is being stopped and another one started, and nothing else is written meanwhile");
        }
        if self.unread_orders >= READING {
            return later("other orders are being read");
        }
        Ok(())
    }

    /// Judges an order that was read, makes it durable, and acts on it.
    pub(super) fn ordered(&mut self, read: Read) {
        self.unread_orders = self.unread_orders.saturating_sub(1);
        let Read { signed, by, revision, reply } = read;
        let answer = match signed {
            Ok(signed) => {
                let Claims { seq, jti, op, .. } = &signed.claims;
                let by = format!("order {} {seq} ({jti}) via {by}", signed.key.id);
                let op = *op;
                let answer = self.take_order(signed, &by, revision);
                self.note_order(&by, op, &answer);
                answer
            }
            Err(refusal) => {
                self.context.audit.refused(&by, "order", refusal.word(), None);
                Err(refused(&refusal))
            }
        };
        // A reply nobody waits for any more is not an error.
        drop(reply.send(answer));
    }

    fn note_order(&self, by: &str, op: Operation, answer: &Result<Ordered, Problem>) {
        let audit = &self.context.audit;
        match answer {
            Ok(ordered) => {
                audit.note(&AuditView { update: ordered.id, ..audit::line("order", by, op.as_str()) });
            }
            Err(problem) => audit.refused(by, "order", problem.code.as_str(), Some(problem.detail.clone())),
        }
    }

    fn take_order(&mut self, signed: Signed, by: &str, revision: Option<Revision>) -> Result<Ordered, Problem> {
        let Signed { claims, key } = signed;
        // It may have become too late while the token was read.
        self.takes_orders()?;
        let orders = &self.context.spec.orders;
        let audience = orders.audience_of(&self.context.spec.name);
        let max_lifetime_s = orders.max_lifetime.as_millis() / 1000;
        let rules = Rules { audience: &audience, max_lifetime_s, keys: &orders.keys };
        let taken = Ratchet { key: key.id.clone(), seq: claims.seq };
        let facts = Facts {
            memory: self.state.slot.orders.as_ref(),
            confirmed: self.state.slot.confirmed,
            now: clock::unix_ms() / 1000,
            again: revision
                .as_ref()
                .zip(self.state.slot.revision.as_ref())
                .is_some_and(|(it, last)| last.again(it, &taken)),
        };
        let memory = order::judge(&claims, &key, rules, facts).map_err(|refusal| refused(&refusal))?;
        self.same_policy(&claims).map_err(|refusal| refused(&refusal))?;
        // In the same write: an order that was taken for a revision can be taken for it again until it touches something.
        let begins = matches!(claims.op, Operation::Update | Operation::Rollback);
        let of_gateway = revision.is_some();
        let revision =
            revision.map(|revision| Revision { update: UpdateId(0), done: !begins, order: Some(taken), ..revision });
        let mut slot = Slot { orders: Some(memory), ..self.state.slot.clone() };
        slot.revision = revision.or(slot.revision);
        if let Some(Err(error)) = self.journal.as_mut().map(|journal| journal.record(&slot)) {
            let why = format!("failed to {error}; the order was not acted on: mend that, and send a new one");
            return Err(Problem::new(Code::StoreUnusable, why));
        }
        (self.state.slot.orders, self.state.slot.revision) = (slot.orders, slot.revision);
        if of_gateway
            && begins
            && let Some(revision) = &mut self.state.slot.revision
        {
            revision.update = UpdateId(self.state.next_update);
        }
        // From here on it is spent, whatever comes of it.
        let (seq, jti, op) = (claims.seq, claims.jti.clone(), claims.op);
        let after_seq = self.context.events.last();
        let number = self.state.next_update;
        let acted = self.act(claims, &key.id, by);
        if let Some(revision) = self.state.slot.revision.as_mut().filter(|_| of_gateway && begins)
            && self.state.next_update == number
        {
            // Nothing came of it, and the number is another's.
            revision.update = UpdateId(0);
        }
        let refusal = acted.as_ref().err().map(|problem| problem.code);
        if of_gateway && (!begins || refusal.is_some()) {
            self.came(refusal);
        }
        let id = acted?.map(|accepted| accepted.id);
        Ok(Ordered { key: key.id, seq, jti, op, id, after_seq })
    }

    /// What came of a gateway's order that began no update is known after a restart, too: what was told to be refused is not
    /// done then.
    fn came(&mut self, refused: Option<Code>) {
        if let Some(revision) = &mut self.state.slot.revision {
            revision.done = true;
            revision.came = Some(refused.map_or(Came::Done, Came::Refused));
        }
        // In a gap it goes with the slot that ends it.
        if !self.quiet()
            && let Some(Err(error)) = self.journal.as_mut().map(|journal| journal.record(&self.state.slot))
        {
            self.warn(format!("failed to {error}; what came of an order would not be known after a restart"));
        }
    }

    /// Where the order says which policy must be in force and brings none, it must be.
    fn same_policy(&self, claims: &Claims) -> Result<(), Refusal> {
        let Some(wanted) = claims.policy_digest.filter(|_| claims.policy.is_none()) else { return Ok(()) };
        let in_force = plan::sha256(self.policy_in_force().as_bytes());
        if in_force == wanted {
            return Ok(());
        }
        Err(Refusal::Policy(format!(
            "no text came with it, and the text in force has the digest {in_force}, not {wanted}"
        )))
    }

    fn act(&mut self, claims: Claims, key: &str, by: &str) -> Result<Option<Accepted>, Problem> {
        let by = by.to_owned();
        let about = claims.update;
        if let Some(id) = about.filter(|id| self.state.attempt.as_ref().is_none_or(|attempt| attempt.id != *id)) {
            return Err(Problem::new(Code::Busy, format!("{id} is not under way; the order is spent")));
        }
        match claims.op {
            Operation::Update => {
                let Some(image) = claims.image else {
                    return Err(Problem::new(Code::Internal, "the order's image is gone"));
                };
                let request = UpdateRequest {
                    image,
                    policy: claims.policy,
                    stage_only: claims.stage_only,
                    force: claims.force,
                    allow_wider: claims.allow_wider,
                    reason: claims.reason,
                };
                self.at_once(|reply| Command::Update { request, by, reply }).map(Some)
            }
            Operation::Rollback if claims.downgrade => {
                Ok(Some(self.intent(Target::BackBelow(claims.to), by, claims.reason)))
            }
            Operation::Rollback => {
                let request = RollbackRequest { to: claims.to, reason: claims.reason };
                self.at_once(|reply| Command::Rollback { request, by, reply }).map(Some)
            }
            Operation::Apply => self.at_once(|reply| Command::Apply { by, reply }).map(Some),
            Operation::Confirm => self.at_once(|reply| Command::Confirm { by, reply }).map(Some),
            Operation::Reject => self.at_once(|reply| Command::Reject { by, reply }).map(Some),
            Operation::Cancel => self.at_once(|reply| Command::Cancel { id: about, by, reply }).map(Some),
            Operation::Hold => {
                let ttl_ms = claims.ttl.unwrap_or(HOLD_S).saturating_mul(1000);
                let (owner, reason) = (format!("order {key}"), claims.reason);
                self.at_once(|reply| Command::Hold { owner, ttl_ms, reason, by, reply }).map(|_| None)
            }
            Operation::Release => self.at_once(|reply| Command::Release { owner: None, by, reply }).map(|()| None),
            Operation::Floor => Ok(None),
        }
    }

    /// A command that is answered before it returns, as everybody else would have it done.
    fn at_once<T>(&mut self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Problem> {
        let (reply, mut answer) = oneshot::channel();
        self.command(command(reply));
        answer.try_recv().unwrap_or_else(|_| Err(Problem::new(Code::Internal, "the order was not answered")))
    }

    /// For the status.
    pub(super) fn orders_view(&self) -> Option<OrdersView> {
        let (spec, memory) = (&self.context.spec.orders, self.state.slot.orders.as_ref());
        if spec.keys.is_empty() && memory.is_none() {
            return None;
        }
        let last = |id: &str| memory.and_then(|memory| memory.last(id)).unwrap_or(0);
        let keys = spec.keys.iter().map(|key| OrderKeyView {
            id: key.id.clone(),
            operations: key.operations.clone(),
            seq: last(&key.id),
        });
        let used = memory.map(|memory| memory.ratchets.as_slice()).unwrap_or_default();
        let others = used.iter().filter(|used| spec.keys.iter().all(|key| key.id != used.key));
        let others = others.map(|used| OrderKeyView { id: used.key.clone(), operations: Vec::new(), seq: used.seq });
        Some(OrdersView {
            audience: spec.audience_of(&self.context.spec.name),
            floor: self.state.slot.floor(),
            keys: keys.chain(others).collect(),
        })
    }
}

fn refused(refusal: &Refusal) -> Problem {
    let mut why = format!("the order is refused: {refusal}; nothing was changed");
    if let Refusal::Replayed { .. } | Refusal::Expired { .. } = refusal {
        why.push_str(". `molt status -o json` has the newest seq of each key; sign a new one");
    }
    Problem::new(Code::OrderRefused, why)
}
