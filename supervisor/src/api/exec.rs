//! `POST /v1/exec`: runs something inside the running generation and carries its streams over the upgraded connection.
//!
//! In: frames from the client, bytes and the exit status from the process. Out: the same, the other way. Must not: buffer
//! more than a few frames a direction (a reader that stops, stops the process's output), or outlive the client.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use molt_core::{code::Code, wire::ExecOptions};
use tokio::{
    io::{AsyncWriteExt as _, ReadHalf, WriteHalf, unix::AsyncFd},
    sync::{mpsc, watch},
};

use super::{
    EXEC_PROTOCOL, answer,
    answer::Refused,
    change::ask,
    frame::{self, Kind},
    listen::{Slot, StreamSlot},
    peer::Peer,
};
use crate::{
    command::{Command, Handle},
    workload::exec::ExecSession,
};

const START_TIME: Duration = Duration::from_secs(30);
/// After the process has ended, how long its streams may be silent before they count as finished: something it left
/// behind may hold them open for ever.
const DRAIN: Duration = Duration::from_millis(300);
/// Longest silence towards a client.
const ALIVE: Duration = Duration::from_secs(5);
const CHUNK: usize = 32 << 10;
/// Frames on their way to the client.
const QUEUE: usize = 8;
/// End of transmission, what a terminal takes for the end of its input.
const EOT: &[u8] = &[4];
/// 128 + SIGKILL: what the end of a generation does to everything in it.
const KILLED: i32 = 137;

/// Starts it and switches protocols.
pub(super) async fn start(
    State(handle): State<Handle>,
    Extension(slot): Extension<Slot>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
) -> Result<Response, Refused> {
    let upgrade = upgrade(&mut request)?;
    let slot = slot.exec()?;
    let begun = async {
        let options: ExecOptions = answer::parse(&answer::body(request).await?)?;
        if options.argv.is_empty() {
            return Err(Refused::new(Code::Invalid, "argv is empty: name a program"));
        }
        let size = (options.rows, options.cols);
        let session = ask(&handle, |reply| Command::Exec { options, by: peer.by(), reply }).await?;
        if session.tty && size != (0, 0) {
            resize(&session.stdout, size.0, size.1);
        }
        Ok(session)
    };
    let session = tokio::time::timeout(START_TIME, begun).await.map_err(|_| {
        Refused::with_status(StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded, "the process did not start in 30 s")
    })??;
    tokio::spawn(run(upgrade, session, slot));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(EXEC_PROTOCOL));
    Ok(response)
}

fn upgrade(request: &mut Request) -> Result<OnUpgrade, Refused> {
    let asked = |headers: &HeaderMap| {
        headers
            .get(header::UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(EXEC_PROTOCOL.as_bytes()))
    };
    let refused = || {
        Refused::with_status(
            StatusCode::UPGRADE_REQUIRED,
            Code::Invalid,
            format!("ask for it with Connection: upgrade and Upgrade: {EXEC_PROTOCOL}"),
        )
    };
    if !asked(request.headers()) {
        return Err(refused());
    }
    request.extensions_mut().remove::<OnUpgrade>().ok_or_else(refused)
}

async fn run(upgrade: OnUpgrade, session: ExecSession, _slot: StreamSlot) {
    let connection = match upgrade.await {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%error, "the client of an exec went away before it began"),
    };
    if let Err(error) = pump(connection, session).await {
        tracing::debug!(%error, "an exec ended with its client");
    }
}

/// Carries everything until the process has ended or the client is gone.
async fn pump(connection: Upgraded, session: ExecSession) -> io::Result<()> {
    let (from, to) = tokio::io::split(TokioIo::new(connection));
    let ExecSession { stdin, stdout, stderr, tty, exited, signals } = session;
    let terminal = if tty { Some(stdout.try_clone()?) } else { None };
    let (frames, queue) = mpsc::channel(QUEUE);
    let (over, ended) = watch::channel(None);
    let outputs = async move {
        let (out, err) = tokio::join!(copy(stdout, Kind::Stdout, &frames, ended.clone()), async {
            match stderr {
                Some(stderr) => copy(stderr, Kind::Stderr, &frames, ended.clone()).await,
                None => Ok(()),
            }
        });
        // The status goes last, behind all output.
        let mut ended = ended.clone();
        let status = ended.wait_for(Option::is_some).await.ok().and_then(|status| *status).unwrap_or(KILLED);
        out.and(err)?;
        let _ = frames.send(frame::encode(Kind::Exit, status.to_string().as_bytes())).await;
        Ok(())
    };
    let waited = async {
        let status = exited.await.unwrap_or(KILLED);
        over.send_replace(Some(status));
        Ok(())
    };
    let input = Input { stdin, terminal, tty, signals };
    // A client that takes nothing any more ends it at once; a process that gives nothing any more, when all is sent.
    let all = async { tokio::try_join!(send(to, queue), async { Ok(outputs.await) }, waited) };
    tokio::select! {
        over = all => over.and_then(|((), done, ())| done),
        // Only the end of the client ends this branch; dropping the rest closes the streams of the process.
        ended = input.take(from) => ended,
    }
}

