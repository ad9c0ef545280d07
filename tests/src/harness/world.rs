//! A private world for the tests: own mount and PID namespaces, so that nothing can be left behind.
//!
//! In: this program, started by root. Out: the same program twice more in the new namespaces: as
//! PID 1, which only reaps, and as its child, which runs the tests. When either ends, or the first
//! is killed, every process and every mount of the bed is gone. Without a PID 1 that reaps, podman
//! takes the zombie of a container's monitor for a living one, and waits for it. On
//! hybrid cgroups `/sys/fs/cgroup` becomes the v2 tree there, because crun accepts nothing else.
//! Must not: change anything outside.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use nix::sys::wait::{self, WaitStatus};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, mount_move, unmount,
};

/// A tmpfs of this world: for what must have a short path and need not last.
pub const SHORT: &str = "/mnt";

const INSIDE: &str = "MOLT_TESTS_WORLD";

/// Where the program stands after [`enter`].
#[derive(Debug)]
pub enum World {
    /// In the private world: go on.
    Inside,
    /// Outside; the program has run in a private world, and this is how it ended.
    Outside(ExitCode),
}

/// Runs this program again in its own world, unless it is there already.
pub fn enter() -> anyhow::Result<World> {
    match env::var(INSIDE).as_deref() {
        Ok("init") => {
            furnish()?;
            return reap().map(World::Outside);
        }
        Ok(_) => return Ok(World::Inside),
        Err(_) => {}
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the suites need root: they mount, make namespaces and run containers; try sudo");
    }
    let program = env::current_exe()?;
    // `unshare` ignores the signals of a terminal; with this parent it dies, and with it the world.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "SIGKILL", "--", "unshare", "--mount", "--propagation", "private"]);
    command.args(["--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--"]);
    let status = command.arg(program).args(env::args_os().skip(1)).env(INSIDE, "init").status();
    let status = status.context("starting setpriv and unshare (Debian package util-linux)")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(World::Outside(ExitCode::from(u8::try_from(code).unwrap_or(1))))
}

/// Runs the tests as a child and collects whoever dies, until that child does.
fn reap() -> anyhow::Result<ExitCode> {
    let program = env::current_exe()?;
    let tests = Command::new(program).args(env::args_os().skip(1)).env(INSIDE, "tests").spawn()?;
    loop {
        let status = wait::wait()?;
        if status.pid().is_some_and(|pid| u32::try_from(pid.as_raw()) == Ok(tests.id())) {
            let code = match status {
                WaitStatus::Exited(_, code) => u8::try_from(code).unwrap_or(1),
                _ => 1,
            };
            return Ok(ExitCode::from(code));
        }
    }
}

fn furnish() -> anyhow::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let (hybrid, whole) = (Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup"));
    if hybrid.join("cgroup.procs").exists() {
        // By way of a third place: the tmpfs that holds `unified` has to go first.
        let aside = Path::new(SHORT);
        mount_bind_recursive(hybrid, aside)?;
        unmount(whole, UnmountFlags::DETACH)?;
        mount_move(aside, whole)?;
    }
    mount("tmpfs", SHORT, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
    Ok(())
}
