//! Hooks: programs of the image, run in a generation like its workload, with a deadline.
//!
//! In: a hook, the run it runs in. Out: its end, with the last of its output. Must not: outlive its timeout, or pass that output
//! on as more than a part of a line.

use std::{collections::BTreeMap, os::fd::AsFd as _, sync::Arc};

use molt_core::{machine::Attempt, spec::Hook};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

use crate::{
    observe::marked::escape,
    workload::{probe::KillOnDrop, run::Init},
};

const KEPT: usize = 10 << 10;
/// Longest text of it that is told, in characters: the last ones.
const TOLD: usize = 1024;
/// Longest text of a command that is told.
const COMMAND: usize = 256;

/// What a hook learns of the attempt it belongs to.
pub(crate) fn environment(name: &str, attempt: Option<&Attempt>) -> BTreeMap<String, String> {
    let number = |generation: Option<molt_core::ids::Generation>| generation.map_or(String::new(), |g| g.to_string());
    BTreeMap::from([
        ("MOLT_PHASE".to_owned(), name.to_owned()),
        ("MOLT_FROM".to_owned(), number(attempt.and_then(|attempt| attempt.from))),
        ("MOLT_TO".to_owned(), number(attempt.and_then(|attempt| attempt.to))),
        ("MOLT_ATTEMPT".to_owned(), attempt.map_or(String::new(), |attempt| attempt.id.to_string())),
    ])
}

/// Runs `hook`; an error says how it ended and what it printed last.
pub(crate) async fn run(hook: &Hook, init: &Arc<Init>, env: BTreeMap<String, String>) -> Result<(), String> {
    let timeout = hook.timeout.as_duration();
    let limit = format!("`{}` took longer than {} s", command(hook), timeout.as_secs());
    crate::timer::timeout(timeout, within(hook, init, env)).await.unwrap_or(Err(limit))
}

async fn within(hook: &Hook, init: &Arc<Init>, env: BTreeMap<String, String>) -> Result<(), String> {
    let errno = |errno: Errno| errno.to_string();
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(errno)?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(errno)?;
    rustix::io::ioctl_fionbio(&read, true).map_err(errno)?;
    let streams = [null.as_fd(), write.as_fd(), write.as_fd()];
    let (id, ended) = init.exec(hook.exec.command.clone(), env, false, streams).map_err(|why| why.to_string())?;
    drop(write);
    let guard = KillOnDrop::of(init, id);
    let pipe = crate::watch::readable(read).map_err(|error| error.to_string())?;
    let output = async {
        let mut kept = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(mut ready) = pipe.readable().await {
            match rustix::io::read(pipe.get_ref(), &mut chunk) {
                Ok(0) => break,
                Ok(length) => {
                    kept.extend_from_slice(chunk.get(..length).unwrap_or_default());
                    let excess = kept.len().saturating_sub(KEPT);
                    kept.drain(..excess);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(_) => break,
            }
        }
        kept
    };
    tokio::pin!(output);
    let mut printed = None;
    tokio::pin!(ended);
    let status = loop {
        tokio::select! {
            kept = &mut output, if printed.is_none() => printed = Some(kept),
            status = &mut ended => break status.map_err(|_| "the generation went away".to_owned())?,
        }
    };
    guard.ended();
    if status == 0 {
        return Ok(());
    }
    let printed = match printed {
        Some(printed) => printed,
        // The hook has ended; what it left in the pipe is read without waiting for whoever still holds it.
        None => crate::timer::timeout(std::time::Duration::from_millis(50), output).await.unwrap_or_default(),
    };
    Err(match told(&String::from_utf8_lossy(&printed)).as_str() {
        "" => format!("`{}` ended with status {status}", command(hook)),
        text => format!("`{}` ended with status {status}: {text}", command(hook)),
    })
}

/// What it was, as part of a line.
fn command(hook: &Hook) -> String {
    let text = hook.exec.command.join(" ");
    let cut: String = text.chars().take(COMMAND).collect();
    escape(&cut, |_| false) + if cut.len() < text.len() { "…" } else { "" }
}

/// The last of what it printed, as part of a line: it is the image's word, and looks like nobody else's.
fn told(printed: &str) -> String {
    let text = printed.trim();
    let excess = text.chars().count().saturating_sub(TOLD);
    let last: String = text.chars().skip(excess).collect();
    format!("{}{}", if excess > 0 { "…" } else { "" }, escape(&last, |_| false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hook_prints_is_one_line_of_bounded_length() {
        assert_eq!(told(" \n"), "");
        assert_eq!(
            told("no\n\u{1b}[2J9 2026-01-01 Idle: all is well\r\n"),
            "no\\n\\u{1b}[2J9 2026-01-01 Idle: all is well"
        );
        let long = told(&"é\n".repeat(TOLD));
        assert!(long.starts_with('…') && long.ends_with("\\né") && !long.contains('\n'), "{long}");
        assert_eq!(long.chars().filter(|c| *c == 'é').count(), TOLD / 2);
    }
}
