//! What a start finds: the store, its journal, and what happened before.
//!
//! In: a path, the spec. Out: the open store, what the journal says, the history completed by what Molt died over. Must not:
//! give out a number twice; touch a store that another Molt has.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use molt_core::{
    generation::Record,
    ids::{Generation, UpdateId},
    journal::{self, Opened, Slot},
    machine::Wanted,
    memory::UnderWay,
    spec::Spec,
    wire::{UpdateView, What},
};

use super::{Refusal, STORE, refuse, table};
use crate::{
    cli::InitArgs,
    dispatch::Facts,
    effects::plan,
    observe::events::EventLog,
    rootfs::{carry, table::within},
    store::{
        Store, StoreError,
        audit::Audit,
        history,
        journal::{File, Journal},
        memory::Remembered,
    },
};

/// Updates of the past that are known from the start on.
const HISTORY: usize = 64;

/// What happened before this start: the history, completed by what Molt died over; the log of events, which goes on where
/// the last start's ended. Numbers that were given out are not given out again.
pub(super) fn past(
    slot: &mut Slot,
    known: &BTreeMap<Generation, Record>,
    audit: &Audit,
    remembered: &mut Remembered,
    spec: &Spec,
    policy: &str,
) -> (EventLog, VecDeque<UpdateView>) {
    let mut past = audit.updates(HISTORY);
    let told = past.iter().filter_map(|view| view.event).max().unwrap_or(0);
    let events = EventLog::new(remembered.facts.events.max(told), &past);
    let digest = plan::sha256(format!("{}\n{policy}", spec.to_document()).as_bytes());
    if remembered.facts.spec.replace(digest) != Some(digest) {
        remembered.facts.revision += 1;
    }
    let lost: Vec<UpdateView> = history::lost(&past, slot, known).into_iter().collect();
    let seen: Vec<UpdateId> = past.iter().chain(&lost).map(|view| view.id).collect();
    let interrupted = std::mem::take(&mut remembered.facts.under_way);
    let newest = remembered.newest().max(interrupted.iter().map(|one| one.update.0).max().unwrap_or(0));
    let resumed = slot.trial.as_ref().map(|trial| trial.update);
    let interrupted = interrupted.iter().filter(|one| !seen.contains(&one.update) && resumed != Some(one.update));
    let mut interrupted: Vec<UpdateView> = interrupted.map(|one| history::interrupted(one, slot)).collect();
    let newer = seen.iter().chain(&resumed).map(|id| id.0).chain(interrupted.iter().map(|view| view.id.0));
    interrupted.extend(key_alone(remembered.newest(), newer.max().unwrap_or(0), slot));
    // Before anybody hears of an event.
    remembered.number(events.last());
    for mut record in lost.into_iter().chain(interrupted) {
        events.number(Some(record.id), |event| {
            record.event = Some(event);
            What::Outcome { result: Box::new(record.clone()) }
        });
        audit.note_now(&record);
        past.push(record);
    }
    let newest = past.iter().map(|view| view.id.0).max().unwrap_or(0).max(newest);
    slot.next_update = slot.next_update.max(newest + 1);
    (events, VecDeque::from(past))
}

/// A request whose key is the only thing that is known of it: Molt was killed between two writes, before anybody was told
/// its number. Whoever comes again with the key is told that number, and there is an end to be had under it.
fn key_alone(newest_key: u64, newest: u64, slot: &Slot) -> Option<UpdateView> {
    let verdict = slot.verdict.as_ref().map(|verdict| verdict.update.0);
    let revision = slot.revision.as_ref().map(|revision| revision.update.0);
    if newest_key <= [Some(newest), verdict, revision].into_iter().flatten().max().unwrap_or(0) {
        return None;
    }
    let request = UnderWay {
        update: UpdateId(newest_key),
        kind: "update".to_owned(),
        image: None,
        by: "a request with an Idempotency-Key".to_owned(),
        note: None,
        since_ms: crate::clock::unix_ms(),
    };
    let message = "molt was killed as it took this request, before it wrote down what was asked for; nothing was done: ask \
                   again, with a new Idempotency-Key";
    Some(UpdateView { message: message.to_owned(), ..history::interrupted(&request, slot) })
}

