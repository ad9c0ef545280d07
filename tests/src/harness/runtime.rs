//! Outer sandboxes: containers in which a given program is PID 1, as a runtime would start it.
//!
//! In: a root folder, a program, volumes, an environment. Out: [`Sandbox`], which can be asked,
//! signalled, killed and started again. All kinds have host networking, a writable overlay root that
//! outlives a restart, `/etc/resolv.conf`, `/etc/hosts`, `/etc/hostname` and `/run/secrets/token`
//! bound in. In the kinds with `User` in their name PID 1 is root of a user namespace of 65536 ids, as
//! in a pod with `hostUsers: false`. Must not: outlive the test; dropping it removes processes, mounts
//! and container.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sched::{self, CloneFlags};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::bed::Bed;
use super::kind::Runtime;
use super::podman::Podman;
use super::process::{self, Background, Output};
use super::userns::{self, UserNamespace};
use super::{cases, wait};

pub use super::kind::{Kind, Options, Volume};

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

/// A sandbox; everything of it is gone when it is dropped.
#[derive(Debug)]
pub struct Sandbox {
    kind: Kind,
    name: String,
    options: Options,
    folder: PathBuf,
    podman: Option<Arc<Podman>>,
    users: Option<UserNamespace>,
    /// The runtime's own process, which ends with the container (not with podman).
    running: Option<Background>,
}

impl Sandbox {
    /// Starts one. Returns as soon as PID 1 exists; what it has done by then is its own affair.
    pub fn start(bed: &Bed, kind: Kind, options: Options) -> anyhow::Result<Self> {
        let name = format!("sandbox-{}", bed.next());
        let folder = bed.scratch(&name)?;
        let mut sandbox = Self { kind, name, options, folder, podman: None, users: None, running: None };
        sandbox.furnish()?;
        if kind.runtime() == Runtime::Podman {
            sandbox.give_volumes()?;
            let rootless = kind == Kind::PodmanRootless;
            let podman = if rootless { bed.rootless_podman()? } else { bed.podman()? };
            let image = bed.podman_image(&podman, &sandbox.options.root)?;
            sandbox.podman = Some(Arc::clone(&podman));
            let arguments = sandbox.podman_arguments(&image);
            process::timed("podman run", || podman.run("run", &arguments))?;
        } else {
            if kind.in_user_namespace() {
                sandbox.options.root = bed.given_root(&sandbox.options.root)?;
            }
            sandbox.mount_root()?;
            process::timed(&format!("{kind:?} start"), || sandbox.launch())?;
        }
        Ok(sandbox)
    }

    fn furnish(&mut self) -> anyhow::Result<()> {
        let hosts = format!("127.0.0.1 localhost\n{}", self.options.hosts);
        let mut bound = vec![("token", "/run/secrets/token", "of no worth\n")];
        if self.kind.runtime() != Runtime::Podman {
            bound.push(("hosts", "/etc/hosts", hosts.as_str()));
            bound.push(("hostname", "/etc/hostname", "outer\n"));
        }
        for (name, at, text) in bound {
            let host = self.folder.join(name);
            fs::write(&host, text)?;
            self.options.volumes.push(Volume { host, at: at.to_owned(), mode: "ro" });
        }
        if self.kind.runtime() != Runtime::Podman {
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
        if self.kind == Kind::PodmanUser {
            arguments.extend(["--uidmap".to_owned(), userns::MAP.replace(' ', ":")]);
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
        if self.kind.in_user_namespace() {
            userns::give(&upper)?;
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

    /// Makes the volumes of a user namespace its root's, as far as they are the machine's root's and in this bed.
    fn give_volumes(&self) -> anyhow::Result<()> {
        let bed = self.folder.parent().unwrap_or(&self.folder);
        let ours = self.options.volumes.iter().filter(|volume| volume.host.starts_with(bed));
        // An idmapped mount shows what belongs to the machine's root as the sandbox's root's.
        let given = ours.filter(|_| self.kind.in_user_namespace() && self.kind != Kind::CrunUser);
        given.map(|volume| &volume.host).try_for_each(|host| userns::give_to(host, self.kind.root()))
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let log = self.options.streams.as_ref().map_or(Ok(log), |given| given.try_clone().map(fs::File::from))?;
        self.give_volumes()?;
        let mut command = match self.kind {
            Kind::Crun | Kind::CrunUser => self.crun_command()?,
            Kind::LightUser | Kind::LightUserMasked | Kind::LightUserSingle => self.light_user_command()?,
            Kind::Light | Kind::Podman | Kind::PodmanUser | Kind::PodmanRootless => self.light_command(),
        };
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if self.kind != Kind::Light {
            self.running = Some(Background::spawn(&mut command)?);
            wait::until_ok("PID 1", STEP, || self.pid1().map(drop))?;
            return if self.kind == Kind::LightUserMasked { self.map_last() } else { Ok(()) };
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
        let user = self.kind == Kind::CrunUser;
        let map = userns::mappings();
        mounts.extend(self.options.volumes.iter().map(|volume| {
            let mut mount = mount(&volume.at, "bind", &["rbind", volume.mode]);
            mount["source"] = json!(volume.host);
            if user {
                mount["uidMappings"] = map.clone();
                mount["gidMappings"] = map.clone();
            }
            mount
        }));
        let masked = [
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/proc/scsi",
            "/sys/firmware",
            "/sys/dev/block",
        ];
        let read_only = ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
        let mut namespaces =
            vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "uts"}), json!({"type": "mount"})];
        let mut linux = json!({"maskedPaths": masked, "readonlyPaths": read_only});
        if user {
            namespaces.push(json!({"type": "user"}));
            linux["uidMappings"] = map.clone();
            linux["gidMappings"] = map;
        }
        linux["namespaces"] = json!(namespaces);
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
            "linux": linux,
        })
    }

