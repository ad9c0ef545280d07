//! One error for all calls: what was called, with what, and the kernel's answer.
//!
//! In: a call's name, its arguments as text, an errno. Out: a fragment that reads like a line of strace. Must not: hold
//! secrets; arguments are paths, flags and numbers.

use rustix::io::Errno;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}({detail}): {errno}")]
pub struct Error {
    /// Name of the call.
    pub call: &'static str,
    /// Its arguments that matter.
    pub detail: String,
    /// The kernel's answer.
    pub errno: Errno,
}

/// What every function here returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failed `call`.
    pub fn new(call: &'static str, detail: impl Into<String>, errno: Errno) -> Self {
        Self { call, detail: detail.into(), errno }
    }
}

/// Turns the result of a raw call into ours.
pub(crate) fn check(call: &'static str, detail: impl FnOnce() -> String, result: i64) -> Result<i64> {
    if result >= 0 {
        return Ok(result);
    }
    let errno = std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    Err(Error::new(call, detail(), errno))
}

/// Adds a call's name and arguments to an errno.
pub(crate) trait Named<T> {
    /// The same result, with its call.
    fn named(self, call: &'static str, detail: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Named<T> for rustix::io::Result<T> {
    fn named(self, call: &'static str, detail: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::new(call, detail(), errno))
    }
}
