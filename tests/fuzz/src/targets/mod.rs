//! The table of targets: a file each.
//!
//! In: fuzzer bytes. Out: a panic where something does not hold. Must not: keep state from one input to the next.

mod annotations;
mod api;
mod challenge;
mod config;
mod decode;
mod desired;
mod differential;
mod exec_frames;
mod index;
mod journal;
mod layer;
mod manifest;
mod notify;
mod order;
mod policy;
mod reference;
mod shim;
mod spec;
mod tar;
mod unpacker;
mod users;

/// One thing to fuzz.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its file's name.
    pub(crate) name: &'static str,
    /// Takes one input.
    pub(crate) run: fn(&[u8]),
    /// Inputs are tars or stand for one.
    pub(crate) is_tar: bool,
}

const fn plain(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, is_tar: false }
}

const fn tars(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, is_tar: true }
}

/// All of them.
pub(crate) const ALL: [Target; 21] = [
    tars("tar", tar::run),
    tars("differential", differential::run),
    plain("decode", decode::run),
    tars("layer", layer::run),
    plain("unpacker", unpacker::run),
    plain("manifest", manifest::run),
    plain("index", index::run),
    plain("config", config::run),
    plain("reference", reference::run),
    plain("challenge", challenge::run),
    plain("policy", policy::run),
    plain("spec", spec::run),
    plain("journal", journal::run),
    plain("api", api::run),
    plain("desired", desired::run),
    plain("exec_frames", exec_frames::run),
    plain("users", users::run),
    plain("shim", shim::run),
    plain("notify", notify::run),
    plain("order", order::run),
    plain("annotations", annotations::run),
];

/// What is shown to a person or written to a log holds nothing that a terminal obeys.
fn is_plain(text: &str) {
    let bad = text.chars().find(|c| c.is_control() && *c != '\n');
    assert!(bad.is_none(), "a control character ({bad:?}) in a message: {text:?}");
}
