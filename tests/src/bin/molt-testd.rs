//! A stateful daemon to update: what a user's program looks like from outside, and nothing else.
//!
//! In: `TESTD_PORT` (8080), `TESTD_STATE` (`/sandbox/state`), `TESTD_BEHAVIOUR` (comma list, see
//! [`Behaviour`]), `TESTD_CONFESS` (say first what it may do), the version from `/app/VERSION` or
//! `TESTD_VERSION`. Out: HTTP on 127.0.0.1, and in the state folder `confessions`, `starts`, `clicks`, `signals`, `clean-stop`, `overlap`, `stray`. It is static
//! and needs no other file of the image. Must not: cache anything a suite wants to observe.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio, exit};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

/// What `TESTD_BEHAVIOUR` can ask for. Words without a value: `deaf` (never listens), `unhealthy`,
/// `ignore-term`, `double-fork`, `flood`, `notify`, `watchdog` (as often as `WATCHDOG_USEC` wants it, until
/// there is a file `quiet` in its state). With one: `exit=CODE`, `after=MS` (when to exit, or
/// to fall ill with `unhealthy`), `ready=MS` (listen and notify only then), `extend=MS` (ask for more
/// time by notify), `slow-stop=MS`.
struct Behaviour(BTreeMap<String, u64>);

impl Behaviour {
    fn from_env() -> Self {
        let text = env::var("TESTD_BEHAVIOUR").unwrap_or_default();
        let words = text.split(',').filter(|word| !word.is_empty());
        Self(
            words
                .map(|word| match word.split_once('=') {
                    Some((key, value)) => (key.to_owned(), value.parse().unwrap_or(0)),
                    None => (word.to_owned(), 0),
                })
                .collect(),
        )
    }

    fn has(&self, word: &str) -> bool {
        self.0.contains_key(word)
    }

    fn millis(&self, word: &str) -> Duration {
        Duration::from_millis(self.0.get(word).copied().unwrap_or(0))
    }
}

struct Daemon {
    version: String,
    state: PathBuf,
    starts: u64,
    clicks: Mutex<u64>,
    born: Instant,
    behaviour: Behaviour,
}

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some("--stray") {
        stray(&state_folder());
    }
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("testd: {error}");
            ExitCode::from(70)
        }
    }
}

fn run() -> io::Result<std::convert::Infallible> {
    let watched = watched_signals();
    watched.thread_block()?;
    if env::var_os("TESTD_CONFESS").is_some() {
        append(&state_folder(), "confessions", &(confession() + "\n"))?;
    }
    let behaviour = Behaviour::from_env();
    if behaviour.has("exit") && behaviour.millis("after").is_zero() {
        println!("testd: leaving at once");
        exit(code(&behaviour));
    }
    if behaviour.has("hand-over") && env::var_os("TESTD_HEIR").is_none() {
        let heir = Command::new(env::current_exe()?).env("TESTD_HEIR", "1").spawn()?;
        // At once: whoever hears of one thing before the other must not matter.
        notify(&format!("MAINPID={}", heir.id()));
        exit(0);
    }
    let state = state_folder();
    let starts = add_one(&state, "starts")?;
    let lock = OpenOptions::new().create(true).append(true).open(state.join("lock"))?;
    if lock.try_lock().is_err() {
        append(&state, "overlap", "another one holds the state\n")?;
    }
    let daemon = Arc::new(Daemon {
        version: version(),
        clicks: Mutex::new(read_number(&state, "clicks")),
        state,
        starts,
        born: Instant::now(),
        behaviour,
    });
    println!("testd: version {} start {starts}", daemon.version);
    let of_signals = Arc::clone(&daemon);
    thread::spawn(move || handle_signals(&of_signals, watched));
    if daemon.behaviour.has("double-fork") {
        // A child of a parent that is gone, in a session of its own, is what escapes a naive kill.
        let sh = Command::new(env::current_exe()?).arg("--stray").stdin(Stdio::null()).spawn()?;
        drop(sh);
    }
    if daemon.behaviour.has("flood") {
        thread::spawn(flood);
    }
    if daemon.behaviour.has("exit") {
        let of_exit = Arc::clone(&daemon);
        thread::spawn(move || {
            thread::sleep(of_exit.behaviour.millis("after"));
            println!("testd: leaving as told");
            exit(code(&of_exit.behaviour));
        });
    }
    if daemon.behaviour.has("deaf") {
        loop {
            thread::park();
        }
    }
    if daemon.behaviour.has("extend") {
        let micros = daemon.behaviour.millis("extend").as_micros();
        notify(&format!("EXTEND_TIMEOUT_USEC={micros}\nSTATUS=thinking"));
    }
    thread::sleep(daemon.behaviour.millis("ready"));
    let port = env::var("TESTD_PORT").ok().and_then(|text| text.parse().ok()).unwrap_or(8080);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    if daemon.behaviour.has("notify") {
        notify("READY=1\nSTATUS=serving");
    }
    if daemon.behaviour.has("watchdog") {
        let quiet = daemon.state.join("quiet");
        thread::spawn(move || bark(&quiet));
    }
    loop {
        let (stream, _) = listener.accept()?;
        // Where something else of its user's has all threads it answers all the same, one after the other.
        let (of_stream, spare) = (Arc::clone(&daemon), stream.try_clone());
        if thread::Builder::new().spawn(move || serve(&of_stream, stream)).is_err()
            && let Ok(spare) = spare
        {
            serve(&daemon, spare);
        }
    }
}

