//! `molt doctor`: what the container and the kernel give, what it costs where they do not, and the line that mends it.
//!
//! In: nothing. Out: a table, or JSON; exit status 0 when Molt can run here, 1 otherwise. Must not: change anything.

mod container;
mod folders;
mod kernel;

use std::io::Write as _;

use crate::preflight::{self, Finding, Grade};

/// Asks every question and prints the answers.
pub(crate) fn run(json: bool) -> anyhow::Result<u8> {
    let mut findings = preflight::required();
    findings.extend(container::all());
    findings.extend(kernel::all());
    findings.extend(folders::all());
    // Asked from a shell beside a running Molt, PID 1 is that Molt: what counts is that there is one.
    let beside = std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "molt");
    if beside {
        findings.retain(|finding| finding.what != "PID 1");
    }
    let missing = findings.iter().any(|finding| finding.grade == Grade::Missing);
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &findings)?;
        writeln!(out)?;
    } else {
        findings.iter().try_for_each(|finding| print(&mut out, finding))?;
    }
    Ok(u8::from(missing))
}

fn print(out: &mut impl std::io::Write, finding: &Finding) -> std::io::Result<()> {
    let mark = match finding.grade {
        Grade::Ok => "ok      ",
        Grade::Degraded => "degraded",
        Grade::Missing => "missing ",
    };
    writeln!(out, "{mark}  {:14} {}", finding.what, finding.found)?;
    if finding.grade == Grade::Ok {
        return Ok(());
    }
    for (word, text) in [("costs", &finding.costs), ("mend", &finding.mend)] {
        if let Some(text) = text {
            writeln!(out, "{:26}{word}: {text}", "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_says_what_it_costs_and_what_to_type() {
        let mut text = Vec::new();
        let lacking = Finding::lacking("store", Grade::Degraded, "none", "nothing can be updated", Some("-v molt:/s"));
        for finding in [Finding::ok("PID 1", "molt is PID 1"), lacking] {
            print(&mut text, &finding).unwrap();
        }
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "ok        PID 1          molt is PID 1\n\
             degraded  store          none\n\
             \x20                         costs: nothing can be updated\n\
             \x20                         mend: -v molt:/s\n"
        );
    }
}
