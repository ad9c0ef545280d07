//! The red team: what a hostile workload can do, probe by probe, against one golden file a policy. Any difference fails,
//! stricter ones too, wherever the generation came from: boot, update, rollback, restart, `molt exec`.
//!
//! In: the shipped policies and one with ports; the program `molt-redteam` in an image. Out: `tests/golden/redteam`;
//! `MOLT_BLESS=1` writes it anew. The matrix is that of a kernel with Landlock ABI 6 (Linux 6.12) or later, with IPv6. Must
//! not: compare with anything that depends on the mode or the runtime.

mod golden;
mod portrait;
mod range;
mod walls;

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::SOON;
use crate::harness::runtime::Kind;
use crate::harness::wait;

use range::Range;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("redteam::restrictive", |bed| everywhere(bed, Kind::Light, "restrictive")),
    case("redteam::stateful_daemon", |bed| everywhere(bed, Kind::Light, "stateful-daemon")),
    case("redteam::node", |bed| everywhere(bed, Kind::Light, "node")),
    case("redteam::python", |bed| everywhere(bed, Kind::Light, "python")),
    case("redteam::ports", |bed| everywhere(bed, Kind::Light, "ports")),
    case("redteam::user_namespace_restrictive", |bed| everywhere(bed, Kind::LightUser, "restrictive")),
    case("redteam::user_namespace_stateful_daemon", |bed| everywhere(bed, Kind::LightUser, "stateful-daemon")),
    case("redteam::user_namespace_node", |bed| everywhere(bed, Kind::LightUser, "node")),
    case("redteam::user_namespace_python", |bed| everywhere(bed, Kind::LightUser, "python")),
    case("redteam::user_namespace_ports", |bed| everywhere(bed, Kind::LightUser, "ports")),
    case("redteam::the_same_under_crun", |bed| once(bed, Kind::Crun)),
    case("redteam::the_same_under_podman", |bed| once(bed, Kind::Podman)),
    case("redteam::the_same_in_a_user_namespace_under_crun", |bed| once(bed, Kind::CrunUser)),
    case("redteam::the_same_in_a_user_namespace_under_podman", |bed| once(bed, Kind::PodmanUser)),
    case("redteam::what_a_carried_proc_costs_is_known", carried_proc),
    case("redteam::what_a_single_id_costs_is_known", single_id),
    case("redteam::a_terminal_of_its_own_opens_nothing", terminal),
    case("redteam::the_same_as_on_linux_6_14", |bed| older(bed, "6.14")),
    case("redteam::the_same_as_on_linux_5_15", |bed| older(bed, "5.15")),
    case("redteam::the_product_has_no_switch_for_faults", walls::product_has_no_switch),
    case("redteam::a_build_with_the_switch_is_as_strict_without_a_word", walls::nothing_planted),
    case("redteam::finds_that_landlock_is_missing", |bed| walls::missing(bed, "no-landlock")),
    case("redteam::finds_landlock_with_the_rights_of_abi_2", |bed| walls::missing(bed, "landlock-v2")),
    case("redteam::finds_that_seccomp_is_missing", |bed| walls::missing(bed, "no-seccomp")),
    case("redteam::finds_a_shared_pid_namespace", |bed| walls::missing(bed, "shared-pid")),
    case("redteam::finds_a_rule_opened_before_its_mount", |bed| walls::missing(bed, "early-rule")),
    case("redteam::finds_that_the_ids_were_not_changed", |bed| walls::missing(bed, "no-ids")),
    case("redteam::finds_that_no_new_privs_and_nosuid_are_missing", |bed| walls::missing(bed, "no-nnp")),
    case("confinement::is_one_for_the_workload_and_all_that_runs_beside_it", |bed| portrait::one(bed, Kind::Light)),
    case("confinement::is_one_in_a_user_namespace", |bed| portrait::one(bed, Kind::LightUser)),
    case("confinement::is_one_with_a_carried_proc", |bed| portrait::one(bed, Kind::LightUserMasked)),
    case("confinement::is_one_under_podman", |bed| portrait::one(bed, Kind::Podman)),
    case("confinement::is_one_under_crun", |bed| portrait::one(bed, Kind::Crun)).long(),
    case("confinement::is_one_in_a_user_namespace_under_crun", |bed| portrait::one(bed, Kind::CrunUser)).long(),
    case("confinement::is_one_in_a_user_namespace_under_podman", |bed| portrait::one(bed, Kind::PodmanUser)).long(),
    case("confinement::what_runs_beside_the_workload_is_let_go_of", portrait::let_go),
    case("redteam::finds_descriptors_that_were_not_closed", |bed| walls::missing(bed, "no-close")),
];

