//! What unpacking in processes of its own costs: the same layout into a fresh store, by confined decoders and unpackers and
//! in this process, by turns.
//!
//! In: `bench_unpack FILES BYTES gzip|zstd DIR ROUNDS UNPACKER`: a layer of so many files of so many bytes each is made; or
//! `bench_unpack LAYOUT DIR ROUNDS UNPACKER`: the image of an OCI layout. DIR is a folder for stores, UNPACKER the example
//! `unpacker` or Molt's own file. Out: the medians and minima of both, the median of the ratios of neighbours, and the most
//! memory (PSS) that the confined processes were seen to have together. Must not: count the removal of a store.

use std::{
    error::Error,
    fs::{self, File},
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use molt_core::ids::{Digest, ImageRef};
use molt_oci::{Client, Limits, Platform, Registries, Store, unpacker::Unpacker};
use nix::sys::resource::{UsageWho, getrusage};
use sha2::Digest as _;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (layout, what, dir, rounds, program) = match words.as_slice() {
        [files, bytes, packing, dir, rounds, program] => {
            let layout = Path::new(dir).join("layout");
            let packed = make(files.parse()?, bytes.parse()?, packing, &layout)?;
            let what = format!("{files} files of {bytes} bytes, {packing}, {} kB packed", packed / 1000);
            (layout, what, dir, rounds, program)
        }
        [layout, dir, rounds, program] => (PathBuf::from(layout), (*layout).to_owned(), dir, rounds, program),
        _ => return Err(
            "usage: bench_unpack FILES BYTES gzip|zstd DIR ROUNDS UNPACKER, or bench_unpack LAYOUT DIR ROUNDS UNPACKER"
                .into(),
        ),
    };
    let dir = Path::new(dir);
    let client = || Client::new(&Registries::default(), Limits::default());
    let unpacker = Arc::new(Unpacker::new(File::open(program)?.as_fd(), |_| None)?);
    let (apart, here) = (client()?.confined(unpacker), client()?);
    let reference: ImageRef = format!("oci:{}", layout.display()).parse()?;
    let (mut ours, mut theirs, mut ratios, mut memory) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let (mut ours_cpu, mut theirs_cpu) = (Vec::new(), Vec::new());
    for round in 0..rounds.parse::<usize>()? {
        // Whoever is first finds colder caches.
        let first = once(if round % 2 == 0 { &apart } else { &here }, &reference, dir)?;
        let second = once(if round % 2 == 0 { &here } else { &apart }, &reference, dir)?;
        let (one, other) = if round % 2 == 0 { (first, second) } else { (second, first) };
        ours.push(one.wall);
        theirs.push(other.wall);
        ratios.push(one.wall / other.wall);
        ours_cpu.push(one.cpu);
        theirs_cpu.push(other.cpu);
    }
    // Looking takes time: a round of its own.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Fallible<()> {
        let looking = scope.spawn(|| most_memory(Path::new(program), &over));
        let done = once(&apart, &reference, dir);
        over.store(true, Ordering::Relaxed);
        memory = looking.join().map_err(|_| "the one who looked is gone")?;
        done.map(drop)
    })?;
    let made = dir.join("layout");
    if layout == made {
        fs::remove_dir_all(made)?;
    }
    if !apart.degraded().is_empty() {
        return Err(apart.degraded().join("; ").into());
    }
    println!("{what}, {rounds} rounds");
    for (name, wall, cpu) in [("confined", &ours, &ours_cpu), ("in one process", &theirs, &theirs_cpu)] {
        let (median, best, cpu) = (middle(wall), least(wall), middle(cpu));
        println!("{name:<15} median {median:.1} ms, least {best:.1} ms, processor time {cpu:.0} ms");
    }
    let (ratio, best, cpu) = (middle(&ratios), least(&ours) / least(&theirs), middle(&ours_cpu) / middle(&theirs_cpu));
    println!("ratio of neighbours {ratio:.3}, of the least {best:.3}, of processor time {cpu:.3}");
    println!("most memory of confined processes seen: {memory} kB (PSS)");
    Ok(())
}