fn state_folder() -> PathBuf {
    env::var_os("TESTD_STATE").map_or_else(|| PathBuf::from("/sandbox/state"), PathBuf::from)
}

fn version() -> String {
    let file = fs::read_to_string("/app/VERSION").map(|text| text.trim().to_owned());
    env::var("TESTD_VERSION").or(file).unwrap_or_else(|_| "unknown".to_owned())
}

fn code(behaviour: &Behaviour) -> i32 {
    behaviour.0.get("exit").and_then(|code| i32::try_from(*code).ok()).unwrap_or(1)
}

fn watched_signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ] {
        set.add(signal);
    }
    set
}

fn handle_signals(daemon: &Daemon, watched: SigSet) {
    while let Ok(signal) = watched.wait() {
        let _ = append(&daemon.state, "signals", &format!("{signal}\n"));
        println!("testd: {signal}");
        if signal == Signal::SIGTERM && !daemon.behaviour.has("ignore-term") {
            thread::sleep(daemon.behaviour.millis("slow-stop"));
            let _ = write_durable(&daemon.state, "clean-stop", &format!("{} {}\n", daemon.version, daemon.starts));
            exit(0);
        }
    }
}

/// The child that outlives its parent: it shows by a moving file that it is still alive.
fn stray(state: &Path) -> ! {
    let _ = nix::unistd::setsid();
    for beat in 0_u64.. {
        let _ = fs::write(state.join("stray"), beat.to_string());
        thread::sleep(Duration::from_millis(20));
    }
    exit(0)
}

fn flood() {
    let line = [b'x'; 1023];
    let mut out = io::stdout().lock();
    while out.write_all(&line).and_then(|()| out.write_all(b"\n")).is_ok() {}
}

fn notify(text: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        eprintln!("testd: no NOTIFY_SOCKET");
        return;
    };
    if let Err(error) = UnixDatagram::unbound().and_then(|socket| socket.send_to(text.as_bytes(), path)) {
        eprintln!("testd: notify: {error}");
    }
}

/// Twice in the time that it is given, as `sd_watchdog_enabled(3)` advises.
fn bark(quiet: &Path) {
    let micros = env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse::<u64>().ok());
    let Some(micros) = micros else {
        eprintln!("testd: no WATCHDOG_USEC");
        return;
    };
    loop {
        if !quiet.exists() {
            notify("WATCHDOG=1");
        }
        thread::sleep(Duration::from_micros(micros / 2));
    }
}

