//! The processes of a layer, in a running sandbox: their walls as the kernel sees them, and what the end of one does to an
//! update and to nothing else.
//!
//! In: the bed, a registry that stalls in the middle of a layer. Out: cases. Must not: ask these processes themselves.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::bad::{pull_fails, recipe, tidy};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::cgroup::Group;
use crate::harness::faulty::{Fault, Faulty};
use crate::harness::image::{Layer, Packed, Packing, digest};
use crate::harness::molt::{Molt, PROGRAM, SOON, Setup};
use crate::harness::process::{self, Background};
use crate::harness::runtime::Kind;
use crate::harness::{http, wait};

/// The cases.
pub(super) const CASES: &[Case] = &[
    case("unpack::the_walls_stand_while_a_layer_is_unpacked", |bed| walls(bed, Kind::Light)),
    case("unpack::the_walls_stand_in_a_user_namespace", |bed| walls(bed, Kind::LightUser)),
    case("unpack::a_killed_unpacker_fails_the_update_and_leaves_nothing", killed),
    case("unpack::a_stopped_unpacker_goes_with_the_deadline", stopped),
    case("unpack::a_cancelled_update_leaves_no_unpacker", cancelled),
    case("unpack::memory_that_runs_out_ends_the_unpacker_alone", out_of_memory),
    case("unpack::a_bomb_is_an_error_that_names_its_layer", bomb),
];

/// A sandbox, and a registry that stalls in the middle of the last layer of v2.
struct Slow {
    molt: Molt,
    proxy: Faulty,
    layer: String,
}

fn slow(bed: &Bed, kind: Kind, deadline: &str) -> anyhow::Result<Slow> {
    for version in ["v1", "v2"] {
        bed.small(version)?;
    }
    let proxy = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, kind, &proxy.reference("small:v1"))?.with("/update/pullDeadline", json!(deadline));
    let molt = setup.with("/registries/insecure", json!([proxy.address.to_string()])).start()?;
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let manifest = http::request(proxy.address, "GET", "/v2/small/manifests/v2", &accept, &[], SOON)?.json()?;
    let layer = manifest["layers"][2]["digest"].as_str().context("a layer")?.to_owned();
    proxy.rule(&format!("GET /v2/small/blobs/{layer}"), Fault::Stall(10), 1);
    Ok(Slow { molt, proxy, layer })
}

impl Slow {
    /// Starts the update to v2 and waits until the processes of its last layer are confined.
    fn begin(&self) -> anyhow::Result<(Background, Pair)> {
        let words = [PROGRAM, "update", &self.proxy.reference("small:v2")];
        let mut update = self.molt.sandbox.exec_command(&words)?;
        let update = update.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let update = Background::spawn(update)?;
        let pair = wait::until_some("a confined unpacker and its decoder", SOON, || {
            let (decodes, unpacks) = processes(&self.molt)
                .ok()?
                .into_iter()
                .partition::<Vec<_>, _>(|pid| status(*pid).get("CapEff").is_some_and(|effective| effective == NONE));
            let ([decoder], [unpacker]) = (decodes.as_slice(), unpacks.as_slice()) else { return None };
            let confined = |pid| status(pid).get("Seccomp_filters").is_some_and(|filters| filters == "2");
            (confined(*decoder) && confined(*unpacker)).then_some(Pair { decoder: *decoder, unpacker: *unpacker })
        })?;
        Ok((update, pair))
    }

    fn ends_with(&self, update: &mut Background, code: i32) -> anyhow::Result<()> {
        let ended = process::code(process::wait(&mut update.0, SOON)?);
        ensure!(ended == code, "the update ended with {ended}, not {code}");
        wait::until("both to be gone", SOON, || processes(&self.molt).is_ok_and(|left| left.is_empty()))?;
        let empty =
            || ["tmp", "trash"].iter().all(|folder| self.molt.stored(folder).is_ok_and(|names| names.is_empty()));
        wait::until("the store to be tidy", SOON, empty)?;
        self.molt.serves("v1", 1)?;
        self.molt.sound()
    }
}

/// What no process holds that decodes: capabilities.
const NONE: &str = "0000000000000000";

/// The processes of one layer.
struct Pair {
    decoder: u32,
    unpacker: u32,
}