/// A layout of one layer. Its files are words: text that packs to about a third.
fn make(files: usize, bytes: usize, packing: &str, dir: &Path) -> Fallible<u64> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut seed = 88_172_645_463_325_252_u64;
    for number in 0..files {
        let mut content = String::with_capacity(bytes + 16);
        while content.len() < bytes {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let word = format!("{:x} ", seed % 4096);
            content.push_str(&word);
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes as u64);
        header.set_mode(0o644);
        let path = format!("usr/share/d{}/file-{number}", number / 100);
        if number % 100 == 0 {
            let mut folder = tar::Header::new_gnu();
            folder.set_entry_type(tar::EntryType::Directory);
            folder.set_mode(0o755);
            folder.set_size(0);
            let above = ["usr/", "usr/share/"].iter().filter(|_| number == 0).map(|path| (*path).to_owned());
            for path in above.chain([format!("usr/share/d{}/", number / 100)]) {
                tar.append_data(&mut folder.clone(), path, std::io::empty())?;
            }
        }
        tar.append_data(&mut header, path, content.as_bytes().get(..bytes).unwrap_or_default())?;
    }
    let tar = tar.into_inner()?;
    let blob = match packing {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&tar)?;
            encoder.finish()?
        }
        "zstd" => zstd::encode_all(tar.as_slice(), 3)?,
        _ => return Err("neither gzip nor zstd".into()),
    };
    let digest = |bytes: &[u8]| Digest::from_bytes(sha2::Sha256::digest(bytes).into());
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8], kind: &str| -> Fallible<serde_json::Value> {
        fs::write(blobs.join(digest(bytes).hex()), bytes)?;
        let kind = format!("application/vnd.oci.image.{kind}");
        Ok(serde_json::json!({"mediaType": kind, "digest": digest(bytes).to_string(), "size": bytes.len()}))
    };
    let host = Platform::host();
    let config = serde_json::json!({
        "os": host.os, "architecture": host.architecture,
        "rootfs": {"type": "layers", "diff_ids": [digest(&tar).to_string()]},
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(config.to_string().as_bytes(), "config.v1+json")?,
        "layers": [put(&blob, &format!("layer.v1.tar+{packing}"))?],
    });
    let manifest = put(manifest.to_string().as_bytes(), "manifest.v1+json")?;
    fs::write(dir.join("index.json"), serde_json::json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(blob.len() as u64)
}

/// Milliseconds that one fetch took.
struct Took {
    wall: f64,
    /// Of this process and of those it waited for.
    cpu: f64,
}

fn once(client: &Client, reference: &ImageRef, dir: &Path) -> Fallible<Took> {
    let folder = dir.join("store");
    fs::create_dir_all(&folder)?;
    let store = Store::open(File::open(&folder)?)?;
    rustix::fs::sync();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let took = runtime.block_on(async {
        let resolved = client.resolve(reference, &Platform::host(), &()).await?;
        let (start, before) = (Instant::now(), processor()?);
        client.fetch(&resolved, &store, &()).await?;
        Ok::<_, Box<dyn Error>>(Took { wall: start.elapsed().as_secs_f64() * 1e3, cpu: processor()? - before })
    })?;
    fs::remove_dir_all(&folder)?;
    Ok(took)
}

/// Processor time so far in milliseconds, of this process and of those it waited for. getrusage(2).
fn processor() -> Fallible<f64> {
    let mut all = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            all += Duration::from_secs(u64::try_from(time.tv_sec())?)
                + Duration::from_micros(u64::try_from(time.tv_usec())?);
        }
    }
    Ok(all.as_secs_f64() * 1e3)
}

/// The most kilobytes that the processes of `program` were seen to have for themselves, until it is over.
fn most_memory(program: &Path, over: &AtomicBool) -> u64 {
    let program = fs::canonicalize(program).unwrap_or_default();
    let mut most = 0;
    while !over.load(Ordering::Relaxed) {
        let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok).map(|item| item.path());
        let ours = processes.filter(|process| fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program));
        let memory = |process: PathBuf| -> Option<u64> {
            let rollup = fs::read_to_string(process.join("smaps_rollup")).ok()?;
            rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok())
        };
        most = most.max(ours.filter_map(memory).sum());
    }
    most
}

fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
