//! What counts as wider, and what does not.

use molt_core::{confined::Shown, launch::PathRule};

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

fn side(report: &Report) -> InForce {
    let confinement = Confinement { profile: SeccompProfile::Floor, ..Confinement::default() };
    InForce::new(&confinement, report.clone(), Limits::default(), Vec::new())
}

fn texts_of(found: &[Wider]) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

fn against(old: &Report, new: &Report) -> Vec<String> {
    texts_of(&compare(&side(old), &side(new)))
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
        let side = |report: &Report| InForce { confinement: promised.clone(), ..side(report) };
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
    assert_eq!(with(|r| r.seccomp_mode = 0), ["fewer system calls are refused (seccomp none, it was floor)"]);
    assert_eq!(with(|r| r.capabilities = 1 << 21), ["has capabilities it did not have: 0x200000"]);
    assert_eq!(with(|r| r.uid = 0), ["runs as root"]);
    assert_eq!(with(|r| r.groups = vec![0]), ["is in the group 0 now"]);
    assert_eq!(with(|r| (r.gid, r.groups) = (999, vec![1000, 27])), ["is in the groups 27, 999 now"]);
    assert!(with(|r| r.uid = 1001).is_empty());
    let none = Report { handled_fs: 0, ..old.clone() };
    assert!(against(&none, &report(&[("/", ALL)])).is_empty(), "from no Landlock to some is narrower");
}

fn of(text: &str) -> Confinement {
    let context = crate::Context {
        workdir: "/app",
        shown: &[],
        state: &[],
        program: None,
        readable: &[],
        proxy_ports: &[],
        kernel_abi: 7,
        seccomp: SeccompProfile::Floor,
    };
    crate::lower(&crate::parse(text.as_bytes()).unwrap(), &context).confinement
}

