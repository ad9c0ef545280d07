//! What each form of a policy becomes.

use super::*;

const STATE: &str = "/sandbox/state";

fn of(text: &str, abi: u32) -> Lowered {
    let state = [STATE.to_owned()];
    let policy = crate::parse(text.as_bytes()).unwrap();
    let context = Context {
        workdir: "/app",
        shown: &[],
        state: &state,
        program: Some("/usr/bin/x"),
        readable: &[],
        proxy_ports: &[3128],
        kernel_abi: abi,
        seccomp: SeccompProfile::Floor,
    };
    lower(&policy, &context)
}

fn access(lowered: &Lowered, path: &str) -> Option<(Access, bool)> {
    let rules = &lowered.confinement.landlock.as_ref()?.paths;
    rules.iter().find(|rule| rule.path == path).map(|rule| (rule.access, rule.derived))
}

const FILES: &str = "version: 1\nfilesystem_policy: {read_only: [/usr/, /both], read_write: [/sandbox, /both]}\n";

#[test]
fn paths_are_normalised_and_writing_wins() {
    let lowered = of(FILES, 7);
    assert_eq!(access(&lowered, "/usr"), Some((Access::ReadOnly, false)));
    assert_eq!(access(&lowered, "/both"), Some((Access::ReadWrite, false)));
    assert_eq!(access(&lowered, "/app"), None, "include_workdir is false where the section is written");
    assert_eq!((lowered.notes, lowered.unmet), (vec![], vec![]));
}

#[test]
fn without_a_section_only_the_working_directory_can_be_used() {
    let lowered = of("version: 1", 7);
    assert_eq!(access(&lowered, "/app"), Some((Access::ReadWrite, false)));
    let written = lowered.confinement.landlock.unwrap().paths.iter().filter(|rule| !rule.derived).count();
    assert_eq!(written, 1);
    assert_eq!(lowered.notes.len(), 2, "state and program are out of reach: {:?}", lowered.notes);
}

#[test]
fn a_root_working_directory_is_never_made_writable() {
    let policy = crate::parse(b"version: 1").unwrap();
    let context = Context {
        workdir: "/",
        shown: &[],
        state: &[],
        program: None,
        readable: &[],
        proxy_ports: &[],
        kernel_abi: 7,
        seccomp: SeccompProfile::Floor,
    };
    let lowered = lower(&policy, &context);
    assert!(lowered.confinement.landlock.unwrap().paths.iter().all(|rule| rule.path != "/"));
    assert!(lowered.notes[0].contains("not made writable"));
}

#[test]
fn what_every_program_needs_is_there_and_can_be_narrowed() {
    let lowered = of(FILES, 7);
    assert_eq!(access(&lowered, "/dev/null"), Some((Access::ReadWrite, true)));
    assert_eq!(access(&lowered, "/dev/urandom"), Some((Access::ReadOnly, true)));
    assert_eq!(access(&lowered, "/run/molt/notify"), Some((Access::ReadWrite, true)));
    let narrow = of("version: 1\nfilesystem_policy: {read_only: [/dev/shm]}", 7);
    assert_eq!(access(&narrow, "/dev/shm"), Some((Access::ReadOnly, false)));
    // Landlock adds rules up: a second one for the same path would widen it again.
    let rules = narrow.confinement.landlock.unwrap().paths;
    assert_eq!(rules.iter().filter(|rule| rule.path == "/dev/shm").count(), 1);
}

#[test]
fn the_three_cases_of_compatibility() {
    let with = |word: &str, abi| of(&format!("{FILES}landlock: {{compatibility: {word}}}"), abi);
    let landlock = |lowered: &Lowered| lowered.confinement.landlock.as_ref().map(|l| (l.hard, l.min_abi));

    assert_eq!(landlock(&of(FILES, 7)), Some((false, 3)));
    assert_eq!(of(FILES, 2).unmet.len(), 1);
    assert_eq!(of(FILES, 0).unmet.len(), 1);

    assert_eq!(landlock(&with("hard_requirement", 7)), Some((true, 3)));
    assert_eq!(with("hard_requirement", 2).unmet.len(), 1);

    assert_eq!(landlock(&with("best_effort", 7)), Some((false, 0)));
    assert_eq!((with("best_effort", 2).unmet.len(), with("best_effort", 2).notes.len()), (0, 1));
    let without = with("best_effort", 0);
    assert_eq!((landlock(&without), without.unmet.len(), without.notes.len()), (Some((false, 0)), 0, 1));
    assert!(!without.confinement.seccomp.is_empty(), "seccomp does not need Landlock");
}

