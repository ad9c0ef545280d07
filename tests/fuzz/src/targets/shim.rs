//! What a generation's init says to PID 1, which after the gate is untrusted, and what PID 1 says to it.
//!
//! In: a datagram. Out: a panic where a message does not survive being written and read, or a report cannot be compared
//! and shown. Must not: believe any of it.

use molt_core::{
    confined::InForce,
    launch::{Confinement, FromShim, Limits, Report, ToShim},
};
use molt_policy::{astray, changes, compare};

pub(super) fn run(data: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<FromShim>(data) {
        let text = serde_json::to_vec(&message).expect("a message can be written");
        assert_eq!(serde_json::from_slice::<FromShim>(&text).expect("and read"), message);
        if let FromShim::Armed(report) = message {
            armed(&report);
        }
    }
    if let Ok(message) = serde_json::from_slice::<ToShim>(data) {
        let text = serde_json::to_vec(&message).expect("a message can be written");
        assert_eq!(serde_json::from_slice::<ToShim>(&text).expect("and read"), message);
    }
}

fn armed(report: &Report) {
    let side = |report: &Report| InForce::new(&Confinement::default(), report.clone(), Limits::default(), Vec::new());
    let (said, nothing) = (side(report), side(&Report::default()));
    assert!(compare(&said, &said).is_empty(), "wider than itself");
    for wider in compare(&said, &nothing).iter().chain(&compare(&nothing, &said)).chain(&astray(&said)) {
        drop(wider.to_string());
    }
    drop(changes(&nothing, &said));
}
