//! Outer sandboxes: containers in which a given program is PID 1, as a runtime would start it.
//!
//! In: a root folder, a program, volumes, an environment. Out: [`Sandbox`], which can be asked,
//! signalled, killed and started again. All kinds have host networking, a writable overlay root that
//! outlives a restart, `/etc/resolv.conf`, `/etc/hosts`, `/etc/hostname` and `/run/secrets/token`
//! bound in. Must not: outlive the test; dropping it removes processes, mounts and container.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{self, CloneFlags};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::bed::Bed;
use super::podman::Podman;
use super::process::{self, Background, Output};
use super::{cases, wait};

const STEP: Duration = Duration::from_secs(30);
const TOOLS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What podman gives root by default, and `CAP_SYS_ADMIN`.
const CAPABILITIES: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
    "CAP_SYS_ADMIN",
];

/// Which runtime starts the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// New namespaces and `pivot_root`: all capabilities, no seccomp, nothing masked. The fastest.
    Light,
    /// A bundle run by crun: podman's capabilities and `CAP_SYS_ADMIN`, masked `/proc`, no seccomp.
    Crun,
    /// `podman run --cap-add SYS_ADMIN` with its default seccomp profile and masks.
    Podman,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Light, Self::Crun, Self::Podman];
}

/// A folder or file of the host, bound into the sandbox.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Where it appears.
    pub at: String,
    /// `rw` or `ro`.
    pub mode: &'static str,
}

/// What to run, and on what.
#[derive(Debug, Clone)]
pub struct Options {
    /// Root folder; the lower layer of an overlay, so that it stays as it is.
    pub root: PathBuf,
    /// PID 1 and its arguments.
    pub program: Vec<String>,
    /// Its whole environment, beside `PATH`.
    pub env: Vec<(String, String)>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// More arguments for `podman run`, before the image.
    pub podman: Vec<String>,
}

impl Options {
    /// Runs `program` on the bed's own root folder.
    pub fn new(bed: &Bed, program: &[&str]) -> anyhow::Result<Self> {
        let program = program.iter().map(|&word| word.to_owned()).collect();
        Ok(Self { root: bed.outer_root()?, program, env: Vec::new(), volumes: Vec::new(), podman: Vec::new() })
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.env.push((key.to_owned(), value.to_string()));
        self
    }

    /// Binds a folder or file, writable.
    #[must_use]
    pub fn volume(mut self, host: &Path, at: &str) -> Self {
        self.volumes.push(Volume { host: host.to_owned(), at: at.to_owned(), mode: "rw" });
        self
    }

    /// Binds a folder or file, read-only.
    #[must_use]
    pub fn read_only(mut self, host: &Path, at: &str) -> Self {
        self.volumes.push(Volume { host: host.to_owned(), at: at.to_owned(), mode: "ro" });
        self
    }
}

/// A sandbox; everything of it is gone when it is dropped.
#[derive(Debug)]
pub struct Sandbox {
    kind: Kind,
    name: String,
    options: Options,
    folder: PathBuf,
    podman: Option<Arc<Podman>>,
    /// The runtime's own process, which ends with the container (not with podman).
    running: Option<Background>,
}

impl Sandbox {
    /// Starts one. Returns as soon as PID 1 exists; what it has done by then is its own affair.
    pub fn start(bed: &Bed, kind: Kind, options: Options) -> anyhow::Result<Self> {
        let name = format!("sandbox-{}", bed.next());
        let folder = bed.scratch(&name)?;
        let mut sandbox = Self { kind, name, options, folder, podman: None, running: None };
        sandbox.furnish()?;
        if kind == Kind::Podman {
            let podman = bed.podman()?;
            let image = bed.podman_image(&sandbox.options.root)?;
            sandbox.podman = Some(Arc::clone(&podman));
            let arguments = sandbox.podman_arguments(&image);
            process::timed("podman run", || podman.run("run", &arguments))?;
        } else {
            sandbox.mount_root()?;
            process::timed(&format!("{kind:?} start"), || sandbox.launch())?;
        }
        Ok(sandbox)
    }

    fn furnish(&mut self) -> anyhow::Result<()> {
        let mut bound = vec![("token", "/run/secrets/token", "of no worth\n")];
        if self.kind != Kind::Podman {
            bound.push(("hosts", "/etc/hosts", "127.0.0.1 localhost\n"));
            bound.push(("hostname", "/etc/hostname", "outer\n"));
        }
        for (name, at, text) in bound {
            let host = self.folder.join(name);
            fs::write(&host, text)?;
            self.options.volumes.push(Volume { host, at: at.to_owned(), mode: "ro" });
        }
        if self.kind != Kind::Podman {
            let host = self.folder.join("resolv.conf");
            fs::copy("/etc/resolv.conf", &host)?;
            self.options.volumes.push(Volume { host, at: "/etc/resolv.conf".to_owned(), mode: "ro" });
        }
        Ok(())
    }

