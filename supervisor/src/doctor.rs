//! `molt doctor`: what the container and the kernel give, and the line that mends what they do not.
//!
//! In: nothing. Out: a table, or JSON; exit status 0 when Molt can run here, 1 otherwise. Must not: change anything.

use std::{io::Write as _, path::Path};

use crate::preflight::{self, Finding, Grade};

/// Asks every question and prints the answers.
pub(crate) fn run(json: bool) -> anyhow::Result<u8> {
    let mut findings = preflight::required();
    findings.push(store());
    findings.extend(preflight::optional());
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
        for finding in &findings {
            let mark = match finding.grade {
                Grade::Ok => "ok      ",
                Grade::Degraded => "degraded",
                Grade::Missing => "missing ",
            };
            writeln!(out, "{mark}  {:14} {}", finding.what, finding.found)?;
            if let Some(mend) = finding.mend.as_ref().filter(|_| finding.grade != Grade::Ok) {
                writeln!(out, "{:26}mend: {mend}", "")?;
            }
        }
    }
    Ok(u8::from(missing))
}

fn store() -> Finding {
    let path = std::env::var("MOLT_STORE").unwrap_or_else(|_| crate::boot::STORE.to_owned());
    let overlay =
        rustix::fs::statfs(Path::new(&path)).ok().map(|stat| u64::try_from(stat.f_type).ok() == Some(0x794c_7630));
    let mend = Some(
        "mount a volume there: an emptyDir or PersistentVolumeClaim in a pod, `-v molt:/var/lib/molt` with podman"
            .to_owned(),
    );
    match overlay {
        None => Finding {
            what: "store",
            grade: Grade::Degraded,
            found: format!("{path} is not there yet; without a volume there nothing can be updated"),
            mend,
        },
        Some(true) => Finding {
            what: "store",
            grade: Grade::Missing,
            found: format!("{path} lies on the container's overlay"),
            mend,
        },
        Some(false) => {
            Finding { what: "store", grade: Grade::Ok, found: format!("{path} can hold generations"), mend: None }
        }
    }
}