#[test]
fn ports_are_handled_only_where_the_policy_has_network_policies() {
    assert_eq!(of(FILES, 7).confinement.landlock.unwrap().tcp, None);
    let network = "network_policies: {a: {endpoints: [{host: x.y, port: 443}, {host: z.y, ports: [80, 443]}]}}\n";
    let lowered = of(&format!("{FILES}{network}"), 7);
    let tcp = lowered.confinement.landlock.unwrap().tcp.unwrap();
    assert_eq!(tcp, TcpPorts { bind: None, connect: Some(vec![53, 80, 443, 3128]) });
    assert!(lowered.notes[0].contains("53, 80, 443, 3128"));

    assert_eq!(of(&format!("{FILES}{network}"), 3).unmet.len(), 0);
    let hard = of(&format!("{FILES}{network}landlock: {{compatibility: hard_requirement}}"), 3);
    assert!(hard.unmet[0].contains("no rules for TCP"));
}

#[test]
fn unconfined_is_nothing_at_all_and_says_so() {
    let lowered = unconfined();
    assert_eq!(lowered.confinement, Confinement::default());
    assert_eq!(lowered.notes.len(), 1);
}

/// The rule for a working directory of the image's choice beside `shown`, and the notes.
fn own_folder_of(workdir: &str, files: &str, readable: &[&str]) -> (Option<(Access, bool)>, Vec<String>) {
    let shown = ["/sandbox/state".to_owned(), "/mnt/keys".to_owned()];
    let policy = crate::parse(format!("version: 1\nfilesystem_policy: {{{files}}}\n").as_bytes()).unwrap();
    let context = Context {
        workdir,
        shown: &shown,
        state: &[],
        program: None,
        readable,
        proxy_ports: &[],
        kernel_abi: 7,
        seccomp: SeccompProfile::Floor,
    };
    let lowered = lower(&policy, &context);
    let all = lowered.confinement.landlock.as_ref().unwrap().paths.iter();
    assert!(all.clone().all(|rule| rule.path != "/" && !rule.path.contains("..")), "{workdir}");
    (access(&lowered, &normal(workdir)), lowered.notes)
}

#[test]
fn a_working_directory_that_climbs_is_no_rule() {
    for workdir in ["/tmp/..", "/tmp/../etc", "/../etc", "/app/../../"] {
        let (rule, notes) = own_folder_of(workdir, "include_workdir: true, read_only: [/usr]", &[]);
        assert_eq!(rule, None, "{workdir}");
        assert!(matches!(notes.as_slice(), [one] if one.contains("holds '..'")), "{workdir}: {notes:?}");
        let (rule, notes) = own_folder_of(workdir, "read_only: [/usr]", &[workdir, "/bin/../srv/x"]);
        assert_eq!((rule, notes.len()), (None, 1), "{workdir}: {notes:?}");
    }
}

#[test]
fn an_image_s_working_directory_grants_no_mount() {
    let with = "include_workdir: true, read_only: [/usr]";
    for workdir in ["/mnt/keys", "/mnt", "/mnt/keys/deep", "/sandbox", "/sandbox/state/x", "/proc/sys", "/sys", "/dev"]
    {
        let (rule, notes) = own_folder_of(workdir, with, &[]);
        assert_eq!(rule, None, "{workdir}");
        assert!(matches!(notes.as_slice(), [one] if one.contains("the image's choice")), "{workdir}: {notes:?}");
        let (rule, notes) = own_folder_of(workdir, "read_only: [/usr]", &[workdir]);
        assert_eq!((rule, notes.len()), (None, 1), "{workdir}, the default policy: {notes:?}");
    }
    for workdir in ["/app", "/mnt/keysx", "/srv/mnt/keys"] {
        assert_eq!(own_folder_of(workdir, with, &[]), (Some((Access::ReadWrite, false)), vec![]), "{workdir}");
        let readable = own_folder_of(workdir, "read_only: [/usr]", &[workdir]);
        assert_eq!(readable, (Some((Access::ReadOnly, true)), vec![]), "{workdir}");
    }
}

#[test]
fn an_image_s_working_directory_may_be_what_the_policy_grants() {
    let state = "include_workdir: true, read_write: [/sandbox/state]";
    assert_eq!(own_folder_of("/sandbox", state, &[]), (Some((Access::ReadWrite, false)), vec![]), "above the state");
    assert_eq!(own_folder_of("/sandbox/state/x", state, &[]).0, Some((Access::ReadWrite, false)));
    let reading = "include_workdir: true, read_only: [/mnt]";
    let (rule, notes) = own_folder_of("/mnt/keys", reading, &[]);
    assert_eq!((rule, notes.len()), (None, 1), "it may be read, and not written to: {notes:?}");
    let (rule, notes) = own_folder_of("/mnt", reading, &[]);
    assert_eq!((rule, notes.len()), (Some((Access::ReadOnly, false)), 1), "the policy's own rule stays: {notes:?}");
    let (rule, notes) = own_folder_of("/mnt/keys", "read_only: [/mnt]", &["/mnt/keys"]);
    assert_eq!((rule, notes), (None, vec![]), "readable by the policy, with no rule of its own");
}
