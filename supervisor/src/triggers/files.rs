//! Watched files: the spec is read again when one of them changes.
//!
//! In: paths. Out: one command for a burst of changes. Must not: read a file, or follow what it says; miss that it was
//! replaced by a rename, or by the link that Kubernetes swaps in a ConfigMap volume.
//!
//! What is watched are folders: the one a file is named in, and the one where it really lies. A file that is written in
//! place counts once whoever writes it has closed it. inotify(7).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use crate::{
    command::Command,
    timer::{self, Instant},
};

/// A burst is over when nothing has changed for so long,
const QUIET: Duration = Duration::from_millis(100);
/// or when it has gone on for so long.
const LONGEST: Duration = Duration::from_secs(2);
/// How often it is looked whether a folder that is not there has come.
const ABSENT: Duration = Duration::from_secs(5);
/// What Kubernetes swaps: the link to the folder with the files of a volume.
const DATA: &str = "..data";

/// The folders that are watched, and the names in each that matter.
#[derive(Debug)]
pub(crate) struct Watches {
    fd: AsyncFd<OwnedFd>,
    files: Vec<PathBuf>,
    names: BTreeMap<i32, BTreeMap<OsString, PathBuf>>,
    /// A folder is not there.
    lacking: bool,
}

/// What was seen at once.
#[derive(Debug, Default)]
struct Seen {
    changed: BTreeSet<PathBuf>,
    /// A folder went away, or events were lost.
    renew: bool,
}

/// Watches until the dispatcher is gone.
pub(crate) async fn watch(files: Vec<PathBuf>, commands: mpsc::Sender<Command>) {
    if files.is_empty() {
        return;
    }
    let mut watches = match Watches::new(files) {
        Ok(watches) => watches,
        Err(error) => return tracing::error!(%error, "failed to watch files; SIGHUP has the spec read again"),
    };
    loop {
        let changed = watches.burst().await;
        let names: Vec<String> = changed.iter().map(|file| file.display().to_string()).collect();
        let by = format!("watched file {}", names.join(", "));
        if commands.send(Command::Reread { by }).await.is_err() {
            return;
        }
    }
}