fn texts(old: &Confinement, new: &Confinement) -> Vec<String> {
    texts_of(&compare(&assumed(old), &assumed(new)))
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

/// A side whose policy names `paths`, each with where it leads.
fn image(paths: &[(&str, &str, Access)]) -> InForce {
    let landlock = Landlock {
        abi: 7,
        paths: paths
            .iter()
            .map(|(path, _, access)| PathRule { path: (*path).to_owned(), access: *access, derived: false })
            .collect(),
        ..Landlock::default()
    };
    let mut side = assumed(&Confinement { landlock: Some(landlock), ..Confinement::default() });
    for (rule, (_, resolved, _)) in side.report.rules.iter_mut().zip(paths) {
        rule.resolved = (*resolved).to_owned();
    }
    side.mounts = vec![
        Shown { path: "/sandbox/state".to_owned(), mode: MountMode::ReadWrite },
        Shown { path: "/run/secrets/token".to_owned(), mode: MountMode::ReadWrite },
    ];
    side
}

use Access::{ReadOnly as Ro, ReadWrite as Rw};

#[test]
fn an_image_may_move_what_it_alone_owns() {
    let plain = image(&[("/lib", "/lib", Ro), ("/usr", "/usr", Ro), ("/data", "/data", Rw), ("/tmp", "/tmp", Rw)]);
    for (what, moved) in [
        ("merged /usr", ("/lib", "/usr/lib", Ro)),
        ("a part of the image no rule names", ("/lib", "/opt/lib", Ro)),
        ("what may be changed, elsewhere", ("/data", "/srv/data", Rw)),
        ("where a rule for as much leads", ("/data", "/tmp/data", Rw)),
    ] {
        let mut rules = vec![("/usr", "/usr", Ro), ("/tmp", "/tmp", Rw)];
        rules.push(moved);
        assert_eq!(texts_of(&compare(&plain, &image(&rules))), Vec::<String>::new(), "{what}");
        rules.pop();
        rules.push((moved.0, moved.0, moved.2));
        assert_eq!(texts_of(&compare(&image(&[moved]), &image(&rules[2..]))), Vec::<String>::new(), "{what}, back");
    }
}

#[test]
fn an_image_cannot_widen_the_same_policy_by_links() {
    let rules = |moved: (&'static str, &'static str, Access)| {
        let mut rules = vec![("/app", "/app", Ro), ("/etc", "/etc", Ro), ("/usr", "/usr", Ro), ("/data", "/data", Rw)];
        rules.retain(|rule| rule.0 != moved.0);
        rules.push(moved);
        image(&rules)
    };
    let plain = rules(("/app", "/app", Ro));
    for (path, resolved, access) in [
        ("/app", "/", Ro),
        ("/etc", "/sandbox/state", Ro),
        ("/etc", "/sandbox/state/etc", Ro),
        ("/etc", "/sandbox", Ro),
        ("/etc", "/run/secrets/token", Ro),
        ("/etc", "/run", Ro),
        ("/etc", "/proc", Ro),
        ("/etc", "/dev", Ro),
        ("/etc", "/sys/kernel", Ro),
        ("/app", "/run/molt", Ro),
        ("/data", "/usr", Rw),
        ("/data", "/usr/bin", Rw),
        ("/data", "/", Rw),
        ("/data", "/sandbox/state", Rw),
    ] {
        let found = compare(&plain, &rules((path, resolved, access)));
        let all = if access == Ro { READ } else { plain.report.handled_fs };
        let given = if resolved.starts_with("/usr") { READ } else { 0 };
        let expected = Wider::Path { path: path.into(), resolved: resolved.into(), rights: all & !given };
        assert_eq!(found, [expected], "{path} -> {resolved}");
        assert_eq!(compare(&rules((path, resolved, access)), &plain), [], "and back is not wider");
        let alone = astray(&rules((path, resolved, access)));
        assert_eq!(alone.len(), 1, "{path} -> {resolved} shows with nothing to compare with: {alone:?}");
    }
    assert_eq!(astray(&plain), []);
}

#[test]
fn links_within_the_kernel_s_own_folders_are_no_news() {
    let at = |resolved| image(&[("/dev/ptmx", resolved, Rw), ("/proc/self", "/proc/7", Ro)]);
    assert_eq!(compare(&at("/dev/ptmx"), &at("/dev/pts/ptmx")), []);
    assert_eq!(astray(&at("/dev/pts/ptmx")), []);
}

#[test]
fn what_an_image_names_for_itself_stays_in_the_image() {
    let with = |path: &str| {
        let mut side = image(&[("/usr", "/usr", Ro), (path, path, Ro)]);
        if let Some(landlock) = &mut side.confinement.landlock {
            landlock.paths[1].derived = true;
        }
        side
    };
    assert_eq!(compare(&with("/server"), &with("/opt/daemon")), [], "the program moved");
    assert_eq!(compare(&with("/server"), &with("/run/secrets")).len(), 1, "a working directory above a mount");
}

#[test]
fn molt_s_own_socket_is_no_news_wherever_run_leads() {
    let with = |derived| {
        let mut side = image(&[("/var", "/var", Ro), ("/run/molt/notify", "/var/lib/molt/notify", Rw)]);
        if let Some(landlock) = &mut side.confinement.landlock {
            landlock.paths[1].derived = derived;
        }
        side
    };
    let old = image(&[("/var", "/var", Ro), ("/run/molt/notify", "/run/molt/notify", Rw)]);
    assert_eq!(compare(&old, &with(true)), []);
    assert_eq!(compare(&old, &with(false)).len(), 1, "a path that people wrote counts by where it leads");
}

#[test]
fn profiles_limits_and_mounts_are_compared() {
    let old = side(&report(&[("/mnt", READ)]));
    let with = |change: fn(&mut InForce)| {
        let mut new = old.clone();
        change(&mut new);
        (texts_of(&compare(&old, &new)), texts_of(&compare(&new, &old)))
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(
        with(|side| side.confinement.profile = SeccompProfile::Strict),
        (none.clone(), vec!["fewer system calls are refused (seccomp floor, it was strict)".to_owned()])
    );
    assert_eq!(
        with(|side| side.limits.nproc = Some(64)),
        (none.clone(), vec!["RLIMIT_NPROC is the container's own now, it was 64".to_owned()])
    );
    let mut narrow = old.clone();
    narrow.limits.nofile = Some(64);
    let mut wide = old.clone();
    wide.limits.nofile = Some(65);
    assert_eq!(texts_of(&compare(&narrow, &wide)), ["RLIMIT_NOFILE is 65 now, it was 64"]);
    assert!(compare(&wide, &narrow).is_empty());
    let volume = |mode| Shown { path: "/mnt/volume".to_owned(), mode };
    assert_eq!(
        with(|side| side.mounts = vec![Shown { path: "/mnt/volume".to_owned(), mode: MountMode::ReadOnly }]),
        (vec!["sees the mount /mnt/volume now".to_owned()], none)
    );
    let (mut ro, mut rw) = (old.clone(), old.clone());
    (ro.mounts, rw.mounts) = (vec![volume(MountMode::ReadOnly)], vec![volume(MountMode::ReadWrite)]);
    assert_eq!(texts_of(&compare(&ro, &rw)), ["sees the mount /mnt/volume now, writable"]);
    let mut hidden = old.clone();
    hidden.mounts = vec![Shown { path: "/srv".to_owned(), mode: MountMode::ReadWrite }];
    assert!(compare(&old, &hidden).is_empty(), "no rule lets it be seen");
}

#[test]
fn another_user_is_shown_and_not_wider() {
    let (old, mut new) = (side(&report(&[])), side(&report(&[])));
    new.report.uid = 1001;
    assert_eq!(compare(&old, &new), []);
    assert_eq!(changes(&old, &new).len(), 1);
    assert!(changes(&old, &old).is_empty());
}

#[test]
fn a_path_the_new_image_lacks_is_wider_all_the_same() {
    let (old, mut new) =
        (image(&[("/usr", "/usr", Ro)]), image(&[("/usr", "/usr", Ro), ("/etc/keys", "/etc/keys", Rw)]));
    new.report.rules.pop();
    new.report.missing.push("/etc/keys".to_owned());
    let found = texts_of(&compare(&old, &new));
    assert!(matches!(found.as_slice(), [one] if one.starts_with("/etc/keys can be changed now")), "{found:?}");
    assert_eq!(compare(&new, &new), []);
}

/// As armed with a rule for `path` that was left out for a link on its way.
fn without(path: &str, side: &InForce) -> InForce {
    let mut side = side.clone();
    side.report.rules.retain(|rule| rule.path != path);
    side
}

#[test]
fn a_rule_that_was_left_out_was_not_granted_and_counts_by_its_name() {
    let state = ("/sandbox/state/keys", "/sandbox/state/keys", Ro);
    let narrow = image(&[("/usr", "/usr", Ro)]);
    let wide = image(&[("/usr", "/usr", Ro), state]);
    let left_out = without(state.0, &wide);
    let found = texts_of(&compare(&narrow, &left_out));
    assert!(matches!(found.as_slice(), [one] if one.starts_with("/sandbox/state/keys can be read now")), "{found:?}");
    assert_eq!(compare(&left_out, &wide), [], "the same policy, once the link is gone");
    assert_eq!(compare(&wide, &left_out), []);
    assert_eq!(compare(&left_out, &left_out), []);
    let renamed = image(&[("/usr", "/usr", Ro), ("/keys", "/sandbox/state/keys", Ro)]);
    assert_eq!(compare(&left_out, &renamed).len(), 1, "by another name it is more than was granted");
    let inside = image(&[("/usr", "/usr", Ro), ("/sandbox", "/sandbox", Rw)]);
    let nested = image(&[("/usr", "/usr", Ro), ("/sandbox", "/sandbox", Rw), ("/sandbox/app", "/sandbox/app", Rw)]);
    assert_eq!(compare(&inside, &without("/sandbox/app", &nested)), [], "what is in a tree is no news");
    assert_eq!(astray(&left_out), []);
}

#[test]
fn to_require_less_is_wider() {
    let files = "version: 1\nfilesystem_policy: {read_only: [/usr]}\n";
    let with = |word: &str| of(&format!("{files}landlock: {{compatibility: {word}}}\n"));
    let (hard, plain, best) = (with("hard_requirement"), of(files), with("best_effort"));
    let fewer =
        "paths are enforced only where the kernel can (landlock.compatibility: best_effort), they were required";
    let skipped =
        "paths that the image does not have are skipped, they were required (landlock.compatibility: hard_requirement)";
    assert_eq!(texts(&hard, &plain), [skipped]);
    assert_eq!(texts(&hard, &best), [fewer]);
    assert_eq!(texts(&plain, &best), [fewer]);
    for (old, new) in [(&best, &plain), (&best, &hard), (&plain, &hard), (&hard, &hard), (&best, &best)] {
        assert!(texts(old, new).is_empty());
    }
    let one = compare(&assumed(&plain), &assumed(&best));
    let data = serde_json::to_value(&one).unwrap();
    assert_eq!(data, serde_json::json!([{"compatibility": ["landlock", "bestEffort"]}]));
    let open = crate::unconfined().confinement;
    assert_eq!(texts(&hard, &open).len(), 3, "Landlock, its scopes and seccomp");
}
