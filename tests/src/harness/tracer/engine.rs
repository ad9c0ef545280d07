//! The loop: waits for stops, gives every new process its role, names calls, injects, counts, kills.
//!
//! In: PID 1 of a sandbox and, from another thread, what is wanted. Out: what was seen. Must not: stop a process it does
//! not need (the workload is let go before its first instruction; PID 1 runs freely while nothing is counted).
//!
//! ptrace(2) binds tracees to a thread, so all of this is one thread. Processes are seized, not attached: no SIGSTOP
//! that a program could see.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::calls::{Call, Change, makes};
use super::wire::{Blow, Counted, Fault, Made, Role, Seen, Step, Strike, Which};

const EVENT_FORK: i32 = nix::libc::PTRACE_EVENT_FORK;
const EVENT_VFORK: i32 = nix::libc::PTRACE_EVENT_VFORK;
const EVENT_CLONE: i32 = nix::libc::PTRACE_EVENT_CLONE;
const EVENT_EXEC: i32 = nix::libc::PTRACE_EVENT_EXEC;

/// What is wanted and what was seen; the tracer's thread and the one that takes orders share it.
#[derive(Debug, Default)]
pub struct Shared {
    /// The next shim is followed; with the fault, if any.
    pub watch: Option<Option<Fault>>,
    /// Of the shims that were followed.
    pub seen: Vec<Seen>,
    /// How many of them were reported and forgotten.
    pub forgotten: usize,
    /// Which calls are numbered, if any.
    pub counting: Option<Which>,
    /// What happens at one of them.
    pub strike: Option<Strike>,
    /// What was counted.
    pub counted: Counted,
}

#[derive(Debug)]
struct Task {
    role: Role,
    /// Number of the shim it belongs to, if that is followed.
    shim: Option<usize>,
    /// What the call it is in shall return.
    result: Option<i64>,
    /// To be let go at its next stop.
    leave: bool,
}

/// The tracer.
#[derive(Debug)]
pub struct Engine {
    first: Pid,
    tasks: HashMap<Pid, Task>,
    /// Stopped before their parent's event said whose they are.
    early: HashSet<Pid>,
    /// Calls so far of each shim that is followed, by role and name.
    occurrences: HashMap<(usize, Role, String), u32>,
    faults: HashMap<usize, Fault>,
    shared: Arc<Mutex<Shared>>,
    /// Every call of the supervisor is looked at.
    counts: bool,
    /// Nothing that stops goes on any more.
    halted: bool,
}