    fn podman_arguments(&self, image: &str) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["--detach", "--name", &self.name, "--cap-add", "SYS_ADMIN", "--pull", "never"].map(str::to_owned).into();
        for volume in &self.options.volumes {
            arguments
                .extend(["--volume".to_owned(), format!("{}:{}:{}", volume.host.display(), volume.at, volume.mode)]);
        }
        for (key, value) in &self.options.env {
            arguments.extend(["--env".to_owned(), format!("{key}={value}")]);
        }
        arguments.extend(self.options.podman.iter().cloned());
        arguments.push(image.to_owned());
        arguments.extend(self.options.program.iter().cloned());
        arguments
    }

    fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    fn mount_root(&self) -> anyhow::Result<()> {
        let (upper, work) = (self.folder.join("upper"), self.folder.join("work"));
        for folder in [&upper, &work, &self.rootfs()] {
            fs::create_dir_all(folder)?;
        }
        let lower = self.options.root.display();
        let data = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        let mut mount = Command::new("mount");
        process::run(mount.args(["-t", "overlay", "overlay", "-o", &data]).arg(self.rootfs()), STEP)?;
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn environment(&self) -> Vec<String> {
        let own = self.options.env.iter().map(|(key, value)| format!("{key}={value}"));
        [format!("PATH={TOOLS}")].into_iter().chain(own).collect()
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = if self.kind == Kind::Crun { self.crun_command()? } else { self.light_command() };
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if self.kind == Kind::Crun {
            self.running = Some(Background::spawn(&mut command)?);
            return wait::until_ok("PID 1", STEP, || self.pid1().map(drop));
        }
        // A thread has namespaces of its own to give to its children, and takes them along when it
        // ends. So PID 1 is a child of this program, and its exit status arrives undistorted.
        let spawn = move || -> anyhow::Result<Background> {
            let namespaces = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
            sched::unshare(namespaces | CloneFlags::CLONE_NEWNS)?;
            Background::spawn(&mut command)
        };
        self.running = Some(std::thread::spawn(spawn).join().expect("starting a program does not panic")?);
        Ok(())
    }

    fn crun(&self, verb: &str) -> Command {
        let state = self.folder.parent().unwrap_or(&self.folder).join("crun");
        let mut command = Command::new("crun");
        command.arg("--root").arg(state).args(["--cgroup-manager", "disabled"]).arg(verb);
        command
    }

    fn crun_command(&self) -> anyhow::Result<Command> {
        let config = serde_json::to_vec_pretty(&self.bundle())?;
        fs::write(self.folder.join("config.json"), config)?;
        // That of the last run would be taken for this one's.
        let pid = self.folder.join("pid");
        if pid.exists() {
            fs::remove_file(&pid)?;
        }
        let mut command = self.crun("run");
        command.arg("--bundle").arg(&self.folder).arg("--pid-file").arg(pid).arg(&self.name);
        Ok(command)
    }

    fn bundle(&self) -> Value {
        let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
        let mut mounts = vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ];
        mounts.extend(self.options.volumes.iter().map(|volume| {
            json!({"destination": volume.at, "type": "bind", "source": volume.host, "options": ["rbind", volume.mode]})
        }));
        json!({
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": self.options.program,
                "env": self.environment(),
                "cwd": "/",
                "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
                "noNewPrivileges": false,
            },
            "root": {"path": "rootfs", "readonly": false},
            "hostname": "outer",
            "mounts": mounts,
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi",
                    "/sys/firmware", "/sys/dev/block"],
                "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                    "/proc/sysrq-trigger"],
            },
        })
    }

    fn light_command(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", LIGHT, "light"]).arg(self.rootfs());
        for volume in &self.options.volumes {
            command.arg(&volume.host).args([&volume.at, volume.mode]);
        }
        command.args(["--", "/bin/busybox", "env", "-i"]).args(self.environment()).args(&self.options.program);
        command
    }

    /// The sandbox's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its PID 1, as this program sees it; an error if it does not run.
    pub fn pid1(&self) -> anyhow::Result<u32> {
        match (self.kind, &self.running) {
            (Kind::Podman, _) => {
                let format = "--format={{.State.Pid}}";
                let said = self.podman()?.run("inspect", &[format, &self.name])?.stdout;
                let pid = said.trim().parse()?;
                anyhow::ensure!(pid != 0, "{} does not run: {}", self.name, self.logs());
                Ok(pid)
            }
            (_, None) => bail!("{} does not run", self.name),
            (Kind::Crun, Some(_)) => Ok(fs::read_to_string(self.folder.join("pid"))?.trim().parse()?),
            (Kind::Light, Some(running)) => Ok(running.0.id()),
        }
    }

    fn podman(&self) -> anyhow::Result<&Podman> {
        self.podman.as_deref().context("not a podman sandbox")
    }

    /// Runs a command inside, beside PID 1, as root with what PID 1 may do.
    pub fn exec(&self, words: &[&str]) -> anyhow::Result<Output> {
        self.exec_within(words, STEP)
    }

    /// The same with another deadline.
    pub fn exec_within(&self, words: &[&str], limit: Duration) -> anyhow::Result<Output> {
        process::output(&mut self.exec_command(words)?, limit)
    }

    /// The command that would run `words` inside: to be started beside the test.
    pub fn exec_command(&self, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = match self.kind {
            Kind::Podman => {
                let mut command = self.podman()?.command("exec");
                command.arg(&self.name);
                command
            }
            Kind::Crun => {
                let mut command = self.crun("exec");
                command.arg(&self.name);
                command
            }
            Kind::Light => {
                let mut command = Command::new("nsenter");
                command.args(["--mount", "--pid", "--ipc", "--uts", "--root", "--wd", "--target"]);
                command
                    .arg(self.pid1()?.to_string())
                    .args(["--", "/bin/busybox", "env", "-i"])
                    .args(self.environment());
                command
            }
        };
        command.args(words);
        Ok(command)
    }

    /// Everything PID 1 wrote, over all starts.
    pub fn logs(&self) -> String {
        let result = match self.kind {
            Kind::Podman => self.podman().and_then(|podman| {
                let output = process::output(podman.command("logs").arg(&self.name), STEP)?;
                Ok(output.stdout + &output.stderr)
            }),
            Kind::Light | Kind::Crun => {
                fs::read(self.log()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(Into::into)
            }
        };
        result.unwrap_or_else(|error| format!("(no log: {error:#})"))
    }

    /// Sends a signal to PID 1.
    pub fn signal(&self, which: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid1()?)?;
        signal::kill(Pid::from_raw(pid), which).with_context(|| format!("{which} to PID 1 of {}", self.name))
    }

    /// SIGKILL to PID 1, as a kubelet out of patience does; waits until the container is gone.
    pub fn kill(&mut self) -> anyhow::Result<i32> {
        self.signal(Signal::SIGKILL)?;
        self.wait(STEP)
    }

    /// SIGTERM to PID 1, then waits; its exit code, or an error if it is still there.
    pub fn stop(&mut self, limit: Duration) -> anyhow::Result<i32> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits for PID 1 to end by itself; its exit code, or 128 + signal.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<i32> {
        if self.kind == Kind::Podman {
            let said = process::output(self.podman()?.command("wait").arg(&self.name), limit)?.ok()?.stdout;
            return Ok(said.trim().parse()?);
        }
        let running = self.running.as_mut().with_context(|| format!("{} does not run", self.name))?;
        let status = process::wait(&mut running.0, limit)?;
        self.running = None;
        Ok(process::code(status))
    }

    /// Starts an ended sandbox again: same root, same volumes, same program.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Podman => self.podman()?.run("start", &[&self.name]).map(drop),
            Kind::Light | Kind::Crun => self.launch(),
        }
    }

    /// The same, with other arguments; not for podman, which fixes them when it creates a container.
    pub fn restart_as(&mut self, program: &[&str]) -> anyhow::Result<()> {
        anyhow::ensure!(self.kind != Kind::Podman, "podman cannot change the program of a container");
        self.options.program = program.iter().map(|&word| word.to_owned()).collect();
        self.restart()
    }

    /// Processes inside, PID 1 included.
    pub fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid"));
        let own = namespace(self.pid1()?)?;
        let all = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(all.filter(|pid| namespace(*pid).is_ok_and(|link| link == own)).collect())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        cases::last_words(&self.name, &self.logs());
        // What cannot be removed here ends with the world; a test that passed must not fail on it.
        match self.kind {
            Kind::Podman => {
                if let Ok(podman) = self.podman() {
                    let _ = podman.run("rm", &["--force", "--time=0", &self.name]);
                }
            }
            Kind::Crun => {
                let _ = process::output(self.crun("delete").arg("--force").arg(&self.name), STEP);
            }
            Kind::Light => {}
        }
        self.running = None;
        if self.kind != Kind::Podman {
            let _ = rustix::mount::unmount(self.rootfs(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Run by `sh` in new namespaces: ROOT (HOST AT MODE)... -- PROGRAM.
const LIGHT: &str = r#"
set -e
root=$1; shift
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o nosuid,mode=755,size=64m dev "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev,mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p "$root$2"
    else
        mkdir -p "$(dirname "$root$2")"
        : >> "$root$2"
    fi
    mount --bind "$1" "$root$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
    shift 3
done
shift
cd "$root"
mkdir -p .outside
pivot_root . .outside
cd /
/bin/busybox umount -l /.outside
exec "$@"
"#;