    fn light_command(&self) -> Command {
        // Its shell runs its own `mount` and `mkdir` without an exec: a sandbox starts in a fraction of the time.
        let mut command = Command::new("busybox");
        self.light_arguments(command.arg("sh"));
        command
    }

    /// A shell stays as the parent of PID 1 and passes its end on; `unshare --fork` cannot tell of a SIGKILL.
    fn light_user_command(&mut self) -> anyhow::Result<Command> {
        let ids = if self.kind == Kind::LightUserSingle { userns::SINGLE } else { userns::MAP };
        let users = UserNamespace::new(ids)?;
        let mut command = users.enter();
        command.args(["unshare", "--mount", "--propagation", "slave", "--pid", "--ipc", "--uts", "--"]);
        command.args(["sh", "-c", "\"$@\"; exit $?", "parent", "setpriv", "--pdeathsig", "SIGKILL", "sh"]);
        let masked = if self.kind == Kind::LightUserMasked { "yes" } else { "" };
        self.light_arguments(command.env("USER_NAMESPACE", "yes").env("MASKED", masked));
        self.users = Some(users);
        Ok(command)
    }

    /// Maps the ids of the user namespace that PID 1 makes last.
    fn map_last(&self) -> anyhow::Result<()> {
        let users = self.users.as_ref().context("no user namespace")?;
        wait::until_ok("the last user namespace", STEP, || {
            let pid = self.pid1()?;
            ensure!(fs::read_link(format!("/proc/{pid}/ns/user"))? != users.link()?, "not made: {}", self.logs());
            users.map_below(pid)
        })
    }

    fn light_arguments(&self, command: &mut Command) {
        command.args(["-c", LIGHT, "light"]).arg(self.rootfs());
        for volume in &self.options.volumes {
            command.arg(&volume.host).args([&volume.at, volume.mode]);
        }
        command.args(["--", "/bin/busybox", "env", "-i"]).args(self.environment()).args(&self.options.program);
    }

    /// The sandbox's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its PID 1, as this program sees it; an error if it does not run.
    pub fn pid1(&self) -> anyhow::Result<u32> {
        match (self.kind, &self.running) {
            (Kind::Podman | Kind::PodmanUser | Kind::PodmanRootless, _) => {
                let format = "--format={{.State.Pid}}";
                let said = self.podman()?.run("inspect", &[format, &self.name])?.stdout;
                let pid = said.trim().parse()?;
                ensure!(pid != 0, "{} does not run: {}", self.name, self.logs());
                Ok(pid)
            }
            (_, None) => bail!("{} does not run", self.name),
            (Kind::Crun | Kind::CrunUser, Some(_)) => {
                Ok(fs::read_to_string(self.folder.join("pid"))?.trim().parse()?)
            }
            (Kind::Light, Some(running)) => Ok(running.0.id()),
            (Kind::LightUser | Kind::LightUserMasked | Kind::LightUserSingle, Some(running)) => {
                let parent = running.0.id();
                let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
                children.trim().parse().with_context(|| format!("{} has no PID 1: {}", self.name, self.logs()))
            }
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
        let mut command = match self.kind.runtime() {
            Runtime::Podman => {
                let mut command = self.podman()?.command("exec");
                command.arg(&self.name);
                command
            }
            Runtime::Crun => {
                let mut command = self.crun("exec");
                command.arg(&self.name);
                command
            }
            Runtime::Light => {
                let mut command = Command::new("nsenter");
                if self.kind != Kind::Light {
                    command.args(["--user", "--setuid=0", "--setgid=0"]);
                }
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
        let result = match self.kind.runtime() {
            Runtime::Podman => self.podman().and_then(|podman| {
                let output = process::output(podman.command("logs").arg(&self.name), STEP)?;
                Ok(output.stdout + &output.stderr)
            }),
            Runtime::Light | Runtime::Crun => {
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
        if self.kind.runtime() == Runtime::Podman {
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
        match self.kind.runtime() {
            Runtime::Podman => self.podman()?.run("start", &[&self.name]).map(drop),
            Runtime::Light | Runtime::Crun => self.launch(),
        }
    }

    /// The same, with other arguments; not for podman, which fixes them when it creates a container.
    pub fn restart_as(&mut self, program: &[&str]) -> anyhow::Result<()> {
        ensure!(self.kind.runtime() != Runtime::Podman, "podman cannot change the program of a container");
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
        match self.kind.runtime() {
            Runtime::Podman => {
                if let Ok(podman) = self.podman() {
                    let _ = podman.run("rm", &["--force", "--time=0", &self.name]);
                }
            }
            Runtime::Crun => {
                let _ = process::output(self.crun("delete").arg("--force").arg(&self.name), STEP);
            }
            // Its parent is told to end with the test; a change of ids may have cleared that for PID 1.
            Runtime::Light => drop(self.signal(Signal::SIGKILL)),
        }
        self.running = None;
        if self.kind.runtime() != Runtime::Podman {
            let _ = rustix::mount::unmount(self.rootfs(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Run by `sh` in new namespaces: ROOT (HOST AT MODE)... -- PROGRAM. In a user namespace `sysfs` is the machine's, as the
/// network is; what is not the namespace's own mount can be bound, and is pivoted away from as a whole.
const LIGHT: &str = include_str!("light.sh");
