//! The table of hostile images, fetched one by one: refused with the right code, or unpacked to exactly the right tree.
//!
//! In: `molt_tests::corpus`. Out: verdicts, and how many. Must not: let anything outside the store change.

use molt_oci::{Limits, Registries};
use molt_tests::corpus::{self, Hostile, Verdict};
use molt_tests::harness::snapshot;

use crate::common::Place;

fn judge(case: &Hostile) -> Result<(), String> {
    let place = Place::new();
    let layout = place.path("layout");
    case.alone().write_layout(&layout, "v1").map_err(|error| format!("{error:#}"))?;
    let reference = format!("oci:{}:v1", layout.display());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let result = runtime.block_on(place.pull_with(&reference, &Registries::default(), Limits::default()));
    drop(runtime);
    place.assert_clean();
    match (&case.verdict, result) {
        (Verdict::Refused(code, says), Err(error)) => {
            let text = error.to_string();
            let kept = place.store.layers().map_err(|error| error.to_string())?.len();
            let sound = case.alone().blobs.len().saturating_sub(2);
            match () {
                () if error.code().as_str() != *code => Err(format!("refused as {}: {text}", error.code())),
                () if !text.contains(says) => Err(format!("it does not say {says:?}: {text}")),
                () if text.chars().any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)) => {
                    Err(format!("control characters: {text:?}"))
                }
                () if text.len() > 2000 => Err(format!("{} bytes of text", text.len())),
                () if error.transient() => Err(format!("taken for a fault that passes: {text}")),
                () if kept > sound => Err(format!("{kept} layers are kept")),
                () => Ok(()),
            }
        }
        (Verdict::Taken(tree, _), Ok((_, fetched))) => {
            let last = fetched.layers.last().ok_or("no layer")?;
            let root = place.path("store/layers/sha256").join(last.to_string());
            let lines = snapshot::lines(&root).map_err(|error| format!("{error:#}"))?;
            if lines == *tree { Ok(()) } else { Err(format!("unpacked to {lines:#?}")) }
        }
        (_, Ok(_)) => Err("it was taken".to_owned()),
        (_, Err(error)) => Err(format!("refused as {}: {error}", error.code())),
    }
}

#[test]
fn every_hostile_image_is_refused_or_unpacked_as_it_should_be() {
    let cases = corpus::all();
    let start = std::time::Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let worker = || {
        let mut wrong = Vec::new();
        while let Some(case) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            if let Err(why) = judge(case) {
                wrong.push(format!("{} ({}): {why}", case.name, case.rows.join(" ")));
            }
        }
        wrong
    };
    // Each waits for the disk most of the time.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    println!(
        "hostile images: {} cases over rows {}, sentinel unchanged, {:.1} s",
        cases.len(),
        corpus::rows(&cases),
        start.elapsed().as_secs_f64()
    );
}