/// A journal that is lost makes no wish of a text that stayed as it is. Nobody knows whether it did: what the spec says now
/// counts as acted on, and who changed it meanwhile has to ask again.
pub(super) fn no_new_wish(slot: &mut Slot, wanted: Option<&Wanted>, facts: &Facts) {
    if let Some(wanted) = wanted.filter(|_| facts.journal_reset.is_some() && slot.confirmed.is_some()) {
        (slot.spec_image, slot.spec_policy) = wanted.texts;
    }
}

/// What tells the store from every other one; made up for this start where there is none.
pub(super) fn store_id(store: Option<&Store>) -> Result<String, Refusal> {
    let new = crate::gateway::files::random_id().or_else(|why| refuse(125, why))?;
    let Some(store) = store else { return Ok(new) };
    match store.id(&new) {
        // Made up for this start here, too: it was never told to anybody.
        Err(StoreError::ReadOnly(_)) => Ok(new),
        known => known.or_else(|error| refuse(120, format!("failed to {error}"))),
    }
}

pub(super) fn open_store(args: &InitArgs, spec: &Spec, facts: &mut Facts) -> Result<Option<Arc<Store>>, Refusal> {
    let path = args.store.clone().unwrap_or_else(|| PathBuf::from(STORE));
    let text = path.display().to_string();
    // By its name, and by where it really is: a link or a second mount of the same volume leads to the same place.
    let by_name = spec.state.iter().find(|state| within(&text, state));
    let table = table()?;
    if let Some(state) = by_name.or_else(|| carry::shown_with_state(&table, &spec.state, &path)) {
        return refuse(
            122,
            format!(
                "the store {text} lies in the state path {state}, which the workload writes; give it a folder of its own"
            ),
        );
    }
    match Store::open(&path) {
        Ok(store) => Ok(Some(Arc::new(store))),
        Err(error) => without_store(args, spec, &error, facts).map(|()| None),
    }
}

/// There is no store: a refusal where one was asked for or is needed; else the container's own root runs.
fn without_store(args: &InitArgs, spec: &Spec, error: &StoreError, facts: &mut Facts) -> Result<(), Refusal> {
    let status = error.exit_status();
    let said = crate::effects::chain(error);
    if args.store.is_some() {
        return refuse(status, format!("failed to {said}; nothing was touched\n    mend: {}", error.mend()));
    }
    let message = format!("failed to {said}: {}", error.mend());
    if spec.image.is_some() {
        return refuse(status, format!("{message}\n    an image needs a store to be unpacked in"));
    }
    tracing::warn!("{message}; the container's own root runs, and nothing can be updated");
    facts.not_durable.push(message);
    Ok(())
}

pub(super) type JournalParts = (Option<Arc<Store>>, Option<Journal>, Slot, BTreeMap<Generation, Record>);

/// What the journal says; of a store that is read-only nothing is kept open to be written. One in which nothing was ever
/// confirmed is then as good as none.
pub(super) fn read_journal(
    args: &InitArgs,
    spec: &Spec,
    store: Option<Arc<Store>>,
    facts: &mut Facts,
) -> Result<JournalParts, Refusal> {
    let Some(store) = store else { return Ok((None, None, Slot::first(), BTreeMap::new())) };
    let (known, shelved) = store.known().or_else(|error| refuse(120, format!("failed to {error}")))?;
    let (journal, opened) = if store.read_only { (None, File::peek(&store)) } else { opened(&store)? };
    let recovered = journal::recover(opened, shelved);
    if store.read_only {
        let error = StoreError::ReadOnly(store.path.display().to_string());
        if recovered.slot.confirmed.is_none() {
            without_store(args, spec, &error, facts)?;
            return Ok((None, None, Slot::first(), BTreeMap::new()));
        }
        let message =
            format!("failed to {error}; what is confirmed runs, and nothing can be changed: {}", error.mend());
        tracing::warn!("{message}");
        facts.not_durable.push(message);
    }
    if let Some(message) = recovered.reset {
        tracing::warn!("{message}");
        facts.journal_reset = Some(message);
    }
    if let Some(newer) = recovered.newer {
        let message = format!("failed to {newer}; what is confirmed runs, and nothing can be changed");
        tracing::warn!("{message}");
        facts.not_durable.push(message);
    }
    Ok((Some(store), journal, recovered.slot, known))
}

