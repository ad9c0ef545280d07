//! Podman with a store of its own, away from the machine's.
//!
//! In: a folder. Out: `podman` commands that use only that folder, host networking, no cgroups, and
//! limits that this machine can grant. The default seccomp profile and masks stay. Must not: read
//! the machine's own containers configuration, or pull from outside.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use super::{process, rootless, userns, world};

const STEP: Duration = Duration::from_mins(1);

/// A private podman.
#[derive(Debug, Clone)]
pub struct Podman {
    folder: PathBuf,
    /// Where it keeps what need not last.
    state: PathBuf,
    rootless: bool,
}

impl Podman {
    /// Writes its configuration into `folder`.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        Self::with(folder, &Path::new(world::SHORT).join("podman"), false)
    }

    /// One for an ordinary user, who is made for it in this world.
    pub fn rootless(folder: &Path) -> anyhow::Result<Self> {
        let podman = Self::with(folder, &Path::new(world::SHORT).join("rootless"), true)?;
        fs::create_dir_all(&podman.state)?;
        rootless::account(&podman.folder)?;
        for folder in [&podman.folder, &podman.state] {
            userns::give_to(folder, rootless::USER)?;
        }
        Ok(podman)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn with(folder: &Path, state: &Path, rootless: bool) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        // Podman's own defaults ask for more than a machine without CAP_SYS_RESOURCE can give.
        let limit = |resource, most: u64| getrlimit(resource).maximum.unwrap_or(most).min(most);
        let (files, processes) = (limit(Resource::Nofile, 65536), limit(Resource::Nproc, 10_000));
        let containers = format!(
            "[containers]\ncgroups = \"disabled\"\nnetns = \"host\"\nlog_driver = \"k8s-file\"\n\
             default_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"crun\"\n\
             lock_type = \"file\"\n"
        );
        fs::write(folder.join("containers.conf"), containers)?;
        let at = |name: &str| folder.join(name).display().to_string();
        // The clean-up after a container fails if `runroot` is longer than 50 characters, and who waits
        // for the container then waits 20 s.
        let (graph, run) = (at("graph"), state.join("run"));
        let storage =
            format!("[storage]\ndriver = \"overlay\"\ngraphroot = \"{graph}\"\nrunroot = \"{}\"\n", run.display());
        fs::write(folder.join("storage.conf"), storage)?;
        fs::write(folder.join("registries.conf"), "unqualified-search-registries = []\n")?;
        fs::write(folder.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        Ok(Self { folder: folder.to_owned(), state: state.to_owned(), rootless })
    }

    /// `podman VERB`, to be completed.
    pub fn command(&self, verb: &str) -> Command {
        let at = |name: &str| self.folder.join(name);
        let mut command =
            if self.rootless { rootless::run("podman", &self.folder, &self.state) } else { Command::new("podman") };
        command
            .env("CONTAINERS_CONF", at("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", at("storage.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", at("registries.conf"))
            .arg("--tmpdir")
            .arg(self.state.join("tmp"))
            .args(["--log-level", "error"])
            .arg(verb);
        command
    }

    /// Runs `podman VERB ARGS` and insists on success.
    pub fn run<S: AsRef<OsStr>>(&self, verb: &str, args: &[S]) -> anyhow::Result<process::Output> {
        process::run(self.command(verb).args(args), STEP)
    }

    /// Makes an image out of a folder.
    pub fn import(&self, root: &Path, name: &str) -> anyhow::Result<()> {
        let mut tar = process::Background::spawn(
            Command::new("tar").arg("-C").arg(root).args(["-c", "."]).stdout(Stdio::piped()),
        )?;
        let mut import = self.command("import");
        import.args(["--quiet", "-", name]).stdin(tar.0.stdout.take().expect("piped")).stdout(Stdio::null());
        let mut import = process::Background::spawn(&mut import)?;
        for (name, child) in [("tar", &mut tar.0), ("podman import", &mut import.0)] {
            let status = process::wait(child, STEP)?;
            anyhow::ensure!(status.success(), "{name} ended with {status}");
        }
        Ok(())
    }

    /// Copies an image out of an OCI layout folder, a registry, or whatever else `source` names.
    pub fn pull(&self, source: &str) -> anyhow::Result<String> {
        let policy = self.folder.join("policy.json");
        let mut command = self.command("pull");
        command.args(["--quiet", "--tls-verify=false", "--signature-policy"]).arg(policy).arg(source);
        Ok(process::run(&mut command, STEP)?.stdout.trim().to_owned())
    }
}