impl Watches {
    /// Watches the folders of `files`.
    pub(crate) fn new(files: Vec<PathBuf>) -> std::io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut made = Self { fd: crate::watch::readable(fd)?, files, names: BTreeMap::new(), lacking: false };
        made.renew();
        Ok(made)
    }

    /// Watches each folder there is, and no other one any more; a folder that is watched already stays so.
    fn renew(&mut self) {
        let before = std::mem::take(&mut self.names);
        self.lacking = false;
        for file in self.files.clone() {
            self.add(&file, &file);
            // Where it really lies, if that is elsewhere; a ConfigMap volume's own folder is seen by its link.
            if let Ok(real) = std::fs::canonicalize(&file)
                && real != file
                && !real.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"..20"))
            {
                self.add(&real, &file);
            }
        }
        for number in before.into_keys().filter(|number| !self.names.contains_key(number)) {
            // EINVAL: the folder is gone, and its watch with it.
            let _ = inotify::remove_watch(self.fd.get_ref(), number);
        }
    }

    fn add(&mut self, path: &Path, file: &Path) {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        match inotify::add_watch(self.fd.get_ref(), folder, flags) {
            Ok(number) => {
                let names = self.names.entry(number).or_default();
                names.insert(name.to_owned(), file.to_owned());
                names.insert(DATA.into(), file.to_owned());
            }
            Err(errno) => {
                tracing::debug!(%errno, folder = %folder.display(), "not watched yet");
                self.lacking = true;
            }
        }
    }

    /// Waits for a burst of changes, and for its end. Not to be given up half way.
    pub(crate) async fn burst(&mut self) -> BTreeSet<PathBuf> {
        let mut all = BTreeSet::new();
        let mut until: Option<Instant> = None;
        loop {
            let quiet = Instant::now() + QUIET;
            let next = match until {
                Some(until) => timer::timeout_at(quiet.min(until), self.next()).await.ok(),
                None if self.lacking => Some(timer::timeout(ABSENT, self.next()).await.unwrap_or_default()),
                None => Some(self.next().await),
            };
            let Some(seen) = next else { return all };
            let before = self.lacking;
            // Where a link leads may be what has changed.
            if seen.renew || before || !seen.changed.is_empty() {
                self.renew();
            }
            all.extend(seen.changed);
            if seen.renew || before && !self.lacking {
                all.extend(self.files.iter().cloned());
            }
            if !all.is_empty() {
                until = until.or(Some(Instant::now() + LONGEST));
                if until.is_some_and(|until| Instant::now() >= until) {
                    return all;
                }
            }
        }
    }

    /// What has changed since it was looked last; waits for something that matters.
    async fn next(&self) -> Seen {
        loop {
            let Ok(mut ready) = self.fd.readable().await else { std::future::pending().await };
            let seen = self.read();
            if seen.renew || !seen.changed.is_empty() {
                return seen;
            }
            ready.clear_ready();
        }
    }

    /// Everything that is there to be read.
    fn read(&self) -> Seen {
        let mut seen = Seen::default();
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => return seen,
            };
            let gone = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::QUEUE_OVERFLOW;
            if event.events().intersects(gone) {
                // A watch of before that was replaced goes in silence.
                seen.renew |=
                    self.names.contains_key(&event.wd()) || event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            }
            let name = event.file_name().map(|name| OsString::from_vec(name.to_bytes().to_vec()));
            let file = name.and_then(|name| self.names.get(&event.wd())?.get(&name));
            seen.changed.extend(file.cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        folder: PathBuf,
        commands: mpsc::Receiver<Command>,
    }

    impl Bench {
        fn new(files: &[&str]) -> Self {
            static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let folder = std::env::temp_dir().join(format!("molt-watch-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let (sender, commands) = mpsc::channel(16);
            tokio::spawn(watch(files.iter().map(|file| folder.join(file)).collect(), sender));
            Self { folder, commands }
        }

        async fn told(&mut self) -> String {
            match timer::timeout(Duration::from_secs(20), self.commands.recv()).await {
                Ok(Some(Command::Reread { by })) => by,
                other => panic!("{other:?}"),
            }
        }

        async fn silent(&mut self) {
            let more = timer::timeout(QUIET * 3, self.commands.recv()).await;
            assert!(more.is_err(), "{more:?}");
        }

        fn at(&self, name: &str) -> PathBuf {
            self.folder.join(name)
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    #[tokio::test]
    async fn a_burst_of_changes_is_one_and_other_files_are_none() {
        let mut bench = Bench::new(&["spec", "policy"]);
        tokio::task::yield_now().await;
        std::fs::write(bench.at("other"), "x").unwrap();
        bench.silent().await;
        for number in 0..50 {
            std::fs::write(bench.at("spec"), number.to_string()).unwrap();
        }
        std::fs::write(bench.at("new"), "x").unwrap();
        std::fs::rename(bench.at("new"), bench.at("policy")).unwrap();
        let by = bench.told().await;
        assert!(by.contains("/spec") && by.contains("/policy") && by.starts_with("watched file "), "{by}");
        bench.silent().await;
    }

    #[tokio::test]
    async fn a_volume_of_kubernetes_is_seen_when_its_link_is_swapped() {
        let mut bench = Bench::new(&["volume/spec"]);
        tokio::task::yield_now().await;
        // The volume comes late; then it is swapped, as the kubelet does it.
        for version in 1..4 {
            let volume = bench.folder.join("volume");
            let data = format!("..2026_01_02_{version}");
            std::fs::create_dir_all(volume.join(&data)).unwrap();
            std::fs::write(volume.join(&data).join("spec"), version.to_string()).unwrap();
            std::os::unix::fs::symlink(&data, volume.join("..data_tmp")).unwrap();
            std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
            if version == 1 {
                std::os::unix::fs::symlink("..data/spec", volume.join("spec")).unwrap();
            }
            assert!(bench.told().await.ends_with("/volume/spec"));
            bench.silent().await;
        }
    }

    #[tokio::test]
    async fn a_link_is_followed_to_where_it_leads_now() {
        let mut bench = Bench::new(&["etc/spec"]);
        let link = bench.at("etc/spec");
        for folder in ["etc", "data/a", "data/b"] {
            std::fs::create_dir_all(bench.at(folder)).unwrap();
        }
        tokio::task::yield_now().await;
        // The link comes after the watch, and is replaced in one step, as `ln -sfn` and `mv -T` do it.
        for target in ["data/a/spec", "data/b/spec", "data/a/spec"] {
            std::fs::write(bench.at(target), "first").unwrap();
            std::os::unix::fs::symlink(bench.at(target), bench.at("etc/new")).unwrap();
            std::fs::rename(bench.at("etc/new"), &link).unwrap();
            assert!(bench.told().await.ends_with("/etc/spec"));
            bench.silent().await;
            for text in ["second", "third"] {
                std::fs::write(bench.at(target), text).unwrap();
                assert!(bench.told().await.ends_with("/etc/spec"), "{target}: {text}");
                bench.silent().await;
            }
            let other = if target == "data/a/spec" { "data/b/spec" } else { "data/a/spec" };
            std::fs::write(bench.at(other), "nobody's any more").unwrap();
            bench.silent().await;
        }
    }
}
