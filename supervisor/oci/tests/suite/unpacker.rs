//! Unpackers and decoders from outside: what they may not do, and what becomes of a fetch when one is killed, stopped or
//! left alone.
//!
//! In: the examples `prisoner`, `unpacker` and `late`. Out: outcomes, and nothing left behind.

use std::{
    fs,
    os::fd::AsFd as _,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use molt_core::{code::Code, ids::ImageRef};
use molt_oci::{Client, Error, Limits, Platform, Registries, Store, unpacker::Unpacker};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    common::{Image, Packed, Place, Tar, example, packed, unpacker},
    fake::random,
};

const FORBIDDEN: &str = "errno 1";
const ABSENT: &str = "errno 2";
const NO_MEMORY: &str = "errno 12";
const DENIED: &str = "errno 13";
const TOO_MANY: &str = "errno 24";
const READ_ONLY: &str = "errno 30";
const KILLED: &str = "SIGSYS";

/// What is tried, what comes of it behind the walls. Without walls all of it works.
const ATTEMPTS: [(&str, &str); 32] = [
    ("write a file", "ok"),
    ("read a lower file", "ok"),
    ("make a whiteout", "ok"),
    ("mark a folder", "ok"),
    ("read a file by its path", ABSENT),
    ("read a file above its folder", ABSENT),
    ("read a file above a lower folder", ABSENT),
    ("give away a file above its folder", ABSENT),
    ("give away a file above a lower folder", ABSENT),
    ("give away a file by its path", ABSENT),
    ("give away a lower file", READ_ONLY),
    ("write to a lower file", READ_ONLY),
    ("make a lower file", READ_ONLY),
    ("move a lower file", READ_ONLY),
    ("change the mode of a lower folder", READ_ONLY),
    ("make a socket file", DENIED),
    ("make a device", KILLED),
    ("make a disk", DENIED),
    ("open a socket", KILLED),
    ("open a local socket", KILLED),
    ("run a program", KILLED),
    ("fork", KILLED),
    ("make a thread", KILLED),
    ("signal its parent", KILLED),
    ("look into its parent", KILLED),
    ("mount something", KILLED),
    ("leave its namespaces", KILLED),
    ("load another filter", KILLED),
    ("make a file in memory", KILLED),
    ("write a big file", "SIGXFSZ"),
    ("take much memory", NO_MEMORY),
    ("open many files", TOO_MANY),
];

