//! `molt exec`: this terminal or these pipes, joined to a process inside the workload's sandbox.
//!
//! In: standard input, window sizes, signals. Out: the process's output and its exit status. Must not: leave the terminal
//! raw, whatever happens.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Read as _, Write as _},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use molt_core::wire::ExecOptions;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _, ReadHalf},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    args::ExecArgs,
    client::Client,
    fault::{FAILED, Fault},
    print::out,
    signals::{HANGUP, INTERRUPT, Signals, TERMINATE, WINDOW},
};
use crate::api::frame::{self, Kind};

/// Bytes of standard input a frame.
const CHUNK: usize = 32 << 10;
/// Frames read ahead of the connection.
const AHEAD: usize = 4;
/// For how long a signal waits for a frame that the other side does not take; then it ends this program instead.
const STUCK: Duration = Duration::from_millis(500);

/// Runs it and exits as it did.
pub(crate) async fn exec(client: &Client, args: ExecArgs) -> Result<u8, Fault> {
    if args.tty && !io::stdin().is_terminal() {
        return Err(Fault::Usage("-t needs a terminal on standard input; without one, use -i alone".to_owned()));
    }
    let (rows, cols) = if args.tty { size() } else { (0, 0) };
    let mut env = args.env;
    if args.tty && !env.iter().any(|one| one.starts_with("TERM=")) {
        env.extend(std::env::var("TERM").ok().map(|term| format!("TERM={term}")));
    }
    let options = ExecOptions {
        argv: args.command,
        env,
        tty: args.tty,
        stdin: args.stdin,
        rows,
        cols,
        unconfined: args.unconfined,
    };
    let connection = client.exec(&options).await?;
    let raw = if args.tty && args.stdin { Some(Raw::enter()?) } else { None };
    let ended = relay(connection, &options).await;
    drop(raw);
    // The low eight bits, as the kernel passes them on.
    let status = ended?.ok_or_else(|| Fault::Broken("the connection ended before the process did".to_owned()))?;
    Ok(u8::try_from(status & 0xff).unwrap_or(FAILED))
}

fn size() -> (u16, u16) {
    tcgetwinsize(io::stdin()).map(|size| (size.ws_row, size.ws_col)).unwrap_or_default()
}

/// Carries everything until the exit status comes, or the connection ends without one.
pub(crate) async fn relay(connection: TokioIo<Upgraded>, options: &ExecOptions) -> Result<Option<i32>, Fault> {
    let (from, to) = tokio::io::split(connection);
    let signals = Signals::listen(&[WINDOW, INTERRUPT, TERMINATE, HANGUP])?;
    let input = options.stdin.then(stdin);
    tokio::select! {
        status = output(from) => status,
        status = forward(to, input, signals, options.tty) => Ok(Some(status)),
    }
}

/// Prints what comes; the exit status ends it.
async fn output(mut from: ReadHalf<TokioIo<Upgraded>>) -> Result<Option<i32>, Fault> {
    let broken = |error: io::Error| Fault::Broken(error.to_string());
    while let Some(frame) = frame::read(&mut from).await.map_err(broken)? {
        match frame.kind {
            Kind::Stdout => out(&frame.data)?,
            Kind::Stderr => {
                let mut stderr = io::stderr().lock();
                // Nobody reads it: no reason to stop the process.
                let _ = stderr.write_all(&frame.data).and_then(|()| stderr.flush());
            }
            Kind::Exit => return Ok(frame::number(&frame.data)),
            Kind::Stdin | Kind::Window | Kind::Signal => {
                return Err(Fault::Broken("a frame that only the client sends".to_owned()));
            }
        }
    }
    Ok(None)
}