fn opened(store: &Store) -> Result<(Option<Journal>, Opened), Refusal> {
    let file = File::open(&store.dir).or_else(|errno| refuse(120, format!("failed to open the journal: {errno}")))?;
    let (journal, opened) = Journal::open(file).or_else(|error| refuse(120, format!("failed to {error}")))?;
    Ok((Some(journal), opened))
}

#[cfg(test)]
mod tests {
    use molt_core::{
        code::Code,
        journal::{Trial, Verdict},
        wire::Outcome,
    };

    use super::*;
    use crate::store::history::History;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("molt-found-{name}-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        /// A start over what is there: what came of requests, oldest first, and the number that is given out next.
        fn start(&self, slot: &Slot) -> (Vec<UpdateView>, u64) {
            let store = Store::open(&self.0).unwrap();
            let audit = Audit::resume(History::open(&store.dir).unwrap());
            let (mut remembered, mut slot) = (Remembered::open(Some(&store)), slot.clone());
            let (_, past) = past(&mut slot, &BTreeMap::new(), &audit, &mut remembered, &Spec::default(), "");
            (past.into(), slot.next_update)
        }

        /// As `Dispatcher::on` and `Dispatcher::remember` write it.
        fn asked(&self, id: u64, under_way: Option<UnderWay>) {
            let store = Store::open(&self.0).unwrap();
            let mut remembered = Remembered::open(Some(&store));
            remembered.remember([u8::try_from(id).unwrap(); 32], [2; 32], UpdateId(id)).unwrap();
            remembered.facts.under_way = under_way.into_iter().collect();
            remembered.save().unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn ids(past: &[UpdateView]) -> Vec<u64> {
        past.iter().map(|view| view.id.0).collect()
    }

    #[test]
    fn a_request_of_which_the_key_alone_is_known_has_an_end_and_only_one() {
        let folder = Folder::new("key");
        let slot = Slot { confirmed: Some(Generation(3)), next_update: 7, ..Slot::first() };
        folder.asked(7, None);
        for _ in 0..2 {
            let (past, next) = folder.start(&slot);
            assert_eq!((ids(&past), next), (vec![7], 8));
            assert_eq!((past[0].outcome, past[0].reason), (Some(Outcome::Aborted), Some(Code::Interrupted)));
            assert!(past[0].message.contains("with a new Idempotency-Key"), "{}", past[0].message);
        }
        // Of the next one more is known.
        let (kind, by) = ("rollback".to_owned(), "uid 0".to_owned());
        folder.asked(9, Some(UnderWay { update: UpdateId(9), kind, image: None, by, note: None, since_ms: 1 }));
        let (past, next) = folder.start(&slot);
        assert_eq!((ids(&past), next, past[1].kind.as_str()), (vec![7, 9], 10, "rollback"));
    }

    #[test]
    fn a_keyed_request_that_came_to_its_trial_or_to_its_end_has_no_other_end() {
        let folder = Folder::new("known");
        folder.asked(7, None);
        let trial = Trial {
            generation: Generation(4),
            update: UpdateId(7),
            rollback: false,
            boot_id: String::new(),
            clean_stop: true,
            suspect: false,
        };
        let slot = Slot { trial: Some(trial), ..Slot::first() };
        assert_eq!(folder.start(&slot), (vec![], 8));
        let verdict = Verdict { update: UpdateId(7), kind: "update".to_owned(), outcome: Outcome::Confirmed };
        let slot = Slot { confirmed: Some(Generation(3)), verdict: Some(verdict), ..Slot::first() };
        let (past, _) = folder.start(&slot);
        assert_eq!((ids(&past), past[0].outcome), (vec![7], Some(Outcome::Confirmed)));
    }
}