/// A process that was killed in the meantime is no error: its end is the next thing heard of it.
fn alive<T>(result: nix::Result<T>) -> nix::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ESRCH) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Engine {
    /// Seizes every thread of `first`. With `counts` its calls are looked at from now on.
    pub fn seize(first: Pid, counts: bool, shared: Arc<Mutex<Shared>>) -> anyhow::Result<Self> {
        let mut engine = Self {
            first,
            tasks: HashMap::new(),
            early: HashSet::new(),
            occurrences: HashMap::new(),
            faults: HashMap::new(),
            shared,
            counts,
            halted: false,
        };
        let role = if program(first).ends_with("/molt") { Role::Supervisor } else { Role::Outside };
        // A thread may be made while the others are seized.
        loop {
            let mut more = false;
            for entry in fs::read_dir(format!("/proc/{first}/task"))? {
                let number = entry?.file_name().to_string_lossy().parse().context("a thread's number")?;
                let pid = Pid::from_raw(number);
                if engine.tasks.contains_key(&pid) {
                    continue;
                }
                let options = Options::PTRACE_O_TRACESYSGOOD
                    | Options::PTRACE_O_TRACEFORK
                    | Options::PTRACE_O_TRACEVFORK
                    | Options::PTRACE_O_TRACECLONE
                    | Options::PTRACE_O_TRACEEXEC
                    | Options::PTRACE_O_EXITKILL;
                match ptrace::seize(pid, options) {
                    Ok(()) => {}
                    // It ended, or is traced already because a thread that was seized has made it.
                    Err(Errno::ESRCH | Errno::EPERM) => continue,
                    Err(errno) => return Err(errno).with_context(|| format!("seizing {pid}")),
                }
                if counts {
                    ptrace::interrupt(pid)?;
                }
                engine.tasks.insert(pid, Task::new(role, None));
                more = true;
            }
            if !more {
                return Ok(engine);
            }
        }
    }

    /// Runs until nothing is left to trace.
    pub fn run(mut self) -> anyhow::Result<()> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => continue,
                status => status.context("waiting for a stop")?,
            };
            match status {
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => {
                    self.tasks.remove(&pid);
                    self.early.remove(&pid);
                }
                WaitStatus::PtraceEvent(pid, _, event @ (EVENT_FORK | EVENT_VFORK | EVENT_CLONE)) => {
                    if let Some(child) = alive(ptrace::getevent(pid))? {
                        self.born(pid, Pid::from_raw(i32::try_from(child)?), event)?;
                    }
                    self.resume(pid, None)?;
                }
                WaitStatus::PtraceEvent(pid, _, EVENT_EXEC) => {
                    self.became(pid)?;
                    self.resume(pid, None)?;
                }
                // The first stop of a new process, or what an interrupt asked for.
                WaitStatus::PtraceEvent(pid, ..) if !self.tasks.contains_key(&pid) => {
                    self.early.insert(pid);
                }
                WaitStatus::PtraceEvent(pid, ..) => self.resume(pid, None)?,
                WaitStatus::PtraceSyscall(pid) => {
                    if self.at_call(pid)? {
                        self.resume(pid, None)?;
                    }
                }
                // What ends an abort. It does not end PID 1 while that is traced (force_sig_info_to_task in kernel/signal.c).
                WaitStatus::Stopped(pid, Signal::SIGSEGV | Signal::SIGILL | Signal::SIGBUS) if pid == self.first => {
                    self.kill(pid)?;
                }
                WaitStatus::Stopped(pid, signal) => self.resume(pid, Some(signal))?,
                WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
        }
    }

    fn born(&mut self, parent: Pid, child: Pid, event: i32) -> anyhow::Result<()> {
        let Some(of) = self.tasks.get(&parent) else { return Ok(()) };
        let role = match of.role {
            Role::Launcher => Role::Init,
            Role::Init => Role::Gate,
            role => role,
        };
        let mut task = Task::new(role, of.shim);
        // What is run beside a workload is not what is followed here.
        task.leave = of.leave || (event == EVENT_CLONE && role == Role::Gate);
        self.tasks.insert(child, task);
        if self.early.remove(&child) {
            self.resume(child, None)?;
        }
        Ok(())
    }

    /// After an exec, before the first instruction of the new program.
    fn became(&mut self, pid: Pid) -> anyhow::Result<()> {
        let Some(task) = self.tasks.get_mut(&pid) else { return Ok(()) };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match task.role {
            Role::Outside if program(pid).ends_with("/molt") => task.role = Role::Supervisor,
            Role::Outside => {}
            Role::Supervisor if program(pid).contains("molt-shim") => {
                task.role = Role::Launcher;
                if let Some(fault) = shared.watch.take() {
                    let number = shared.forgotten + shared.seen.len();
                    shared.seen.push(Seen::default());
                    task.shim = Some(number);
                    if let Some(fault) = fault {
                        self.faults.insert(number, fault);
                    }
                } else if !self.counts {
                    task.leave = true;
                }
            }
            // Whatever else PID 1 starts does its work.
            Role::Supervisor if self.counts => {}
            Role::Gate | Role::Init | Role::Launcher | Role::Supervisor => {
                task.leave = true;
                let Some(number) = task.shim else { return Ok(()) };
                let found = confinement(pid, self.first)
                    .with_context(|| format!("looking at the workload {pid} at its exec"))?;
                let at = number.checked_sub(shared.forgotten).context("a workload ran after all was reported")?;
                let seen = shared.seen.get_mut(at).context("a shim that was counted")?;
                anyhow::ensure!(seen.workload.is_none(), "two execs behind one gate");
                seen.workload = Some(found);
                for task in self.tasks.values_mut().filter(|task| task.shim == Some(number)) {
                    task.leave = true;
                }
            }
        }
        Ok(())
    }

    /// At the entry or the end of a call. Whether the process is to go on.
    fn at_call(&mut self, pid: Pid) -> anyhow::Result<bool> {
        let Some(task) = self.tasks.get_mut(&pid) else { return Ok(true) };
        // Asked, not counted: the first stop of a process that is looked at from its exec on is the end of that.
        let Some(info) = alive(ptrace::syscall_info(pid))? else { return Ok(true) };
        if info.op != nix::libc::PTRACE_SYSCALL_INFO_ENTRY {
            if let Some(result) = task.result.take()
                && let Some(mut registers) = alive(ptrace::getregs(pid))?
            {
                registers.rax = result.cast_unsigned();
                alive(ptrace::setregs(pid, registers))?;
            }
            return Ok(true);
        }
        if task.role == Role::Outside || task.leave {
            return Ok(true);
        }
        let Some(mut registers) = alive(ptrace::getregs(pid))? else { return Ok(true) };
        let call = Call {
            number: registers.orig_rax.cast_signed(),
            arguments: [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9],
        };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = task.shim
            && call.is_work()
        {
            let name = call.name();
            let key = (number, task.role, name.clone());
            let occurrence = self.occurrences.entry(key).and_modify(|count| *count += 1).or_insert(1);
            let step = Step { role: task.role, call: name, occurrence: *occurrence };
            let hit = self.faults.get(&number).is_some_and(|fault| {
                (fault.role, fault.occurrence) == (step.role, step.occurrence) && fault.call == step.call
            });
            let seen = number.checked_sub(shared.forgotten).and_then(|at| shared.seen.get_mut(at));
            if let Some(seen) = seen {
                seen.steps.push(step);
                seen.injected |= hit;
            }
            if hit && let Some(fault) = self.faults.remove(&number) {
                task.result = Some(-i64::from(fault.errno));
                // No call has this number, so nothing is done.
                registers.orig_rax = u64::MAX;
                alive(ptrace::setregs(pid, registers))?;
            }
        }
        if let Some(which) = shared.counting
            && let Some(file) = counted(pid, &call, which)?
        {
            let made = Made { call: format!("{} {}{}", task.role.name(), call.name(), kind(&file)), file };
            shared.counted.calls.push(made.clone());
            let number = shared.counted.calls.len() as u64;
            if let Some(strike) = shared.strike.take_if(|strike| strike.at == number) {
                shared.counted.struck = Some(made);
                match strike.blow {
                    Blow::Kill => {
                        shared.counting = None;
                        return self.kill(pid).map(|()| false);
                    }
                    Blow::Halt => {
                        shared.counting = None;
                        self.halted = true;
                        return Ok(false);
                    }
                    Blow::Fail(errno) => {
                        task.result = Some(-i64::from(errno));
                        registers.orig_rax = u64::MAX;
                        alive(ptrace::setregs(pid, registers))?;
                    }
                }
            }
        }
        Ok(true)
    }

    /// The stopped one first: killed at its entry, a call is not made.
    fn kill(&self, stopped: Pid) -> anyhow::Result<()> {
        for pid in [stopped, self.first].into_iter().chain(self.tasks.keys().copied()) {
            match signal::kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).context("killing the sandbox"),
            }
        }
        Ok(())
    }

    fn resume(&mut self, pid: Pid, signal: Option<Signal>) -> anyhow::Result<()> {
        if self.halted {
            return Ok(());
        }
        let Some(task) = self.tasks.get(&pid) else { return Ok(()) };
        // In the middle of a call that is being bent it cannot be let go.
        if task.leave && task.result.is_none() {
            self.tasks.remove(&pid);
            return alive(ptrace::detach(pid, signal)).map(drop).context("letting go of a process");
        }
        let every_call = match task.role {
            Role::Outside => false,
            Role::Supervisor => self.counts,
            Role::Launcher | Role::Init | Role::Gate => true,
        };
        let result = if every_call { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) };
        alive(result).map(drop).context("resuming a process")
    }
}

