//! An ordinary user of the machine, who has 65536 more ids (subuid(5)), and nothing else.
//!
//! In: a home. Out: an account that exists in this world only, and programs run as that user. Must not: change the
//! machine's own files.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{process, world};

/// The user, and the group of the same number.
pub const USER: u32 = 4321;
const NAME: &str = "molt-tests";
/// The first of the ids that were given to the user, and how many.
const MORE: (u32, u32) = (200_000, 65536);

/// Makes the user known to whoever asks in this world, `newuidmap` (Debian package uidmap) above all: the world's `/etc`
/// is the machine's, with an upper folder that goes with the world.
pub fn account(home: &Path) -> anyhow::Result<()> {
    let folder = Path::new(world::SHORT).join("etc");
    let (upper, work) = (folder.join("upper"), folder.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder)?;
    }
    let data = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    let mut mount = Command::new("mount");
    process::run(mount.args(["-t", "overlay", "overlay", "-o", &data, "/etc"]), Duration::from_secs(20))?;
    let more = format!("{NAME}:{}:{}\n", MORE.0, MORE.1);
    for (file, line) in [
        ("/etc/passwd", format!("{NAME}:x:{USER}:{USER}::{}:/bin/sh\n", home.display())),
        ("/etc/group", format!("{NAME}:x:{USER}:\n")),
        ("/etc/subuid", more.clone()),
        ("/etc/subgid", more),
    ] {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(file)?;
        file.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// `program`, run as the user, to be completed.
pub fn run(program: &str, home: &Path, state: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let (user, group) = (USER.to_string(), USER.to_string());
    command.args(["--reuid", &user, "--regid", &group, "--clear-groups", "--inh-caps=-all", "--", program]);
    command
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", state)
        .env("TMPDIR", state)
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .current_dir("/");
    command
}
