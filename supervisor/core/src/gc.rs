//! Which generations may go.
//!
//! In: what is known, and what is in use. Out: numbers. Must not: remove anything; let go of what boots, what `rollback`
//! returns to, what runs, is on its way to run or is staged, or generation 0.

use std::collections::{BTreeMap, BTreeSet};

use crate::{generation::Record, ids::Generation, machine::State};

/// What may not be removed, whatever `update.keep` says.
pub fn pinned(state: &State) -> BTreeSet<Generation> {
    let (slot, attempt) = (&state.slot, state.attempt.as_ref());
    [slot.confirmed, slot.previous, slot.trial.as_ref().map(|trial| trial.generation)]
        .into_iter()
        .chain([attempt.and_then(|attempt| attempt.to), attempt.and_then(|attempt| attempt.from)])
        .chain([state.queued.as_ref().and_then(|attempt| attempt.to)])
        .chain([state.serving, state.standby].map(|run| run.map(|run| run.generation)))
        .flatten()
        .collect()
}

/// Which generations go: those that may, and `spent`, one that came to nothing, however many are kept.
pub fn going(state: &State, spent: Option<Generation>, keep: usize) -> Vec<Generation> {
    let pinned = pinned(state);
    let mut going = removable(&state.known, &pinned, state.slot.confirmed, keep);
    let spent = spent.filter(|spent| *spent != Generation(0) && state.known.contains_key(spent));
    going.extend(spent.filter(|spent| !pinned.contains(spent) && !going.contains(spent)));
    going
}

/// Which generations may go: all but `pinned` and the newest `keep` others. What is newer than the confirmed one and not
/// pinned came to nothing, and goes before what has proven itself.
fn removable(
    known: &BTreeMap<Generation, Record>,
    pinned: &BTreeSet<Generation>,
    confirmed: Option<Generation>,
    keep: usize,
) -> Vec<Generation> {
    let mut others: Vec<Generation> =
        known.keys().copied().filter(|number| !pinned.contains(number) && *number != Generation(0)).collect();
    // The newest stay; those that are pinned count towards what is kept.
    let room = keep.saturating_sub(pinned.iter().filter(|number| **number != Generation(0)).count());
    let came_to_nothing = |number: &Generation| confirmed.is_some_and(|confirmed| *number > confirmed);
    others.sort_by_key(|number| (came_to_nothing(number), std::cmp::Reverse(*number)));
    others.split_off(room.min(others.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Phase, table};

    fn gone(numbers: &[u32], pinned: &[u32], confirmed: Option<u32>, keep: usize) -> Vec<u32> {
        let like = table::typical(Phase::Idle).known.into_values().next().unwrap();
        let known = numbers.iter().map(|number| (Generation(*number), like.clone())).collect();
        let pinned = pinned.iter().map(|number| Generation(*number)).collect();
        removable(&known, &pinned, confirmed.map(Generation), keep).into_iter().map(|number| number.0).collect()
    }

    #[test]
    fn the_newest_stay_and_pinned_ones_always() {
        assert_eq!(gone(&[0, 1, 2, 3, 4, 5], &[5, 4], Some(5), 3), [2, 1]);
        assert_eq!(gone(&[1, 2, 3, 4, 5], &[1, 5], None, 3), [3, 2]);
        assert_eq!(gone(&[1, 2], &[1, 2], Some(2), 1), Vec::<u32>::new());
        assert_eq!(gone(&[0, 1, 2, 3], &[0], None, 1), [2, 1]);
        // 6 and 7 never came to their gate, or were rolled back.
        assert_eq!(gone(&[2, 3, 4, 5, 6, 7], &[5, 4], Some(5), 3), [2, 7, 6]);
        assert_eq!(gone(&[4, 5, 6, 7], &[5, 4], Some(5), 3), [6]);
    }

    #[test]
    fn what_was_spent_goes_unless_it_is_needed() {
        let mut state = table::typical(Phase::Idle);
        state.attempt = None;
        let spent = *state.known.keys().next_back().unwrap();
        (state.slot.trial, state.slot.confirmed, state.slot.previous) = (None, None, None);
        (state.serving, state.standby) = (None, None);
        assert!(!going(&state, None, 100).contains(&spent));
        assert_eq!(going(&state, Some(spent), 100), [spent]);
        state.slot.previous = Some(spent);
        assert_eq!(going(&state, Some(spent), 100), []);
    }

    #[test]
    fn where_a_queued_rollback_wants_to_go_stays() {
        let mut state = table::typical(Phase::Proving);
        let mut waits = state.attempt.clone().unwrap();
        waits.to = Some(Generation(3));
        state.slot.previous = None;
        state.queued = Some(waits);
        assert!(pinned(&state).contains(&Generation(3)));
    }
}
