//! What a suite is made of: named functions over the bed, and how one of them is run.
//!
//! In: `fn(&Bed) -> anyhow::Result<()>`. Out: a libtest-mimic trial whose failure carries the whole
//! chain of causes and the last words of every sandbox the test had. Must not: skip.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use libtest_mimic::{Failed, Trial};

use super::bed::Bed;

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// `suite::behaviour_in_words`.
    pub name: &'static str,
    /// Only run with `--long`.
    pub long: bool,
    /// Nothing else runs meanwhile: for tests that look at time or at the whole machine.
    pub alone: bool,
    run: fn(&Bed) -> anyhow::Result<()>,
}

/// An ordinary test.
pub const fn case(name: &'static str, run: fn(&Bed) -> anyhow::Result<()>) -> Case {
    Case { name, long: false, alone: false, run }
}

impl Case {
    /// The same, only with `--long`.
    #[must_use]
    pub const fn long(mut self) -> Self {
        self.long = true;
        self
    }

    /// The same, with nothing beside it.
    #[must_use]
    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// A trial that can only be listed.
    pub fn listed(self) -> Trial {
        Trial::test(self.name, || Ok(()))
    }
}

/// Turns a case into what libtest-mimic runs.
pub fn trial(case: Case, bed: &Arc<Bed>) -> Trial {
    let bed = Arc::clone(bed);
    Trial::test(case.name, move || {
        // Poisoned by a test that panicked: the lock guards no data.
        let quiet = &bed.quiet;
        let _alone = case.alone.then(|| quiet.write().unwrap_or_else(PoisonError::into_inner));
        let _beside = (!case.alone).then(|| quiet.read().unwrap_or_else(PoisonError::into_inner));
        LAST_WORDS.take();
        let result = catch_unwind(AssertUnwindSafe(|| (case.run)(&bed)));
        let mut text = match result {
            Ok(Ok(())) => return Ok(()),
            // Not `{:?}`: that one adds a backtrace, and a stripped binary has nothing to say there.
            Ok(Err(error)) => error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  because: "),
            Err(panic) => format!("panicked: {}", message(panic.as_ref())),
        };
        for (name, words) in LAST_WORDS.take() {
            let _ = write!(text, "\n--- last words of {name}\n{}", words.trim_end());
        }
        Err(Failed::from(text))
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("with something that is no text")
}

thread_local! {
    static LAST_WORDS: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the end of a log, to be shown if the test of this thread fails.
pub fn last_words(name: &str, log: &str) {
    let from = log.len().saturating_sub(8 * 1024);
    let from = (from..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
    LAST_WORDS.with_borrow_mut(|all| all.push((name.to_owned(), log[from..].to_owned())));
}
