//! Goes behind the walls of an unpacker (`confined`) or of a decoder (`sealed`, and without its filter `unfiltered`),
//! tries one thing, and says what came of it: `ok`, or the error. `free` does the same without walls, so that it is seen
//! that they make the difference.
//!
//! In: `prisoner free|confined|sealed|unfiltered FOLDER LOWER OUTSIDE WHAT`, a socket on descriptor 0. Out: one line. The
//! suites run it.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd, OwnedFd},
    process::Command,
};

use molt_oci::{Limits, unpacker};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags, chownat, fchmod, fsetxattr, mknodat,
        openat, renameat_with,
    },
    io::Errno,
    mount::{MountFlags, mount},
    net::{AddressFamily, SocketType, socket},
    process::{Pid, Signal, getppid, kill_process},
};

/// What is tried, on what.
struct Cell {
    folder: OwnedFd,
    lower: OwnedFd,
    outside: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [how, folder, lower, outside, what] = words.as_slice() else {
        return Err("usage: prisoner free|confined|sealed|unfiltered FOLDER LOWER OUTSIDE WHAT".into());
    };
    let (mut folder, mut lower) = (OwnedFd::from(File::open(folder)?), OwnedFd::from(File::open(lower)?));
    if how != "free" {
        let control = molt_sys::process::inherited(0).ok_or("no socket")?;
        let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
        let missing = if how == "confined" {
            let (own, mut lowers, missing) = unpacker::prisoner(&control, folder, vec![lower], &limits)?;
            (folder, lower) = (own, lowers.pop().ok_or("no lower folder")?);
            missing
        } else {
            let walls = if how == "sealed" { unpacker::sealed } else { unpacker::enclosed };
            walls(&control, &limits)?
        };
        if !missing.is_empty() {
            return Err(missing.join("; ").into());
        }
    }
    let line = match (Cell { folder, lower, outside: outside.clone() }).attempt(what) {
        Ok(()) => "ok\n".to_owned(),
        Err(error) => format!("errno {}\n", error.raw_os_error().ok_or_else(|| error.to_string())?),
    };
    io::stdout().write_all(line.as_bytes())?;
    molt_sys::process::exit_now(0)
}

fn parent() -> Pid {
    getppid().unwrap_or(Pid::INIT)
}

fn give(at: impl AsFd, path: &str) -> rustix::io::Result<()> {
    chownat(at, path, Some(Uid::from_raw(7)), Some(Gid::from_raw(7)), AtFlags::SYMLINK_NOFOLLOW)
}

impl Cell {
    fn attempt(&self, what: &str) -> io::Result<()> {
        let (own, lower) = (self.folder.as_fd(), self.lower.as_fd());
        let none = Mode::empty();
        match what {
            // What it is there for.
            "write a file" => openat(own, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).map(drop)?,
            "read a lower file" => openat(lower, "file", OFlags::RDONLY, none).map(drop)?,
            "make a whiteout" => mknodat(own, "gone", FileType::CharacterDevice, none, 0)?,
            "mark a folder" => fsetxattr(own, "trusted.overlay.opaque", b"y", XattrFlags::empty())?,
            // Files that are not its own.
            "read a file by its path" => openat(CWD, self.outside.as_str(), OFlags::RDONLY, none).map(drop)?,
            "read a file above its folder" => openat(own, "../outside/file", OFlags::RDONLY, none).map(drop)?,
            "read a file above a lower folder" => openat(lower, "../outside/file", OFlags::RDONLY, none).map(drop)?,
            "give away a file above its folder" => give(own, "../outside/file")?,
            "give away a file above a lower folder" => give(lower, "../outside/file")?,
            "give away a file by its path" => give(CWD, &self.outside)?,
            "give away a lower file" => give(lower, "file")?,
            "write to a lower file" => openat(lower, "file", OFlags::WRONLY, none).map(drop)?,
            "make a lower file" => openat(lower, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).map(drop)?,
            "move a lower file" => renameat_with(lower, "file", lower, "moved", RenameFlags::NOREPLACE)?,
            "change the mode of a lower folder" => {
                fchmod(openat(lower, ".", OFlags::RDONLY, none)?, Mode::RWXU)?;
            }
            // What no layer holds.
            "make a socket file" => mknodat(own, "socket", FileType::Socket, Mode::RWXU, 0)?,
            "make a device" => mknodat(own, "device", FileType::CharacterDevice, Mode::RWXU, 0x103)?,
            "make a disk" => mknodat(own, "disk", FileType::BlockDevice, Mode::RWXU, 0)?,
            // What is no file.
            "open a socket" => socket(AddressFamily::INET, SocketType::STREAM, None).map(drop)?,
            "open a local socket" => socket(AddressFamily::UNIX, SocketType::STREAM, None).map(drop)?,
            "run a program" => Command::new("/bin/true").status().map(drop)?,
            "fork" => match molt_sys::process::fork().map_err(|error| error.errno)? {
                molt_sys::process::Fork::Child => molt_sys::process::exit_now(0),
                molt_sys::process::Fork::Parent(_) => {}
            },
            "make a thread" => std::thread::Builder::new().spawn(|| ()).map(drop)?,
            "signal its parent" => kill_process(parent(), Signal::WINCH)?,
            "look into its parent" => {
                let parent = nix::unistd::Pid::from_raw(parent().as_raw_nonzero().get());
                nix::sys::ptrace::seize(parent, nix::sys::ptrace::Options::empty())?;
            }
            "mount something" => mount("none", "/", "tmpfs", MountFlags::empty(), None)?,
            "leave its namespaces" => {
                molt_sys::process::unshare_namespaces(rustix::thread::UnshareFlags::NEWUTS)
                    .map_err(|error| error.errno)?;
            }
            "load another filter" => {
                molt_sys::sandbox::load_filter(&[0x0006_0000_7fff_0000]).map_err(|error| error.errno)?;
            }
            "make a file in memory" => {
                rustix::fs::memfd_create("code", rustix::fs::MemfdFlags::CLOEXEC).map(drop)?;
            }
            // Too much.
            "write a big file" => {
                let file = openat(own, "big", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU)?;
                File::from(file).write_all(&vec![1; 2 << 20])?;
            }
            "take much memory" => {
                let mut much: Vec<u8> = Vec::new();
                much.try_reserve_exact(2 << 30).map_err(|_| Errno::NOMEM)?;
            }
            "open many files" => {
                let mut kept = Vec::new();
                for _ in 0..2000 {
                    kept.push(openat(own, ".", OFlags::RDONLY, none)?);
                }
            }
            other => return Err(io::Error::other(format!("nothing is called {other}"))),
        }
        Ok(())
    }
}
