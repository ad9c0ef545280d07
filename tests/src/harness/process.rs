//! Running other programs: to the end with a deadline, or beside the tests until dropped.
//!
//! In: a `Command`. Out: its output as text. Must not: let a program outlive the bed, or hide what
//! a failed one said.

use std::fmt::Write as _;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// What a program that has ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Standard output, wrong bytes replaced.
    pub stdout: String,
    /// Standard error, wrong bytes replaced.
    pub stderr: String,
}

impl Output {
    /// Itself, if the code is 0; else an error with everything it said.
    pub fn ok(self) -> anyhow::Result<Self> {
        self.expect_code(0)
    }

    /// Itself, if the code is `code`; else an error with everything it said.
    pub fn expect_code(self, code: i32) -> anyhow::Result<Self> {
        if self.code == code {
            return Ok(self);
        }
        let mut text = format!("exit code {}, not {code}", self.code);
        for (name, said) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            write!(text, "\n--- {name}\n{}", said.trim_end())?;
        }
        bail!(text)
    }

    /// Standard output as JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("reading JSON from {:?}", self.stdout))
    }
}

/// Runs a program to its end; it is killed at the deadline, which is an error.
pub fn output(command: &mut Command, limit: Duration) -> anyhow::Result<Output> {
    output_for(command, Stdio::null(), limit)
}

/// The same, with something on its standard input.
pub fn output_for(command: &mut Command, input: Stdio, limit: Duration) -> anyhow::Result<Output> {
    let name = format!("{command:?}");
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, limit);
    if status.is_err() {
        child.kill()?;
        child.wait()?;
    }
    // Not joined after a kill: a grandchild may hold the pipe for longer than anyone wants to wait.
    let status = status.with_context(|| format!("running {name}"))?;
    let [stdout, stderr] = [stdout, stderr].map(|thread| thread.join().expect("a reader of a pipe never panics"));
    Ok(Output { code: code(status), stdout, stderr })
}

/// Runs a program to its end and insists on exit code 0.
pub fn run(command: &mut Command, limit: Duration) -> anyhow::Result<Output> {
    let name = format!("{command:?}");
    output(command, limit)?.ok().with_context(|| format!("running {name}"))
}

/// Waits for a child to end; it goes on running if it has not by the deadline, which is an error.
pub fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() >= limit {
            bail!("process {} is still running after {limit:?}", child.id());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Does `work`; with `MOLT_TESTS_TIMES` set, says how long it took.
pub fn timed<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let result = work();
    if std::env::var_os("MOLT_TESTS_TIMES").is_some() {
        eprintln!("[{:7.1} ms] {what}", start.elapsed().as_secs_f64() * 1e3);
    }
    result
}

/// Exit code as a shell would say it: 128 + n for signal n.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A program that runs beside the tests; killed and reaped when dropped.
#[derive(Debug)]
pub struct Background(pub Child);

impl Background {
    /// Starts it.
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let name = format!("{command:?}");
        Ok(Self(command.spawn().with_context(|| format!("starting {name}"))?))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Fails only if it is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
