//! Ways over links, in a real folder; and which of them count.

use std::{fs, os::unix::fs::symlink, path::Path};

use Access::{ReadOnly as Ro, ReadWrite as Rw};
use rustix::fs::CWD;

use super::*;

fn root_of(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn way(resolved: &str, links: &[&str]) -> Way {
    let link = |place: &&str| Link { place: (*place).to_owned(), leaves_volume: false };
    Way { resolved: resolved.to_owned(), links: links.iter().map(link).collect() }
}

/// For each rule, the link that it is left out for.
fn left_out(rules: &[(Access, Way)]) -> Vec<String> {
    let links = loose(&rules.iter().map(|(access, way)| (*access, way)).collect::<Vec<_>>());
    links.into_iter().map(|link| link.unwrap_or_else(|| KEPT.to_owned())).collect()
}

const KEPT: &str = "kept";

#[test]
fn every_link_on_the_way_is_noted_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    fs::create_dir_all(at("usr/lib/deep")).unwrap();
    fs::create_dir_all(at("w/sub")).unwrap();
    fs::write(at("usr/file"), "").unwrap();
    for (target, link) in [
        ("usr/lib", "lib"),
        ("/lib/deep", "w/far"),
        ("../../../../w/far", "w/sub/up"),
        ("..", "w/sub/above"),
        ("/", "w/all"),
        ("loop", "loop"),
        ("nothing", "dangling"),
        ("usr/file/more", "through"),
        ("./usr//lib/.", "dots"),
    ] {
        symlink(target, at(link)).unwrap();
    }
    let root = root_of(folder.path());
    for (path, expected) in [
        ("/usr/lib", way("/usr/lib", &[])),
        ("/usr//lib/.", way("/usr/lib", &[])),
        ("/lib", way("/usr/lib", &["/lib"])),
        ("/lib/deep", way("/usr/lib/deep", &["/lib"])),
        ("/dots/deep", way("/usr/lib/deep", &["/dots"])),
        ("/w/far", way("/usr/lib/deep", &["/w/far", "/lib"])),
        ("/w/sub/up", way("/usr/lib/deep", &["/w/sub/up", "/w/far", "/lib"])),
        ("/w/sub/above/sub", way("/w/sub", &["/w/sub/above"])),
        ("/w/all", way("/", &["/w/all"])),
        ("/w/all/lib", way("/usr/lib", &["/w/all", "/lib"])),
    ] {
        let opened = open(&root, path).unwrap();
        assert_eq!(opened.way, expected, "{path}");
        let (found, meant) = (fstat(&opened.fd).unwrap(), fs::metadata(at(&expected.resolved[1..])).unwrap());
        assert_eq!(found.st_ino, std::os::unix::fs::MetadataExt::ino(&meant), "{path}");
    }
    for (path, errno) in [
        ("/loop", Errno::LOOP),
        ("/dangling", Errno::NOENT),
        ("/through", Errno::NOTDIR),
        ("/usr/none", Errno::NOENT),
        ("/usr/file/x", Errno::NOTDIR),
    ] {
        assert_eq!(open(&root, path).err(), Some(errno), "{path}");
    }
}

#[test]
fn as_many_links_as_the_kernel_follows_and_no_magic_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("l0")).unwrap();
    for number in 1..=41 {
        symlink(format!("l{}", number - 1), folder.path().join(format!("l{number}"))).unwrap();
    }
    let root = root_of(folder.path());
    assert_eq!(open(&root, "/l40").unwrap().way.resolved, "/l0");
    assert_eq!(open(&root, "/l41").err(), Some(Errno::LOOP));
    let host = root_of(Path::new("/"));
    for magic in ["/proc/self/exe", "/proc/self/root/usr", "/proc/self/cwd", "/proc/self/fd/0"] {
        assert_eq!(open(&host, magic).err(), Some(Errno::LOOP), "{magic}");
    }
    let own = open(&host, "/proc/self/status").unwrap().way;
    assert_eq!(own.resolved, format!("/proc/{}/status", std::process::id()));
    assert!(!own.links[0].leaves_volume, "the kernel's own");
}

#[test]
fn a_link_that_the_workload_may_change_grants_nothing() {
    let app = (Rw, way("/", &["/sandbox/app"]));
    let rules = [(Rw, way("/sandbox", &[])), app.clone(), (Ro, way("/usr/lib", &["/lib"]))];
    assert_eq!(left_out(&rules), [KEPT, "/sandbox/app", KEPT], "and what it leads to is no tree");
    let reading = [(Rw, way("/sandbox", &[])), (Ro, way("/etc", &["/sandbox/app"]))];
    assert_eq!(left_out(&reading), [KEPT, "/sandbox/app"]);
    let chain = [(Rw, way("/w", &[])), (Ro, way("/secret", &["/a", "/w/l"]))];
    assert_eq!(left_out(&chain), [KEPT, "/w/l"], "the second link of the way");
    assert_eq!(left_out(&[app]), ["/sandbox/app"], "in the very tree it leads to");
}

#[test]
fn links_that_only_root_can_change_lead_as_they_did() {
    let rules = [
        (Ro, way("/usr/bin", &["/bin"])),
        (Ro, way("/usr/lib", &["/lib"])),
        (Rw, way("/srv/data", &["/data"])),
        (Rw, way("/run", &[])),
        (Ro, way("/runner", &["/running"])),
    ];
    assert_eq!(left_out(&rules), [KEPT; 5]);
}

#[test]
fn a_tree_that_is_reached_over_a_link_is_one_too() {
    let rules = [(Rw, way("/srv/data", &["/data"])), (Ro, way("/etc", &["/data", "/srv/data/l"]))];
    assert_eq!(left_out(&rules), [KEPT, "/srv/data/l"]);
}

#[test]
fn what_stays_in_a_tree_that_may_be_written_stays_in_the_domain() {
    let release = way("/sandbox/releases/5", &["/sandbox/current"]);
    assert_eq!(left_out(&[(Rw, way("/sandbox", &[])), (Rw, release.clone())]), [KEPT, KEPT]);
    assert_eq!(left_out(&[(Rw, way("/sandbox", &["/s"])), (Ro, release)]), [KEPT, KEPT]);
}

#[test]
fn a_link_out_of_a_volume_grants_nothing_whoever_may_write_there_now() {
    let leaves = |leaves_volume| Way {
        resolved: "/etc".to_owned(),
        links: vec![Link { place: "/sandbox/state/l".to_owned(), leaves_volume }],
    };
    assert_eq!(left_out(&[(Ro, leaves(true))]), ["/sandbox/state/l"]);
    assert_eq!(left_out(&[(Ro, leaves(false))]), [KEPT]);
}