/// Decoders and unpackers of a sandbox, as this program sees them.
fn processes(molt: &Molt) -> anyhow::Result<Vec<u32>> {
    let family = molt.family()?.into_iter().map(|(pid, _)| pid);
    let unpacks = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == b"--unpack-layer")
    };
    Ok(family.filter(unpacks).collect())
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.into(), value.trim().into())).collect()
}

fn walls(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let slow = slow(bed, kind, "5m")?;
    let (mut update, Pair { decoder, unpacker }) = slow.begin()?;
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
    // Beside 128 MiB the names that are kept, or the window of zstd.
    confined(unpacker, "000000000000001b", 384 << 20).context("the unpacker")?;
    confined(decoder, NONE, 256 << 20).context("the decoder")?;
    let proc = PathBuf::from(format!("/proc/{unpacker}"));
    let init = slow.molt.sandbox.pid1()?;
    for (process, namespaces) in [(unpacker, &["net", "mnt", "ipc", "uts"][..]), (decoder, &["net", "ipc", "uts"][..])]
    {
        for name in namespaces {
            let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{name}"));
            ensure!(of(process)? != of(init)?, "it shares its {name} namespace with PID 1");
        }
    }
    let sockets = fs::read_to_string(proc.join("net/dev"))?;
    ensure!(sockets.lines().skip(2).all(|line| line.trim_start().starts_with("lo:")), "it has a network:\n{sockets}");
    let mounts = fs::read_to_string(proc.join("mountinfo"))?;
    ensure!(mounts.lines().count() == 1, "there is more than its folder:\n{mounts}");
    // Its root is the folder of the layer, in `tmp/` of the store.
    let staged = fs::read_dir(slow.molt.store.join("tmp"))?.next().context("a folder in tmp/")??.path();
    let inode = |path: &PathBuf| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    ensure!(inode(&proc.join("root"))? == inode(&staged)?, "its root is not {}", staged.display());
    // Its streams, its socket, the pipe, the file of its asks, its folder (twice: one is a name only).
    let mut fds = descriptors(unpacker)?;
    ensure!(fds.remove("/").is_some_and(|count| count <= 2), "{fds:?}");
    ensure!(fds == expected(&[("/dev/null", 3), ("/memfd", 1), ("pipe", 1), ("socket", 1)]), "{fds:?}");
    // Two pipes: no file is behind any of them.
    let fds = descriptors(decoder)?;
    ensure!(fds == expected(&[("/dev/null", 3), ("pipe", 2), ("socket", 1)]), "{fds:?}");
    ensure!(slow.molt.status()?["degraded"] == json!([]), "{}", slow.molt.status()?["degraded"]);
    slow.molt.expect(0, &["cancel"])?;
    slow.ends_with(&mut update, 1)
}

/// What both have in common, and in what they differ: capabilities and bytes of memory.
fn confined(pid: u32, capabilities: &str, memory: u64) -> anyhow::Result<()> {
    let status = status(pid);
    for (key, value) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapEff", capabilities),
        ("CapPrm", capabilities),
        ("CapInh", NONE),
        ("CapBnd", NONE),
        ("CapAmb", NONE),
        ("Threads", "1"),
    ] {
        ensure!(status.get(key).map(String::as_str) == Some(value), "{key} is not {value}: {status:#?}");
    }
    let proc = PathBuf::from(format!("/proc/{pid}"));
    ensure!(fs::read(proc.join("environ"))?.is_empty(), "it has an environment");
    ensure!(fs::read_to_string(proc.join("oom_score_adj"))?.trim() == "1000", "it is not the first to go");
    let limits = fs::read_to_string(proc.join("limits"))?;
    for (name, value) in [
        ("Max address space", memory.to_string().as_str()),
        ("Max core file size", "0"),
        ("Max open files", "1024"),
        ("Max cpu time", "301"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).context("a limit")?;
        ensure!(line[26..].split_whitespace().take(2).all(|found| found == value), "{line}");
    }
    Ok(())
}

/// How many descriptors of each kind it holds.
fn descriptors(pid: u32) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut fds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = fs::read_link(entry?.path())?.display().to_string();
        let kind = target.split_once(':').map_or(target.as_str(), |(kind, _)| kind).to_owned();
        *fds.entry(kind).or_insert(0) += 1;
    }
    Ok(fds)
}

fn expected(kinds: &[(&str, usize)]) -> BTreeMap<String, usize> {
    kinds.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}

