//! A file system that can stop answering: an empty folder served by FUSE, as a network file system without its server.
//!
//! In: a mount point. Out: [`Fuse`], which answers until it is told to hang. Must not: answer again after that; dropping
//! it ends the connection, and whoever waits gets an error.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const ENOSYS: i32 = -38;
/// No opcode: every one.
const ALL: u32 = u32::MAX;

/// A mounted one.
#[derive(Debug)]
pub struct Fuse {
    at: PathBuf,
    /// The opcode that is not answered; 0 is none's.
    hangs: Arc<AtomicU32>,
    unanswered: Arc<AtomicU32>,
    ends: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Fuse {
    /// Mounts it at `at`, world-writable by its mode.
    pub fn mount(at: &Path) -> anyhow::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("opening /dev/fuse")?;
        let options = format!("fd={},rootmode=40777,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options)?;
        mount("fuse", at, "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))?;
        let (hangs, ends) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let unanswered = Arc::new(AtomicU32::new(0));
        let flags = (Arc::clone(&hangs), Arc::clone(&unanswered), Arc::clone(&ends));
        let server = std::thread::spawn(move || serve(device, &flags.0, &flags.1, &flags.2));
        Ok(Self { at: at.to_owned(), hangs, unanswered, ends, server: Some(server) })
    }

    /// From now on nothing is answered.
    pub fn hang(&self) {
        self.hangs.store(ALL, Ordering::SeqCst);
    }

    /// From now on nothing is said of a name in it. Whoever asks for one cannot be killed.
    pub fn hang_names(&self) {
        self.hangs.store(LOOKUP, Ordering::SeqCst);
    }

    /// How many requests have got no answer.
    pub fn unanswered(&self) -> u32 {
        self.unanswered.load(Ordering::SeqCst)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn serve(mut device: File, hangs: &AtomicU32, unanswered: &AtomicU32, ends: &AtomicBool) {
    let mut request = vec![0; 1 << 20];
    while !ends.load(Ordering::SeqCst) {
        let step = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        if poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&step)).unwrap_or(0) == 0 {
            continue;
        }
        let Ok(length) = device.read(&mut request) else { return };
        let word = |at: usize| u32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let never = hangs.load(Ordering::SeqCst);
        if length < 40 || never == ALL || never == word(4) {
            unanswered.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let answer = match word(4) {
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            // fuse_init_out: version 7.31, nothing negotiated, writes of 4 KiB.
            INIT => reply(&request[8..16], 0, &[&words(&[7, 31, 0, 0, 0, 4096]), &[0; 40]]),
            // fuse_attr_out, not to be cached: inode 1, a folder.
            GETATTR => {
                let attributes = words(&[0o40777, 2, 0, 0, 0, 4096, 0]);
                reply(&request[8..16], 0, &[&[0; 16], &1u64.to_ne_bytes(), &[0; 52], &attributes])
            }
            _ => reply(&request[8..16], ENOSYS, &[]),
        };
        // ENOENT: whoever asked was interrupted.
        let _ = device.write(&answer);
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `fuse_out_header` and a body.
fn reply(unique: &[u8], error: i32, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let length = u32::try_from(16 + body.len()).unwrap_or(16);
    [&length.to_ne_bytes()[..], &error.to_ne_bytes(), unique, &body].concat()
}