/// Sends input, window sizes and signals; returns a status only where this side is told to end.
async fn forward(
    mut to: impl AsyncWrite + Unpin,
    mut input: Option<mpsc::Receiver<Bytes>>,
    signals: Signals,
    tty: bool,
) -> i32 {
    let mut interrupted = false;
    let mut late = VecDeque::new();
    loop {
        let read = async {
            match &mut input {
                Some(input) => input.recv().await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            data = read => {
                if data.is_none() {
                    input = None;
                }
                // An empty one closes the standard input of the process.
                frame::encode(Kind::Stdin, &data.unwrap_or_default())
            }
            signal = heard(&mut late, &signals) => match signal {
                WINDOW if !tty => continue,
                WINDOW => {
                    let (rows, cols) = size();
                    frame::encode(Kind::Window, format!("{rows} {cols}").as_bytes())
                }
                INTERRUPT if interrupted => return 130,
                INTERRUPT => {
                    // A process that does not listen is left at the second, and hung up on.
                    interrupted = true;
                    frame::encode(Kind::Signal, b"2")
                }
                // In a terminal these are for this program; the process is hung up on when the connection goes.
                TERMINATE if tty => return 143,
                TERMINATE => frame::encode(Kind::Signal, b"15"),
                _ => return 129,
            },
        };
        if let Err(signal) = send(&mut to, &frame, &signals, &mut late).await {
            return 128 + signal;
        }
    }
}

/// A signal that came while a frame was being sent, or else the next one.
async fn heard(late: &mut VecDeque<i32>, signals: &Signals) -> i32 {
    match late.pop_front() {
        Some(signal) => signal,
        None => signals.next().await,
    }
}

/// Sends a frame whole, and keeps the signals that come meanwhile for after it. Where the other side takes nothing any more
/// a signal could not follow: then it is the error, at once if it is not the first, and nothing may be sent any more.
async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    frame: &[u8],
    signals: &Signals,
    late: &mut VecDeque<i32>,
) -> Result<(), i32> {
    let mut write = pin!(async {
        if to.write_all(frame).await.is_err() {
            // The other half says how it ended.
            std::future::pending::<()>().await;
        }
    });
    let mut first = None;
    loop {
        let stuck = async {
            match first {
                Some((signal, at)) => {
                    sleep_until(at + STUCK).await;
                    signal
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = &mut write => return Ok(()),
            signal = signals.next() => {
                match (signal, first) {
                    (WINDOW, _) => {}
                    (signal, None) => first = Some((signal, Instant::now())),
                    (signal, Some(_)) => return Err(signal),
                }
                late.push_back(signal);
            }
            signal = stuck => return Err(signal),
        }
    }
}

/// Reads standard input in a thread of its own: a terminal cannot be waited for without changing it for others.
fn stdin() -> mpsc::Receiver<Bytes> {
    let (frames, queue) = mpsc::channel(AHEAD);
    let read = move || {
        let mut buffer = vec![0u8; CHUNK];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(count @ 1..) => {
                    let data = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                    if frames.blocking_send(data).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end; dropping the sender says so.
                Ok(0) | Err(_) => return,
            }
        }
    };
    // Without a thread standard input is empty.
    let _ = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
    queue
}

/// The terminal in raw mode, until dropped.
#[derive(Debug)]
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self, Fault> {
        let failed = |error| Fault::Local(format!("failed to set the terminal to raw mode: {error}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        let guard = Self(before);
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw).map_err(failed)?;
        Ok(guard)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing is left to try if this fails.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use tokio::{io::DuplexStream, task::JoinHandle, time::timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// As signalfd(2) tells of a signal.
    fn raise(to: &OwnedFd, signal: i32) {
        let mut told = [0; 128];
        told[..4].copy_from_slice(&signal.to_ne_bytes());
        assert_eq!(rustix::io::write(to, &told), Ok(told.len()));
    }

    /// One that has begun to send 32 KiB over a connection that takes 1 KiB; signals, the connection, the status.
    async fn stuck() -> (OwnedFd, DuplexStream, JoinHandle<i32>) {
        let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
        let (read, write) = rustix::pipe::pipe_with(flags).unwrap();
        let (to, theirs) = tokio::io::duplex(1 << 10);
        let (input, queue) = mpsc::channel(1);
        input.send(Bytes::from(vec![7; CHUNK])).await.unwrap();
        let forward = tokio::spawn(async move {
            let _input = input;
            forward(to, Some(queue), Signals::of(read), false).await
        });
        tokio::task::yield_now().await;
        (write, theirs, forward)
    }

    #[tokio::test]
    async fn a_signal_ends_it_while_the_other_side_takes_nothing() {
        for signal in [INTERRUPT, TERMINATE, HANGUP] {
            let (signals, mut theirs, forward) = stuck().await;
            raise(&signals, WINDOW);
            raise(&signals, signal);
            let status = timeout(SOON, forward).await.expect("it must end").unwrap();
            assert_eq!(status, 128 + signal);
            // Nothing follows a part of a frame.
            assert!(frame::read(&mut theirs).await.is_err(), "the frame is cut");
        }
    }

    #[tokio::test]
    async fn a_second_signal_does_not_wait() {
        let (signals, _theirs, forward) = stuck().await;
        raise(&signals, INTERRUPT);
        raise(&signals, INTERRUPT);
        assert_eq!(timeout(STUCK / 2, forward).await.expect("it must end").unwrap(), 130);
    }

    #[tokio::test]
    async fn a_signal_that_comes_while_a_frame_is_sent_follows_it() {
        let (signals, mut theirs, forward) = stuck().await;
        raise(&signals, TERMINATE);
        tokio::task::yield_now().await;
        let mut next = async || timeout(SOON, frame::read(&mut theirs)).await.unwrap().unwrap().unwrap();
        let (input, signal) = (next().await, next().await);
        assert_eq!((input.kind, input.data.len()), (Kind::Stdin, CHUNK));
        assert_eq!((signal.kind, &signal.data[..]), (Kind::Signal, &b"15"[..]));
        assert!(!forward.is_finished());
        raise(&signals, HANGUP);
        assert_eq!(timeout(SOON, forward).await.unwrap().unwrap(), 129);
    }
}