impl Task {
    const fn new(role: Role, shim: Option<usize>) -> Self {
        Self { role, shim, result: None, leave: false }
    }
}

/// What a process runs, or nothing.
fn program(pid: Pid) -> String {
    fs::read_link(format!("/proc/{pid}/exe")).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether the call is one that is numbered; the file that its first argument is, if it is one.
fn counted(pid: Pid, call: &Call, which: Which) -> anyhow::Result<Option<String>> {
    let link = |fd: u64| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        target.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let change = match which {
        Which::Changing => call.change(),
        Which::Failing => call.may_fail(),
    };
    match change {
        Change::Always if call.is_sync() => Ok(Some(link(call.arguments[0]))),
        Change::Always => Ok(Some(String::new())),
        // The log is nobody's state; sockets and wake-ups come and go with time.
        Change::Never | Change::Regular(0..=2) => Ok(None),
        Change::Regular(fd) => {
            let target = link(fd);
            Ok((target.starts_with('/') || target.starts_with("pipe:")).then_some(target))
        }
        Change::File(fd) => Ok(Some(link(fd)).filter(|target| target.starts_with('/'))),
        change @ (Change::How(address) | Change::CloneArguments(address)) => {
            // Both structures begin with 64 bits of flags.
            let flags = alive(ptrace::read(pid, std::ptr::with_exposed_provenance_mut(usize::try_from(address)?)))?;
            Ok(flags.is_some_and(|flags| makes(change, flags.cast_unsigned())).then(String::new))
        }
    }
}

/// What a file is, without its name, which may be another each time.
fn kind(file: &str) -> &'static str {
    match file {
        "" => "",
        file if file.starts_with("pipe:") => " of a pipe",
        _ => " of a file",
    }
}

