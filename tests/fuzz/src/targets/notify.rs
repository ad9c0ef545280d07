//! sd_notify(3) datagrams of a workload.
//!
//! In: datagrams with NUL between. Out: a panic where what is kept has no bound or could move a terminal. Must not: wait.

use std::time::Duration;

pub(super) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (status, extension) = molt::fuzzing::notify(text.split('\0'));
    assert!(extension <= Duration::from_mins(10), "{extension:?}");
    if let Some(status) = status {
        super::is_plain(&status);
        assert!(status.chars().count() <= 256 && !status.contains('\n'));
    }
}
