//! `molt-redteam`: what a hostile workload would try. Runs as the workload, or beside it by `molt exec`; every probe in a
//! child of its own with a deadline; one line each, `id word`, in the order of the tables.
//!
//! In: nothing (`--list`: prints `id: why` instead; `--id`, `--nothing`, `--bait`: parts of probes; `--portrait ROLE [PROGRAM...]`:
//! see `portrait`). `RT_OPEN` and
//! `RT_SHUT` are TCP ports of the harness on 127.0.0.1, `RT_ABSTRACT` the name of a socket outside. Out: the matrix. Must
//! not: print anything that differs from run to run, or leave anything behind that changes the next run.
//!
//! An id is the row of the list of attacks that it tries, and a name:
//!
//! | rows | what | where |
//! |---|---|---|
//! | F | the floor of refused system calls, by number | `floor` |
//! | L | Landlock, right by right, and what it does not restrict | `files` |
//! | C | what ordinary programs need, and must have | `controls` |
//! | S40 to S52 | how the root is made: mounts, `/proc`, `/dev`, descriptors | `root` |
//! | W55 to W58, E89, E94, E95, Q85 | sockets, ports, the operator's endpoint | `network` |
//! | W59 to W61, W76 to W80, Q81, Q83, Q88 | signals, other processes, limits, notify, what outlives an update | `processes` |
//! | W62 to W65 | namespaces, nesting, programs from memory | `processes`, `floor` |
//! | W66, W67 | secrets: environment, keys, files of the supervisor | `secrets` |
//! | W68, W69 | capabilities, ids, groups, set-id files | `privilege` |
//! | W70 to W72 | terminals, `/proc/sys`, `/sys`, cgroups | `root` |
//!
//! A golden file lists the probes of a row: `grep '^W58' tests/golden/redteam/restrictive.txt`; `--list` says why each is
//! there.
//!
//! No probe: W57 (nothing listens unless `api.listen` says so: the suite `tls`), W73 (faults in the kernel's page cache),
//! W74, W75 (what it prints: the suites `output`, `workload`), Q82, Q84, Q86, Q87 (seen from outside: the suites `exclusive`,
//! `rollback`, `bad`), S41, S42, S46, S47, S53, S54 (made by images: the suite `bad::image`), E90 to E93, E96, E97 (the
//! API's own tests: no byte of a workload reaches it).

mod aid;
mod bait;
mod controls;
mod files;
mod floor;
mod network;
mod portrait;
mod privilege;
mod probe;
mod processes;
mod raw;
mod root;
mod secrets;

use std::{io::Write as _, process::ExitCode, sync::OnceLock};

use probe::Probe;

/// Every probe there is, in the order of the matrix.
fn all() -> impl Iterator<Item = &'static Probe> {
    [
        floor::PROBES,
        files::PROBES,
        root::PROBES,
        network::PROBES,
        processes::PROBES,
        secrets::PROBES,
        privilege::PROBES,
        controls::PROBES,
    ]
    .into_iter()
    .flatten()
}

static STARTED_WITH: OnceLock<Vec<i64>> = OnceLock::new();

/// The descriptors this program was started with. F_GETFD tells an open number from one that is not.
fn started_with() -> &'static [i64] {
    let open = |number: &i64| raw::call(libc::SYS_fcntl, &mut [raw::Arg::N(*number), raw::Arg::N(1)]).is_ok();
    STARTED_WITH.get_or_init(|| (0..1024).filter(open).collect())
}

fn main() -> ExitCode {
    started_with();
    if std::env::args_os().next().is_none_or(|name| name.is_empty()) {
        // By a descriptor, without arguments: that it runs is the answer. A matrix here would start itself again, for ever.
        return ExitCode::SUCCESS;
    }
    let mut out = std::io::stdout().lock();
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--list") => {
            for probe in all() {
                let _ = writeln!(out, "{}: {}", probe.id, probe.why);
            }
            return ExitCode::SUCCESS;
        }
        Some("--id") => {
            let _ = writeln!(out, "{}", privilege::identity());
            return ExitCode::SUCCESS;
        }
        Some("--nothing") => return ExitCode::SUCCESS,
        Some("--bait") => return bait::lay(),
        Some("--portrait") => return portrait::paint(std::env::args().skip(2)),
        Some(_) => return ExitCode::from(2),
    }
    for probe in all() {
        // At once: a probe that ends the whole run shows by the line that is missing.
        if writeln!(out, "{} {}", probe.id, probe::run(probe.run)).and_then(|()| out.flush()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_there_are_enough_of_them() {
        let ids: BTreeSet<&str> = all().map(|probe| probe.id).collect();
        assert_eq!(ids.len(), all().count());
        assert!(ids.len() >= 150, "{}", ids.len());
        for probe in all() {
            assert!(!probe.why.is_empty() && !probe.id.contains(' '), "{}", probe.id);
        }
    }

    #[test]
    fn every_row_that_a_workload_can_try_is_tried() {
        let rows: BTreeSet<&str> = all().filter_map(|probe| probe.id.split_once('.')).map(|(row, _)| row).collect();
        for row in "F L C S40 S43 S44 S45 S48 S49 S50 S51 S52 W55 W56 W58 W59 W60 W61 W62 W63 W64 W65 W66 W67 W68 W69 \
                    W70 W71 W72 W76 W77 W78 W79 W80 Q81 Q83 Q85 Q88 E89 E94 E95"
            .split_whitespace()
        {
            assert!(rows.contains(row), "{row}");
        }
    }
}