fn killed(bed: &Bed) -> anyhow::Result<()> {
    let unpacker: fn(Pair) -> u32 = |pair| pair.unpacker;
    let decoder: fn(Pair) -> u32 = |pair| pair.decoder;
    for (who, signal, words) in [
        (unpacker, Signal::SIGKILL, "its unpacker was killed (SIGKILL)"),
        (unpacker, Signal::SIGSEGV, "its unpacker crashed (signal 11)"),
        (decoder, Signal::SIGKILL, "its decoder was killed (SIGKILL)"),
    ] {
        let slow = slow(bed, Kind::Light, "5m")?;
        let (mut update, pair) = slow.begin()?;
        kill(Pid::from_raw(i32::try_from(who(pair))?), signal)?;
        slow.ends_with(&mut update, 1)?;
        let last = slow.molt.last()?;
        let message = last["message"].as_str().context("a message")?;
        ensure!(last["outcome"] == "aborted" && message.contains("unpack layer sha256:"), "{last:#}");
        ensure!(message.contains(words) && last["reason"] == "unpacker-failed", "{last:#}");
        // The registry was never at fault, and the image is not a bad one.
        slow.molt.expect(0, &["update", &slow.proxy.reference("small:v2")])?;
        slow.molt.serves("v2", 2)?;
    }
    Ok(())
}

fn stopped(bed: &Bed) -> anyhow::Result<()> {
    let slow = slow(bed, Kind::Light, "8s")?;
    let (mut update, pair) = slow.begin()?;
    kill(Pid::from_raw(i32::try_from(pair.unpacker)?), Signal::SIGSTOP)?;
    slow.ends_with(&mut update, 1)?;
    ensure!(!slow.layer.is_empty() && slow.molt.last()?["reason"] == "deadline-exceeded", "{:#}", slow.molt.last()?);
    Ok(())
}

fn cancelled(bed: &Bed) -> anyhow::Result<()> {
    let slow = slow(bed, Kind::Light, "5m")?;
    let (mut update, _) = slow.begin()?;
    slow.molt.expect(0, &["cancel"])?;
    slow.ends_with(&mut update, 1)
}

/// A layer whose zstd window must be held whole: 96 MiB that repeat themselves far apart.
fn wide_layer() -> anyhow::Result<Packed> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(256 << 10)
    .flatten()
    .collect();
    let mut layer = Layer::new().dir("app", 0o755);
    for number in 0..48 {
        layer = layer.file(&format!("app/noise{number}"), 0o644, &noise);
    }
    let plain = layer.pack(Packing::Gzip);
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(plain.bytes.as_slice()), &mut tar)?;
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
    encoder.window_log(27)?;
    encoder.long_distance_matching(true)?;
    std::io::Write::write_all(&mut encoder, &tar)?;
    let bytes = encoder.finish()?;
    Ok(Packed { packing: Packing::Zstd, diff_id: plain.diff_id, digest: digest(&bytes), bytes })
}

fn out_of_memory(bed: &Bed) -> anyhow::Result<()> {
    let image = bed.image("bad/wide:1", || Ok(recipe(bed, "v2")?.layer(wide_layer()?).build()))?;
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let memory = Group::memory(bed, &molt, 48 << 20)?;
    let before = molt.stored("generations")?;
    let failed = molt.molt(&["update", &image])?;
    ensure!(memory.kills()? > 0, "memory did not run out");
    ensure!(failed.code == 1, "{failed:?}");
    for part in ["failed to unpack layer sha256:", "was killed (SIGKILL): memory ran out"] {
        ensure!(failed.stderr.contains(part), "it does not say {part:?}: {}", failed.stderr);
    }
    ensure!(molt.last()?["reason"] == "unpacker-failed", "{:#}", molt.last()?);
    molt.serves("v1", 1)?;
    ensure!(molt.stored("generations")? == before, "a generation was made");
    tidy(&molt)?;
    drop(memory);
    molt.expect(0, &["update", &image])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

fn bomb(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let packed = Layer::new().file("zeros", 0o644, &vec![0; 80 << 20]).pack(Packing::Zstd);
    let name = packed.diff_id.clone();
    let image = bed.image("bad/bomb:1", || Ok(recipe(bed, "v1")?.layer(packed).build()))?;
    pull_fails(&molt, 1, &image, &[&format!("failed to unpack layer {name}: "), "more than 200:1"])?;
    molt.serves("v1", 1)
}
