//! The switch of test builds (feature `planted`): one fault at a time, named by `MOLT_PLANT`, to see that the tests find
//! it. Without the feature every question here is answered with a constant no, and there is no such switch.
//!
//! In: PID 1's environment, once, at its start. Out: the word. The shim gets it as its `argv[0]`; its list is in
//! `shim/src/planted.rs`. Must not: be read by the product.

/// What PID 1 itself can do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The journal's slot is written and not synced.
    NoSlotSync,
    /// Neither a generation's folder nor the store is synced before the generation has its name.
    NoFolderSync,
    /// The old workload is signalled before the trial is recorded.
    LateTrial,
    /// A trial is confirmed before it was probed.
    EarlyConfirm,
}

#[cfg(not(feature = "planted"))]
mod build {
    use std::ffi::CStr;

    use super::Fault;

    /// Whether this run is to do it wrong.
    pub(crate) const fn is(_: Fault) -> bool {
        false
    }

    /// Leaves something behind.
    pub(crate) const fn leak() {}

    /// The shim's `argv[0]`.
    pub(crate) const fn shim_name() -> &'static CStr {
        c"molt-shim"
    }

    /// Reads the switch before the environment is scrubbed.
    pub(crate) const fn remember() {}
}

#[cfg(feature = "planted")]
mod build {
    use std::{
        ffi::{CStr, CString},
        os::{fd::IntoRawFd as _, unix::ffi::OsStringExt as _},
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    use super::Fault;

    /// Which update leaves something behind: one of those after the first look of `soak::`.
    const LEAKS: u32 = 22;

    static PLANT: LazyLock<CString> = LazyLock::new(|| {
        let word = std::env::var_os("MOLT_PLANT").unwrap_or_else(|| "molt-shim".into());
        CString::new(word.into_vec()).unwrap_or_default()
    });

    /// Whether this run is to do it wrong.
    pub(crate) fn is(fault: Fault) -> bool {
        let word = match fault {
            Fault::NoSlotSync => c"no-slot-sync",
            Fault::NoFolderSync => c"no-folder-sync",
            Fault::LateTrial => c"late-trial",
            Fault::EarlyConfirm => c"early-confirm",
        };
        PLANT.as_c_str() == word
    }

    /// Leaves something behind, once, when so many updates have ended.
    pub(crate) fn leak() {
        static ENDED: AtomicU32 = AtomicU32::new(0);
        if ENDED.fetch_add(1, Ordering::Relaxed) + 1 != LEAKS {
            return;
        }
        let left = match PLANT.to_bytes() {
            b"leak-descriptor" => std::fs::File::open("/dev/null").map(|file| _ = file.into_raw_fd()),
            b"leak-mount" => {
                use rustix::mount::OpenTreeFlags as Flags;
                let flags = Flags::OPEN_TREE_CLONE | Flags::OPEN_TREE_CLOEXEC;
                let tree = rustix::mount::open_tree(rustix::fs::CWD, "/", flags);
                tree.map(|tree| _ = tree.into_raw_fd()).map_err(Into::into)
            }
            b"leak-process" => std::process::Command::new("/bin/busybox").args(["sleep", "1000"]).spawn().map(drop),
            b"leak-thread" => std::thread::Builder::new().spawn(std::thread::park).map(drop),
            b"leak-file" => std::fs::write("/var/lib/molt/left", "behind"),
            b"leak-memory" => {
                Box::leak(vec![1u8; 2 << 20].into_boxed_slice());
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = left {
            tracing::error!(%error, "failed to leave something behind");
        }
    }

    /// The shim's `argv[0]`: what is planted.
    pub(crate) fn shim_name() -> &'static CStr {
        &PLANT
    }

    /// Reads the switch before the environment is scrubbed.
    pub(crate) fn remember() {
        LazyLock::force(&PLANT);
    }
}

pub(crate) use build::{is, leak, remember, shim_name};
