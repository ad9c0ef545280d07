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
    journal::{self, Slot},
    machine::Wanted,
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
        Store,
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
    let interrupted: Vec<UpdateView> = interrupted.map(|one| history::interrupted(one, slot)).collect();
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
    store.id(&new).or_else(|error| refuse(120, format!("failed to {error}")))
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
        Err(error) if args.store.is_some() => {
            let status = error.exit_status();
            refuse(
                status,
                format!("failed to {}; nothing was touched\n    mend: {}", crate::effects::chain(&error), error.mend()),
            )
        }
        Err(error) => {
            let message = format!("failed to {}: {}", crate::effects::chain(&error), error.mend());
            if spec.image.is_some() {
                return refuse(error.exit_status(), format!("{message}\n    an image needs a store to be unpacked in"));
            }
            tracing::warn!("{message}; the container's own root runs, and nothing can be updated");
            facts.not_durable.push(message);
            Ok(None)
        }
    }
}

pub(super) type JournalParts = (Option<Journal>, Slot, BTreeMap<Generation, Record>);

pub(super) fn read_journal(store: Option<&Store>, facts: &mut Facts) -> Result<JournalParts, Refusal> {
    let Some(store) = store else { return Ok((None, Slot::first(), BTreeMap::new())) };
    let (known, shelved) = store.known().or_else(|error| refuse(120, format!("failed to {error}")))?;
    let file = File::open(&store.dir).or_else(|errno| refuse(120, format!("failed to open the journal: {errno}")))?;
    let (journal, opened) = Journal::open(file).or_else(|error| refuse(120, format!("failed to {error}")))?;
    let recovered = journal::recover(opened, shelved);
    if let Some(message) = recovered.reset {
        tracing::warn!("{message}");
        facts.journal_reset = Some(message);
    }
    if let Some(newer) = recovered.newer {
        let message = format!("failed to {newer}; what is confirmed runs, and nothing can be changed");
        tracing::warn!("{message}");
        facts.not_durable.push(message);
    }
    Ok((Some(journal), recovered.slot, known))
}
