//! Programs of `PyPI` that only tests use: each version in a folder of its own below cargo's target folder.
//!
//! In: a package, a pinned version. Out: the program. Must not: touch the machine's own Python.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::bed::Bed;
use super::process;

const INSTALL: Duration = Duration::from_mins(5);

/// The program `name` of a package; installed at most once.
pub fn program(bed: &Bed, package: &str, version: &str, name: &str) -> anyhow::Result<PathBuf> {
    let folder = bed.cache().join(format!("{package}-{version}"));
    let whole = folder.join("whole");
    if !whole.exists() {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&folder), INSTALL)?;
        let mut pip = Command::new(folder.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", &format!("{package}=={version}")]);
        process::run(&mut pip, INSTALL)?;
        fs::write(whole, "")?;
    }
    Ok(folder.join("bin").join(name))
}