fn attempt(how: &str, what: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    for name in ["own", "lower", "outside"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    for name in ["lower/file", "outside/file"] {
        fs::write(dir.path().join(name), "text").unwrap();
    }
    fs::set_permissions(dir.path().join("outside/file"), fs::Permissions::from_mode(0o600)).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (ours, theirs) = molt_sys::socket::pair().unwrap();
    // In namespaces of its own: what is tried without walls must not reach this machine.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--uts", "--"]).arg(example("prisoner"));
    command.args([how, &path("own"), &path("lower"), &path("outside/file"), what]);
    let output = command.stdin(Stdio::from(theirs)).output().unwrap();
    drop(ours);
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let signal = output.status.signal().map(|signal| match signal {
        31 => "SIGSYS".to_owned(),
        25 => "SIGXFSZ".to_owned(),
        other => format!("signal {other}"),
    });
    let text = signal.unwrap_or(said);
    if text.is_empty() { String::from_utf8_lossy(&output.stderr).into_owned() } else { text }
}

#[test]
fn what_it_has_no_business_with_is_refused() {
    let mut wrong = Vec::new();
    for (what, expected) in ATTEMPTS {
        let found = attempt("confined", what);
        if found != expected {
            wrong.push(format!("{what}: {found}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a decoder may do of it: nothing.
#[test]
fn who_decodes_can_name_nothing() {
    for (what, _) in ATTEMPTS {
        let expected = if what == "take much memory" { NO_MEMORY } else { KILLED };
        assert_eq!(attempt("sealed", what), expected, "{what}");
    }
    // The walls that stand where its filter has a hole.
    for (what, expected) in [
        ("write a file", DENIED),
        ("read a lower file", DENIED),
        ("read a file by its path", DENIED),
        ("run a program", DENIED),
        // In a network in which there is nothing.
        ("open a socket", "ok"),
        ("make a whiteout", DENIED),
        ("make a device", DENIED),
        ("mark a folder", FORBIDDEN),
        ("give away a file by its path", FORBIDDEN),
        ("signal its parent", FORBIDDEN),
        ("look into its parent", FORBIDDEN),
        ("mount something", FORBIDDEN),
        ("leave its namespaces", FORBIDDEN),
        ("take much memory", NO_MEMORY),
    ] {
        assert_eq!(attempt("unfiltered", what), expected, "{what}, without the filter");
    }
}

#[test]
fn without_walls_all_of_it_works() {
    for (what, _) in ATTEMPTS {
        assert_eq!(attempt("free", what), "ok", "{what}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Unpacker,
    Decoder,
}

/// A place with an image of one big layer, and what fetches it.
struct Slow {
    place: Place,
    client: Client,
    reference: ImageRef,
    program: PathBuf,
}

impl Slow {
    /// With an unpacker that is a file of its own, so that its processes are told from those of other tests.
    fn new(limits: Limits) -> Self {
        static LAYER: OnceLock<Packed> = OnceLock::new();
        let place = Place::new();
        let program = place.path("unpacker");
        fs::copy(example("unpacker"), &program).unwrap();
        let layer = LAYER.get_or_init(|| {
            let content = random(100_000);
            let files = (0..400).fold(Tar::new(), |tar, number| tar.file(&format!("file{number}"), &content));
            packed(&files.end())
        });
        Image::new(std::slice::from_ref(layer)).layout(&place.path("layout"));
        let unpacker = Unpacker::new(fs::File::open(&program).unwrap().as_fd(), |_| None).unwrap();
        let client = Client::new(&Registries::default(), limits).unwrap().confined(Arc::new(unpacker));
        let reference = format!("oci:{}", place.path("layout").display()).parse().unwrap();
        Self { place, client, reference, program }
    }

    fn store(&self) -> &Store {
        &self.place.store
    }

    /// The processes of its layer.
    fn processes(&self) -> Vec<Pid> {
        let numbers = fs::read_dir("/proc").unwrap().filter_map(|item| item.ok()?.file_name().to_str()?.parse().ok());
        let ours = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.program);
        numbers.filter(ours).filter_map(Pid::from_raw).collect()
    }

    /// One of them, once it is confined.
    fn process(&self, who: Who) -> Option<Pid> {
        let capabilities = |pid: &Pid| {
            let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
            status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        };
        self.processes().into_iter().find(|pid| match who {
            Who::Unpacker => capabilities(pid) == Some(0x1b),
            Who::Decoder => capabilities(pid) == Some(0),
        })
    }

    /// Does something to one of them in the middle of its work; false if the fetch was `over` before that.
    fn meddle(&self, who: Who, signal: Signal, over: impl Fn() -> bool) -> bool {
        let unpacked = || {
            let staged = fs::read_dir(self.place.path("store/tmp")).unwrap().filter_map(Result::ok);
            staged.into_iter().any(|folder| folder.path().join("file3").exists())
        };
        while !over() {
            if unpacked()
                && let Some(pid) = self.process(who)
            {
                return kill_process(pid, signal).is_ok();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    fn fetch(&self) -> Result<(), Error> {
        fetch_by(&self.client, &self.reference, self.store())
    }

    fn assert_nothing_left(&self) {
        // The thread that ends them is nobody's to wait for.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.processes().is_empty() {
            assert!(Instant::now() < deadline, "processes are left: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.place.assert_clean();
        assert_eq!(fs::read_dir(self.place.path("store/layers/sha256")).unwrap().count(), 0);
    }
}

/// What becomes of a fetch when one of its processes gets `signal`.
fn meddled(limits: &Limits, who: Who, signal: Signal) -> Error {
    for _ in 0..20 {
        let slow = Slow::new(limits.clone());
        let (met, fetched) = std::thread::scope(|scope| {
            let fetch = scope.spawn(|| slow.fetch());
            (slow.meddle(who, signal, || fetch.is_finished()), fetch.join().unwrap())
        });
        match (met, fetched) {
            (true, Err(error)) => {
                slow.assert_nothing_left();
                slow.fetch().expect("it is not broken for good");
                return error;
            }
            (false, Err(error)) => panic!("it fails by itself: {error}"),
            // On a busy machine it may be over first.
            (_, Ok(())) => {}
        }
    }
    panic!("twenty fetches were well in spite of {signal:?} to the {who:?}")
}

#[test]
fn a_killed_one_is_a_failed_fetch_that_leaves_nothing() {
    for (signal, word) in [
        (Signal::KILL, "was killed (SIGKILL)"),
        (Signal::SEGV, "crashed (signal 11)"),
        (Signal::SYS, "was killed (SIGSYS)"),
    ] {
        for (who, name) in [(Who::Unpacker, "unpacker"), (Who::Decoder, "decoder")] {
            let error = meddled(&Limits::default(), who, signal);
            assert_eq!(error.code(), Code::UnpackerFailed);
            let text = error.to_string();
            // Of that one: what the other makes of its end is not the cause.
            assert!(text.starts_with("unpack layer sha256:") && text.contains(&format!("its {name} {word}")), "{text}");
        }
    }
}

/// Fetches the image of the layout at `layout`.
fn fetch(place: &Place, by: Arc<Unpacker>) -> Result<(), Error> {
    let client = Client::new(&Registries::default(), Limits::default()).unwrap().confined(by);
    let reference = format!("oci:{}", place.path("layout").display()).parse().unwrap();
    fetch_by(&client, &reference, &place.store)
}

fn fetch_by(client: &Client, reference: &ImageRef, store: &Store) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let resolved = client.resolve(reference, &Platform::host(), &()).await?;
        client.fetch(&resolved, store, &()).await.map(drop)
    })
}

/// Both end of a layer that is no good, within microseconds of each other.
#[test]
fn the_cause_is_told_and_not_what_the_other_makes_of_it() {
    // Of several pieces, and so that it does not pack: the unpacker is at work when the decoder finds the end.
    let much = random(700_000);
    let tar = Tar::new().file("file", "content").file("other", &much).end();
    let damaged = |mut blob: Vec<u8>| {
        // In the checksum.
        let sum = blob.len() - 6;
        blob[sum] ^= 0x55;
        blob
    };
    let cut = |mut blob: Vec<u8>| {
        blob.truncate(blob.len() - 20);
        blob
    };
    let climbing = packed(&Tar::new().file("../file", "content").file("other", &much).end());
    let half = Tar::new().file("file", &much).end();
    let half = packed(&half[..600_000]);
    let (good, kind, diff_id) = packed(&tar);
    for (layer, word) in [
        ((damaged(good.clone()), kind, diff_id.clone()), "corrupt gzip stream"),
        ((cut(good), kind, diff_id), "cannot read the tar stream"),
        (climbing, "'../file'"),
        (half, "before the end of a file"),
    ] {
        let place = Place::new();
        Image::new(&[layer]).layout(&place.path("layout"));
        for _ in 0..25 {
            let error = fetch(&place, unpacker()).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}

#[test]
fn who_decodes_is_waited_for_when_its_bytes_end_too_soon() {
    let place = Place::new();
    Image::new(&[packed(&Tar::new().file("file", "1").end())]).layout(&place.path("layout"));
    let late = Unpacker::new(fs::File::open(example("late")).unwrap().as_fd(), |_| None).unwrap();
    let error = fetch(&place, Arc::new(late)).unwrap_err().to_string();
    assert!(error.contains("its decoder ended with status 3 and without a verdict"), "{error}");
    place.assert_clean();
}

#[test]
fn a_stopped_one_is_given_up() {
    let limits = Limits { unpack_stall: Duration::from_secs(2), ..Limits::default() };
    for who in [Who::Unpacker, Who::Decoder] {
        let text = meddled(&limits, who, Signal::STOP).to_string();
        assert!(text.contains("its decoder and its unpacker made no progress for 2 s and were killed"), "{text}");
    }
}

/// Starts a fetch and drops it as soon as one of its processes is there; false if it was over first.
fn dropped(slow: &Slow) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let resolved = slow.client.resolve(&slow.reference, &Platform::host(), &()).await.unwrap();
        let fetch = std::pin::pin!(slow.client.fetch(&resolved, slow.store(), &()));
        let there = std::pin::pin!(async {
            while slow.processes().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        matches!(futures_util::future::select(fetch, there).await, futures_util::future::Either::Right(_))
    })
}

#[test]
fn nobody_waits_for_it_any_more() {
    loop {
        let slow = Slow::new(Limits::default());
        if dropped(&slow) {
            return slow.assert_nothing_left();
        }
    }
}

#[test]
fn a_program_that_is_no_unpacker_is_an_error() {
    let place = Place::new();
    Image::new(&[packed(&Tar::new().file("file", "1").end())]).layout(&place.path("layout"));
    for program in ["/bin/true", "/bin/cat", "/etc/passwd"] {
        let unpacker = Unpacker::new(fs::File::open(Path::new(program)).unwrap().as_fd(), |_| None).unwrap();
        let error = fetch(&place, Arc::new(unpacker)).unwrap_err();
        assert_eq!(error.code(), Code::UnpackerFailed, "{program}: {error}");
        place.assert_clean();
    }
}
