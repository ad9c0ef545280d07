//! What counts as wider, and what does not.

use molt_core::launch::{Landlock, PathRule};

use super::*;

const ALL: u64 = (1 << 16) - 1;

fn rule(path: &str, rights: u64) -> AppliedRule {
    AppliedRule { path: path.to_owned(), resolved: path.to_owned(), rights }
}

fn report(rules: &[(&str, u64)]) -> Report {
    Report {
        handled_fs: ALL,
        scoped: 3,
        no_new_privs: true,
        seccomp_mode: 2,
        seccomp_filters: 4,
        uid: 1000,
        gid: 1000,
        rules: rules.iter().map(|(path, rights)| rule(path, *rights)).collect(),
        ..Report::default()
    }
}

fn against(old: &Report, new: &Report) -> Vec<String> {
    let none = Confinement::default();
    let side = |report| Resolved { confinement: &none, report };
    compare(&side(old), &side(new)).iter().map(ToString::to_string).collect()
}

#[test]
fn the_same_or_less_is_not_wider() {
    let old = report(&[("/usr", READ), ("/sandbox", ALL)]);
    assert!(against(&old, &old).is_empty());
    assert!(against(&old, &report(&[("/usr/lib", READ), ("/sandbox/state", ALL), ("/sandbox/x", READ)])).is_empty());
    assert!(against(&old, &report(&[])).is_empty());
}

#[test]
fn a_path_counts_by_where_it_leads() {
    let old = report(&[("/usr", READ), ("/bin", READ)]);
    let merged =
        Report { rules: vec![AppliedRule { resolved: "/usr/bin".into(), ..rule("/bin", READ) }], ..old.clone() };
    assert!(against(&old, &merged).is_empty(), "/bin became a link into /usr");
    let astray =
        Report { rules: vec![AppliedRule { resolved: "/secret".into(), ..rule("/bin", READ) }], ..old.clone() };
    assert_eq!(against(&old, &astray), ["/bin (that is /secret) can be read now: execute, read_file, read_dir"]);
}

#[test]
fn more_rights_below_a_path_are_wider_each_by_name() {
    let old = report(&[("/usr", READ), ("/etc", READ)]);
    let write = 0b10;
    assert_eq!(against(&old, &report(&[("/etc", READ | write)])), ["/etc can be changed now: write_file"]);
    assert_eq!(against(&old, &report(&[("/", READ)])), ["/ can be read now: execute, read_file, read_dir"]);
    assert_eq!(against(&old, &report(&[("/usrx", 0b100)])), ["/usrx can be read now: read_file"]);
}

#[test]
fn rights_add_up_over_the_rules_above() {
    let old = report(&[("/", 0b100), ("/a", 0b1000)]);
    assert!(against(&old, &report(&[("/a/b", 0b1100)])).is_empty());
}

#[test]
fn a_path_the_old_image_did_not_have_was_granted_all_the_same() {
    let promised = Confinement {
        landlock: Some(Landlock {
            paths: vec![PathRule { path: "/opt".into(), access: Access::ReadOnly, derived: false }],
            ..Landlock::default()
        }),
        ..Confinement::default()
    };
    let old = Report { missing: vec!["/opt".into()], ..report(&[]) };
    let wider = |new: &Report| {
        let side = |report| Resolved { confinement: &promised, report };
        compare(&side(&old), &side(new)).len()
    };
    assert_eq!(wider(&report(&[("/opt", READ)])), 0);
    assert_eq!(wider(&report(&[("/opt", ALL)])), 1, "but only for reading");
}

#[test]
fn what_is_lost_is_wider() {
    let old = report(&[("/usr", READ)]);
    let with = |change: fn(&mut Report)| {
        let mut new = old.clone();
        change(&mut new);
        against(&old, &new)
    };
    assert_eq!(with(|r| r.handled_fs = 0), ["no path is restricted any more (Landlock is off)"]);
    assert_eq!(with(|r| r.handled_fs &= !(1 << 14)), ["not restricted any more on any path: truncate"]);
    assert_eq!(with(|r| r.scoped = 1), ["can reach outside the sandbox by signals"]);
    assert_eq!(with(|r| r.no_new_privs = false), ["can gain privileges by exec (no_new_privs is off)"]);
    assert_eq!(with(|r| r.seccomp_mode = 0), ["fewer system calls are refused"]);
    assert_eq!(with(|r| r.seccomp_filters = 3), ["fewer system calls are refused"]);
    assert_eq!(with(|r| r.capabilities = 1 << 21), ["has capabilities it did not have: 0x200000"]);
    assert_eq!(with(|r| r.uid = 0), ["runs as root"]);
    assert_eq!(with(|r| r.groups = vec![0]), ["is in the group 0"]);
    assert!(with(|r| r.uid = 1001).is_empty());
    let none = Report { handled_fs: 0, ..old.clone() };
    assert!(against(&none, &report(&[("/", ALL)])).is_empty(), "from no Landlock to some is narrower");
}

fn of(text: &str) -> Confinement {
    let context = crate::Context { workdir: "/app", state: &[], program: None, proxy_ports: &[], kernel_abi: 7 };
    crate::lower(&crate::parse(text.as_bytes()).unwrap(), &context).confinement
}

fn texts(old: &Confinement, new: &Confinement) -> Vec<String> {
    let (before, after) = (assumed(old), assumed(new));
    let found =
        compare(&Resolved { confinement: old, report: &before }, &Resolved { confinement: new, report: &after });
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn two_policies_are_compared_before_either_runs() {
    let files = "version: 1\nfilesystem_policy: {read_only: [/usr], read_write: [/tmp]}\n";
    let net =
        |ports: &str| format!("{files}network_policies: {{a: {{endpoints: [{{host: a.b, ports: [{ports}]}}]}}}}\n");
    assert!(texts(&of(files), &of(files)).is_empty());
    assert!(texts(&of(files), &of(&net("443"))).is_empty());
    assert_eq!(texts(&of(&net("443")), &of(files)), ["can connect to any TCP port"]);
    assert_eq!(texts(&of(&net("443")), &of(&net("443, 22"))), ["can connect to more TCP ports: 22"]);
    let more = of("version: 1\nfilesystem_policy: {read_only: [/usr, /etc], read_write: [/tmp, /usr/local]}\n");
    let found = texts(&of(files), &more);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("/etc can be read now") && found[1].starts_with("/usr/local can be changed now"));
    let open = crate::unconfined().confinement;
    assert_eq!(texts(&of(files), &open).len(), 3, "Landlock, its scopes and seccomp");
}
