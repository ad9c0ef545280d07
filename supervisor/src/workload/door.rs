//! The workload's own socket of a run: made before the run is, served while it lasts, gone with it.
//!
//! In: the folder for sockets, a run. Out: a listener, and the node that is mounted into the generation. Must not: be made
//! where the spec does not ask for it, or serve another run.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags};
use tokio::{net::UnixListener, sync::watch};

use crate::{
    api::{self, Door},
    command::Handle,
};

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    node: Node,
}

/// Its name; removed when it is dropped.
#[derive(Debug)]
struct Node(PathBuf);

impl Socket {
    /// Makes the socket below `folder`, for everyone who can reach it: only its generation can.
    pub(crate) fn bind(folder: &Path, instance: u64) -> std::io::Result<(Self, OwnedFd)> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join(format!("workload-{instance}"));
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(&path)?;
        let node = Node(path);
        std::fs::set_permissions(&node.0, std::fs::Permissions::from_mode(0o666))?;
        let fd = rustix::fs::openat(CWD, &node.0, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        Ok((Self { listener, node }, fd))
    }

    /// Serves until the run is gone.
    pub(crate) async fn serve(self, handle: Handle, door: Door, mut gone: watch::Receiver<bool>) {
        let Self { listener, node } = self;
        tokio::select! {
            () = api::serve_own(handle, listener, door) => {}
            _ = gone.wait_for(|gone| *gone) => {}
        }
        drop(node);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
