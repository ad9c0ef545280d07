//! Every fuzz target in one program, so that the sanitized build is made once; `MOLT_FUZZ_TARGET` names the one to run.
//!
//! In: libFuzzer's arguments and bytes. Out: a crash where something does not hold. Must not: write outside a temporary
//! folder, speak to anybody, or start a program.

#![no_main]

mod tar_input;
mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use targets::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn select() {
    let name = std::env::var("MOLT_FUZZ_TARGET").unwrap_or_default();
    match targets::ALL.iter().find(|target| target.name == name) {
        Some(target) => drop(TARGET.set(target)),
        None => {
            let names: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
            eprintln!("MOLT_FUZZ_TARGET must be one of {}", names.join(" "));
            std::process::exit(2);
        }
    }
}

fuzz_target!(init: { select() }, |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});

// libFuzzer's own mutation, after which headers of a tar get a valid checksum again: otherwise nearly every input would
// end at its first header.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    if TARGET.get().is_some_and(|target| target.is_tar) && seed % 8 != 0 {
        tar_input::mend(&mut data[..size]);
    }
    size
});
