//! The embedded shim, kept where nothing can change it, and started from there.
//!
//! In: the ELF file built by `build.rs`. Out: launchers. Must not: run a shim that an image, the workload or the file
//! system could have touched.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use molt_sys::process::spawn;
use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat},
    io::Errno,
    process::{Pid, WaitOptions, waitpid},
};

static ELF: &[u8] = include_bytes!(env!("MOLT_SHIM"));

/// Where the shim is executed from.
#[derive(Debug)]
pub(crate) struct Shim {
    file: OwnedFd,
    path: CString,
}

/// Why the shim cannot be kept or run.
#[derive(Debug, thiserror::Error)]
#[error("{step} the shim: {why}")]
pub(crate) struct ShimError {
    step: &'static str,
    why: String,
}

fn failed(step: &'static str) -> impl Fn(Errno) -> ShimError {
    move |errno| ShimError { step, why: errno.to_string() }
}

impl Shim {
    /// Seals the shim into memory, or where that may not be executed into an unnamed root-only file of `store`, and
    /// starts it once to see that it runs.
    pub(crate) fn keep(store: Option<&Path>) -> Result<Self, ShimError> {
        let sealed = memory().and_then(Self::tested);
        match (sealed, store) {
            (Ok(shim), _) => Ok(shim),
            (Err(_), Some(store)) => Self::tested(unnamed(store)?),
            (Err(error), None) => Err(error),
        }
    }

    fn tested(file: OwnedFd) -> Result<Self, ShimError> {
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
        let shim = Self { file, path };
        let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed("test"))?;
        let pid = spawn(&shim.path, &[c"molt-shim", c"--self-test"], &[null.as_fd()])
            .map_err(|error| ShimError { step: "start", why: error.to_string() })?;
        let ended = loop {
            match waitpid(Some(pid), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                result => break result.map_err(failed("wait for"))?,
            }
        };
        match ended.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(shim),
            status => Err(ShimError { step: "test", why: format!("it ended with {status:?}") }),
        }
    }

    /// Starts a launcher whose descriptor 0 is `control`.
    pub(crate) fn launch(&self, control: &OwnedFd) -> Result<Pid, ShimError> {
        self.start(&[crate::planted::shim_name()], control)
    }

    /// Starts what goes into a generation that runs. Its descriptor 0 is `control`.
    pub(crate) fn enter(&self, control: &OwnedFd) -> Result<Pid, ShimError> {
        self.start(&[crate::planted::shim_name(), c"--enter"], control)
    }

    fn start(&self, argv: &[&CStr], control: &OwnedFd) -> Result<Pid, ShimError> {
        debug_assert!(self.file.as_raw_fd() >= 0);
        spawn(&self.path, argv, &[control.as_fd()]).map_err(|error| ShimError { step: "start", why: error.to_string() })
    }
}

fn memory() -> Result<OwnedFd, ShimError> {
    // MFD_EXEC since Linux 6.3; without it where `vm.memfd_noexec` is not known.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create("molt-shim", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create("molt-shim", flags),
        result => result,
    }
    .map_err(failed("make a memory file for"))?;
    write(&file)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(failed("seal"))?;
    Ok(file)
}

fn unnamed(store: &Path) -> Result<OwnedFd, ShimError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(CWD, store, flags, Mode::from_raw_mode(0o500)).map_err(failed("make a file for"))?;
    write(&file)?;
    // A file that is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open again"))
}

fn write(file: &OwnedFd) -> Result<(), ShimError> {
    let mut rest = ELF;
    while !rest.is_empty() {
        match rustix::io::write(file, rest) {
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("write")(errno)),
        }
    }
    Ok(())
}