/// Writes queued frames until the last sender is gone. Where there are none, an empty one now and then: while the process
/// takes no input, nothing is read of a client, and only this shows that it hung up.
async fn send(mut to: WriteHalf<TokioIo<Upgraded>>, mut queue: mpsc::Receiver<Bytes>) -> io::Result<()> {
    loop {
        match tokio::time::timeout(ALIVE, queue.recv()).await {
            Ok(Some(frame)) => to.write_all(&frame).await?,
            Ok(None) => return to.shutdown().await,
            Err(_) => to.write_all(&frame::encode(Kind::Stdout, b"")).await?,
        }
    }
}

/// Reads a stream of the process to its end, or until it is silent after the process has ended.
async fn copy(
    from: OwnedFd,
    kind: Kind,
    frames: &mpsc::Sender<Bytes>,
    mut ended: watch::Receiver<Option<i32>>,
) -> io::Result<()> {
    let from = nonblocking(from)?;
    let mut buffer = vec![0u8; CHUNK];
    loop {
        let silent = async {
            if ended.wait_for(Option::is_some).await.is_ok() {
                tokio::time::sleep(DRAIN).await;
            }
        };
        let read = tokio::select! {
            biased;
            read = from.async_io(tokio::io::Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)) => read,
            () = silent => return Ok(()),
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let data = buffer.get(..count).unwrap_or_default();
                if frames.send(frame::encode(kind, data)).await.is_err() {
                    return Ok(());
                }
            }
            // The master side of a terminal that nobody holds any more.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// What the client may do to the process.
#[derive(Debug)]
struct Input {
    stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    tty: bool,
    signals: mpsc::Sender<i32>,
}

impl Input {
    /// Takes frames until the client is gone.
    async fn take(self, mut from: ReadHalf<TokioIo<Upgraded>>) -> io::Result<()> {
        let mut stdin = self.stdin.map(nonblocking).transpose()?;
        while let Some(frame) = frame::read(&mut from).await? {
            match frame.kind {
                Kind::Stdin if frame.data.is_empty() => match &stdin {
                    Some(terminal) if self.tty => write(terminal, EOT).await,
                    _ => stdin = None,
                },
                Kind::Stdin => {
                    if let Some(open) = &stdin {
                        write(open, &frame.data).await;
                    }
                }
                Kind::Window => {
                    if let (Some(terminal), Some((rows, cols))) = (&self.terminal, frame::window(&frame.data)) {
                        resize(terminal, rows, cols);
                    }
                }
                Kind::Signal => {
                    // 1 to 64 are signals; 0 would only ask whether it is there.
                    if let Some(signal @ 1..=64) = frame::number(&frame.data) {
                        let _ = self.signals.send(signal).await;
                    }
                }
                Kind::Stdout | Kind::Stderr | Kind::Exit => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that only the server sends"));
                }
            }
        }
        Ok(())
    }
}

/// Writes all of it; a process that closed its input does not get the rest.
async fn write(to: &AsyncFd<OwnedFd>, mut data: &[u8]) {
    while !data.is_empty() {
        match to.async_io(tokio::io::Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, data)?)).await {
            Ok(count) => data = data.get(count..).unwrap_or_default(),
            Err(_) => return,
        }
    }
}

#[expect(
    deprecated,
    reason = "the replacement is unsafe and has the caller promise that the number stays the descriptor's: OwnedFd does"
)]
fn nonblocking(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    AsyncFd::new(fd)
}

fn resize(terminal: &impl AsFd, rows: u16, cols: u16) {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // A size that cannot be set leaves a terminal of another size, nothing worse.
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}