/// Every way a generation comes to run, under one policy: after boot, update, rollback and restart, as the workload itself
/// and by `molt exec`.
fn everywhere(bed: &Bed, kind: Kind, policy: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut range = Range::open(bed, kind, policy)?;
    let golden = golden::of(policy);
    let first = range.by_the_workload()?;
    if kind == Kind::Light {
        golden.bless(&first)?;
    }
    golden.same("after boot", &first)?;
    // Between two timers there is a moment with one less: what is there most of the time is what stays.
    let mut looks = (0..21).map(|_| range.held_by_pid_1()).collect::<anyhow::Result<Vec<_>>>()?;
    looks.sort_by_key(Vec::len);
    let open = looks.swap_remove(10);
    golden.same("by exec", &range.by_exec()?)?;
    golden.same("again", &range.by_the_workload()?)?;
    wait::until_ok("PID 1 to hold no more than before", SOON, || {
        let now = range.held_by_pid_1()?;
        ensure!(now.len() <= open.len(), "{now:?}, before {open:?}");
        Ok(())
    })?;
    range.molt.expect(0, &["update", &range::image(bed, "v2")?])?;
    golden.same("after an update", &range.by_the_workload()?)?;
    range.molt.expect(0, &["rollback"])?;
    golden.same("after a rollback", &range.by_the_workload()?)?;
    golden.same("by exec, after a rollback", &range.by_exec()?)?;
    ensure!(range.molt.sandbox.kill()? == 137);
    range.molt.sandbox.restart()?;
    range.molt.settled()?;
    range.lay_bait()?;
    golden.same("after a restart", &range.by_the_workload()?)?;
    golden.same("by exec, after a restart", &range.by_exec()?)?;
    if std::env::var_os("MOLT_TESTS_TIMES").is_some() {
        eprintln!(
            "redteam {kind:?} {policy}: 8 runs of {} probes in {:.1} s",
            golden.probes(),
            start.elapsed().as_secs_f64()
        );
    }
    range.molt.sound()
}

fn once(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let range = Range::open(bed, kind, "restrictive").with_context(|| format!("{kind:?}"))?;
    let golden = golden::of("restrictive");
    golden.same("after boot", &range.by_the_workload()?)?;
    golden.same("by exec", &range.by_exec()?)?;
    range.molt.sound()
}

/// Where the kernel refuses a fresh `/proc`, that of PID 1 is shown read-only, and the status says so. Its processes are
/// seen then; what guards them is left: their users, Landlock, seccomp.
const CARRIED_PROC: [(&str, &str); 8] = [
    ("W59.own-namespace", "outer"),
    ("W59.strangers", "seen"),
    ("W59.supervisor", "seen"),
    ("W62.setgroups", "EROFS"),
    ("W62.uid_map", "EROFS"),
    ("W66.argv", "seen"),
    ("W76.score-lower", "EROFS"),
    ("W76.score-raise", "EROFS"),
];

fn carried_proc(bed: &Bed) -> anyhow::Result<()> {
    let range = Range::open(bed, Kind::LightUserMasked, "restrictive")?;
    let golden = golden::of("restrictive");
    golden.but_for(&CARRIED_PROC, "after boot", &range.by_the_workload()?)?;
    golden.but_for(&CARRIED_PROC, "by exec", &range.by_exec()?)?;
    range.molt.sound()
}

/// Where one id is all there is, the workload's user is PID 1's own to the kernel. Owner and mode of a file protect
/// nothing then; a user namespace of its own, the other namespaces, Landlock and seccomp are what is left. It may name the
/// descriptors of its init, not open one, and make files beside its notify socket. Any other id is none here (`EINVAL`).
const SINGLE_ID: [(&str, &str); 20] = [
    ("E94.credentials-forged", "EINVAL"),
    ("L.readable-give-away", "EINVAL"),
    ("L.state-give-away", "EINVAL"),
    ("L.tmp-give-away", "EINVAL"),
    ("L.unlisted-give-away", "EINVAL"),
    ("L.write-program", "ETXTBSY"),
    ("L.write-resolv-conf", "EROFS"),
    ("S52.make-in-run-molt", "ok"),
    ("S52.rename-run-molt", "EBUSY"),
    ("S52.replace-notify", "EBUSY"),
    ("W60.descriptors-of-init", "ok"),
    ("W60.syscall-of-init", "EPERM"),
    ("W61.map_files-of-init", "ok"),
    ("W67.run-molt", "notify,x"),
    ("W68.setgid", "EINVAL"),
    ("W68.setresgid", "EINVAL"),
    ("W68.setresuid", "EINVAL"),
    ("W68.setreuid", "EINVAL"),
    ("W68.setuid", "EINVAL"),
    ("W80.notify-forged", "EINVAL"),
];

fn single_id(bed: &Bed) -> anyhow::Result<()> {
    let range = Range::open(bed, Kind::LightUserSingle, "restrictive")?;
    let golden = golden::of("restrictive");
    golden.but_for(&SINGLE_ID, "after boot", &range.by_the_workload()?)?;
    golden.but_for(&SINGLE_ID, "by exec", &range.by_exec()?)?;
    range.molt.sound()
}

/// `workload.tty`: there is a controlling terminal, and still no way to type into it.
const TERMINAL: [(&str, &str); 2] = [("W70.controlling-terminal", "ok"), ("W70.tiocsti-controlling", "EPERM")];

fn terminal(bed: &Bed) -> anyhow::Result<()> {
    let range =
        Range::open_with(bed, Kind::Light, "restrictive", |setup| Ok(setup.with("/workload/tty", json!(true))))?;
    golden::of("restrictive").but_for(&TERMINAL, "after boot", &range.by_the_workload()?)?;
    range.molt.sound()
}

/// Mounts that PID 1 cannot attach there are attached by the shim: before the rules are opened.
fn older(bed: &Bed, kernel: &str) -> anyhow::Result<()> {
    let range =
        Range::open_with(bed, Kind::Light, "restrictive", |setup| Ok(setup.env("MOLT_PRETEND_KERNEL", kernel)))?;
    golden::of("restrictive").same("after boot", &range.by_the_workload()?)?;
    range.molt.sound()
}
