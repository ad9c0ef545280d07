//! Naming the step that failed.
//!
//! In: errors of calls. Out: [`Failure`]s that a log line can show as they are. Must not: carry image bytes beyond a
//! path.

use molt_core::launch::Failure;
use rustix::io::Errno;

/// A result of one step.
pub type Step<T> = Result<T, Failure>;

/// A failure that the kernel did not report.
pub fn refuse(step: &str, detail: impl Into<String>) -> Failure {
    Failure { step: step.to_owned(), detail: detail.into(), errno: 0, policy: false }
}

/// Names the step of a result.
pub trait At<T> {
    /// The same result; an error says which step and what it was about.
    fn at(self, step: &str, detail: impl AsRef<str>) -> Step<T>;
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, step: &str, detail: impl AsRef<str>) -> Step<T> {
        self.map_err(|errno| Failure {
            step: step.to_owned(),
            detail: detail.as_ref().to_owned(),
            errno: errno.raw_os_error(),
            policy: false,
        })
    }
}

impl<T> At<T> for molt_sys::Result<T> {
    fn at(self, step: &str, detail: impl AsRef<str>) -> Step<T> {
        self.map_err(|error| Failure {
            step: step.to_owned(),
            detail: match detail.as_ref() {
                "" => error.detail,
                detail => detail.to_owned(),
            },
            errno: error.errno.raw_os_error(),
            policy: false,
        })
    }
}

/// Whether the kernel (or a seccomp profile) says it does not have a call.
pub fn not_there(errno: Errno) -> bool {
    matches!(errno, Errno::NOSYS | Errno::OPNOTSUPP)
}