fn read_number(state: &Path, name: &str) -> u64 {
    fs::read_to_string(state.join(name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn add_one(state: &Path, name: &str) -> io::Result<u64> {
    let next = read_number(state, name) + 1;
    write_durable(state, name, &format!("{next}\n"))?;
    Ok(next)
}

fn write_durable(state: &Path, name: &str, text: &str) -> io::Result<()> {
    let fresh = state.join(format!(".{name}.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(fresh, state.join(name))?;
    File::open(state)?.sync_all()
}

fn append(state: &Path, name: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(state.join(name))?.write_all(text.as_bytes())
}

fn serve(daemon: &Daemon, mut stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let Some(target) = request_target(&stream) else { return };
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = parameters(query);
    let (status, body) = answer(daemon, path, &query);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
}

fn request_target(stream: &TcpStream) -> Option<String> {
    let mut lines = BufReader::new(stream.take(16 * 1024)).lines();
    let first = lines.next()?.ok()?;
    while lines.next()?.ok()?.trim() != "" {}
    first.split(' ').nth(1).map(str::to_owned)
}

fn answer(daemon: &Daemon, path: &str, query: &BTreeMap<String, String>) -> (&'static str, String) {
    match path {
        "/" => {
            let clicks = *daemon.clicks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (version, starts, pid) = (&daemon.version, daemon.starts, std::process::id());
            (OK, format!("{{\"version\":\"{version}\",\"starts\":{starts},\"clicks\":{clicks},\"pid\":{pid}}}"))
        }
        "/healthz" => {
            let ill = daemon.behaviour.has("unhealthy") && daemon.born.elapsed() >= daemon.behaviour.millis("after");
            if ill { (UNAVAILABLE, "\"ill\"".to_owned()) } else { (OK, "\"well\"".to_owned()) }
        }
        "/incr" => {
            let mut clicks = daemon.clicks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match write_durable(&daemon.state, "clicks", &format!("{}\n", *clicks + 1)) {
                Ok(()) => {
                    *clicks += 1;
                    (OK, clicks.to_string())
                }
                Err(error) => (UNAVAILABLE, quoted(&error.to_string())),
            }
        }
        "/env" => (OK, object(env::vars())),
        "/whoami" => (OK, object(status_lines())),
        "/mounts" => (OK, quoted(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())),
        "/read" => match fs::read(query.get("path").map_or("", String::as_str)) {
            Ok(bytes) => (OK, quoted(&String::from_utf8_lossy(&bytes))),
            Err(error) => (OK, format!("{{\"errno\":{}}}", error.raw_os_error().unwrap_or(-1))),
        },
        "/redteam" => match Command::new("/app/molt-redteam").stdin(Stdio::null()).output() {
            Ok(output) => (OK, quoted(&String::from_utf8_lossy(&output.stdout))),
            Err(error) => (UNAVAILABLE, quoted(&error.to_string())),
        },
        "/own" => match own(query) {
            Ok(answer) => (OK, quoted(&answer)),
            Err(error) => (OK, format!("{{\"errno\":{}}}", error.raw_os_error().unwrap_or(-1))),
        },
        "/own-idle" => (OK, idle(query).to_string()),
        "/says" => {
            let lines = query.get("lines").and_then(|lines| lines.parse().ok()).unwrap_or(0_u32);
            (0..lines)
                .for_each(|number| println!("testd: line {number:>10} of many that say nothing but their number"));
            (OK, lines.to_string())
        }
        "/try" => (OK, format!("{{\"errno\":{}}}", attempt(query))),
        _ => ("404 Not Found", "null".to_owned()),
    }
}

const OK: &str = "200 OK";
const UNAVAILABLE: &str = "503 Service Unavailable";

/// The workload's own socket.
const OWN: &str = "/run/molt/workload.sock";

/// Bytes in hexadecimal.
fn bytes(text: &str) -> Vec<u8> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..text.len()).step_by(2).filter_map(digit).collect()
}

/// `/own?method=M&path=P[&body=HEX]`: what the workload's own socket answers, head and all. `raw=HEX` sends those bytes.
fn own(query: &BTreeMap<String, String>) -> io::Result<String> {
    let asked = |word: &str| query.get(word).map_or("", String::as_str);
    let mut stream = UnixStream::connect(OWN)?;
    stream.set_read_timeout(Some(Duration::from_secs(40)))?;
    let (method, path, body) = (asked("method"), asked("path"), bytes(asked("body")));
    let head = format!("{method} {path} HTTP/1.1\r\nHost: molt\r\nContent-Type: application/json\r\n");
    let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
    let request = query.get("raw").map_or_else(|| [head.as_bytes(), &body].concat(), |raw| bytes(raw));
    // It may hang up before all of it is there.
    let _ = stream.write_all(&request);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// `/own-idle?count=N`: connections to the own socket that say nothing, kept for ever; how many there are.
fn idle(query: &BTreeMap<String, String>) -> usize {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let count = query.get("count").and_then(|count| count.parse().ok()).unwrap_or(0);
    let mut kept = Vec::new();
    let Ok(address) = SocketAddrUnix::new(OWN) else { return 0 };
    for _ in 0..count {
        let made = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None);
        let Ok(fd) = made else { break };
        // A full queue is told at once.
        if connect(&fd, &address).is_err() {
            break;
        }
        kept.push(fd);
    }
    let there = kept.len();
    std::mem::forget(kept);
    there
}

/// `/try?open=PATH[&write=1][&create=1]`, `?list=PATH`, `?exec=PATH`, `?connect=HOST:PORT`
/// `?signal=PID` or `?trace=PID`: the errno, 0 if allowed.
fn attempt(query: &BTreeMap<String, String>) -> i32 {
    let asked = |word: &str| query.contains_key(word);
    let result = if let Some(path) = query.get("open") {
        OpenOptions::new().read(true).write(asked("write")).create(asked("create")).open(path).map(drop)
    } else if let Some(path) = query.get("list") {
        fs::read_dir(path).map(drop)
    } else if let Some(path) = query.get("exec") {
        Command::new(path).stdout(Stdio::null()).status().map(drop)
    } else if let Some(address) = query.get("connect") {
        TcpStream::connect(address).map(drop)
    } else if let Some(pid) = query.get("signal").and_then(|pid| pid.parse().ok()) {
        // No signal, only whether one might be sent.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).map_err(Into::into)
    } else if let Some(pid) = query.get("trace").and_then(|pid| pid.parse().ok()) {
        // Ends with this thread, and stops nobody.
        let options = nix::sys::ptrace::Options::empty();
        nix::sys::ptrace::seize(nix::unistd::Pid::from_raw(pid), options).map_err(Into::into)
    } else {
        Err(io::Error::from_raw_os_error(nix::errno::Errno::EINVAL as i32))
    };
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0)
}

fn status_lines() -> Vec<(String, String)> {
    const WANTED: [&str; 10] =
        ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    let wanted = pairs.filter(|(key, _)| WANTED.contains(key));
    wanted.map(|(key, value)| (key.to_owned(), value.trim().replace('\t', " "))).collect()
}

/// What this process finds it may do, one JSON object: the errno of each attempt, 0 where it was allowed.
fn confession() -> String {
    let errno = |result: io::Result<()>| result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
    let open = |path: &str, write: bool| errno(OpenOptions::new().read(!write).write(write).open(path).map(drop));
    // 262 is IPPROTO_MPTCP.
    let protocol = std::num::NonZero::new(262).map(rustix::net::Protocol::from_raw);
    let mptcp = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, protocol);
    let bits = rustix::thread::capabilities_secure_bits().map(|bits| bits.bits());
    let mut all = vec![
        // Two that only Landlock forbids, two that only seccomp does, one that the mounts do.
        ("list /vault".to_owned(), errno(fs::read_dir("/vault").map(drop)).to_string()),
        ("write /app/loose".to_owned(), open("/app/loose", true).to_string()),
        ("mptcp".to_owned(), errno(mptcp.map(drop).map_err(Into::into)).to_string()),
        ("sysctl".to_owned(), open("/proc/sys/kernel/domainname", true).to_string()),
        ("secure bits".to_owned(), format!("{bits:?}")),
        ("version".to_owned(), version()),
    ];
    all.extend(status_lines());
    // Last, as it would change what the others find.
    let user = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
    all.push(("user namespace".to_owned(), errno(user.map_err(Into::into)).to_string()));
    object(all)
}

fn object(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    let inner: Vec<_> = pairs.into_iter().map(|(key, value)| format!("{}:{}", quoted(&key), quoted(&value))).collect();
    format!("{{{}}}", inner.join(","))
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn parameters(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}