/// What confines `pid`, as the kernel tells it to others. Nothing here is the process's own word.
fn confinement(pid: Pid, first: Pid) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    const STATUS: [&str; 14] = [
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "SigBlk",
        "SigIgn",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
    ];
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = std::collections::BTreeMap::new();
    for line in read("status")?.lines() {
        if let Some((key, value)) = line.split_once(':')
            && STATUS.contains(&key)
        {
            found.insert(key.to_owned(), words(value));
        }
    }
    for line in read("limits")?.lines().skip(1) {
        let (name, rest) = line.split_at_checked(26).unwrap_or((line, ""));
        found.insert(format!("limit {}", name.trim()), words(rest));
    }
    found.insert("oom_score_adj".to_owned(), words(&read("oom_score_adj")?));
    for space in ["mnt", "pid", "ipc", "uts"] {
        let of = |pid: Pid| fs::read_link(format!("/proc/{pid}/ns/{space}"));
        let own = if of(pid)? == of(first)? { "the supervisor's" } else { "its own" };
        found.insert(format!("namespace {space}"), own.to_owned());
    }
    let mut mounts: Vec<String> = Vec::new();
    for line in read("mountinfo")?.lines() {
        let (front, back) = line.split_once(" - ").context("mountinfo has a separator")?;
        let front: Vec<&str> = front.split(' ').collect();
        let kind = back.split(' ').next().unwrap_or_default();
        mounts.push(format!("{} {} {kind}", front.get(4).unwrap_or(&""), front.get(5).unwrap_or(&"")));
    }
    mounts.sort();
    found.insert("mounts".to_owned(), mounts.join("\n"));
    let mut open: Vec<String> = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
        let kind = target.split(':').next().unwrap_or_default().to_owned();
        open.push(format!("{} {kind}", entry.file_name().to_string_lossy()));
    }
    open.sort();
    found.insert("descriptors".to_owned(), open.join(", "));
    let stat = read("stat")?;
    let session = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(3)).context("a session")?;
    found.insert("session".to_owned(), if session == pid.to_string() { "its own" } else { "another's" }.to_owned());
    let folder = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
    found.insert("working folder".to_owned(), folder("cwd")?.to_string_lossy().into_owned());
    Ok(found)
}
