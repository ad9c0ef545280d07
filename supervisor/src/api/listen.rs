//! The operator socket: made, guarded and served.
//!
//! In: a path, then connections. Out: requests that come from root in this user namespace. Must not: end on an error of
//! one connection, take more than its share of descriptors, or remove a socket that somebody serves.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs::{DirBuilder, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    },
    path::Path,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use axum::{Router, http::StatusCode, response::IntoResponse as _};
use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use molt_core::code::Code;
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    task::AbortHandle,
};

use super::{answer::Refused, peer, routes, stuck::Watched};
use crate::command::Handle;

/// Requests served at once. A connection that has not sent the whole head of a request yet has to go when another one comes
/// and there is no place: whoever only connects locks nobody out.
pub(super) const CONNECTIONS: usize = 64;
/// Streams (events, logs) at once, beside the requests; a quarter of the files that Molt may open, at most this many.
const STREAMS: usize = 1024;
/// Commands run at once (`molt exec`), beside both.
const EXECS: usize = 12;
/// Connections that are only told why they are refused, at once; more are closed without a word.
const REFUSALS: usize = 4;
const HEADER_TIME: Duration = Duration::from_secs(5);
/// How long a connection may take that is no stream: its head, its answer, and the sending of that.
const WHOLE_TIME: Duration = Duration::from_mins(2);
/// How long a peer may take nothing of what is written to it, a stream's too; not that of a command.
pub(super) const STUCK_TIME: Duration = Duration::from_secs(30);
const REFUSAL_TIME: Duration = Duration::from_secs(2);
/// The first pause after a connection could not be taken.
const SHORTEST: Duration = Duration::from_millis(1);

/// Makes the socket, its folder first (0700), and listens. A socket nobody answers on is removed; one that is answered is
/// an error, as is anything else in its place.
pub(crate) fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("failed to make the folder {}", folder.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => bail!("{} is there and is not a socket", path.display()),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => bail!("another supervisor answers on {}", path.display()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).with_context(|| format!("failed to remove the stale {}", path.display()))?;
            }
            Err(error) => return Err(error).with_context(|| format!("failed to look at {}", path.display())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("failed to look at {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("failed to listen on {}", path.display()))?;
    // Between bind and here the umask decides, but the peer's uid is checked on every connection.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .with_context(|| format!("failed to set the mode of {}", path.display()))?;
    Ok(listener)
}

/// Serves until the task is dropped.
pub(crate) async fn serve(handle: Handle, listener: UnixListener) -> Infallible {
    serve_user(handle, listener, peer::OPERATOR).await
}

/// The same for another user; the tests are not always root.
pub(super) async fn serve_user(handle: Handle, listener: UnixListener, operator: u32) -> Infallible {
    let audit = handle.audit.clone();
    let router = routes::router(handle);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let places = Places { streams: Arc::new(Semaphore::new(streams())), execs: Arc::new(Semaphore::new(EXECS)) };
    let mut heads = Heads::default();
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let mut pause = SHORTEST;
    let mut spare = spare();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // EMFILE, ENFILE, ENOMEM: descriptors come back when other connections end.
                if pause == SHORTEST {
                    tracing::warn!(%error, "the operator socket takes no connection for now");
                }
                if let Some(place) = spare.take() {
                    drop(place);
                    turn_away(&listener).await;
                }
                crate::timer::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
                spare = self::spare();
                continue;
            }
        };
        pause = SHORTEST;
        if spare.is_none() {
            spare = self::spare();
        }
        let admitted = peer::admit(&stream, operator);
        let place = if admitted.is_ok() { heads.place(&slots).await } else { None };
        let refused = match (admitted, place) {
            (Ok(peer), Some(slot)) => {
                let begun = Arc::new(AtomicBool::new(false));
                let slot = Slot::among(Some(slot), places.clone());
                let task = tokio::spawn(connection(stream, router.clone(), slot, peer, Arc::clone(&begun)));
                heads.await_one(begun, task.abort_handle());
                continue;
            }
            (Ok(_), None) => Refused::with_status(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Busy,
                format!("{CONNECTIONS} requests are being answered already; try again in a moment"),
            ),
            (Err(stranger), _) => {
                let uid =
                    stream.peer_cred().map_or_else(|_| "somebody".to_owned(), |peer| format!("uid {}", peer.uid()));
                audit.refused(&format!("{uid} via operator socket"), "connect", stranger.0.code.as_str(), None);
                stranger
            }
        };
        if let Ok(slot) = Arc::clone(&refusals).try_acquire_owned() {
            tokio::spawn(refuse(stream, refused, slot));
        }
    }
}

/// How many streams there may be.
fn streams() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / 4).unwrap_or(STREAMS).clamp(EXECS, STREAMS)
}

/// Connections whose first head has not come yet, oldest first.
#[derive(Debug, Default)]
struct Heads(VecDeque<(Arc<AtomicBool>, AbortHandle)>);

impl Heads {
    fn await_one(&mut self, begun: Arc<AtomicBool>, task: AbortHandle) {
        if self.0.len() >= 2 * CONNECTIONS {
            self.0.retain(|(begun, task)| !begun.load(Ordering::Relaxed) && !task.is_finished());
        }
        self.0.push_back((begun, task));
    }

    /// A place for one more, that of the oldest which asks nothing if there is no other.
    async fn place(&mut self, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
            return Some(slot);
        }
        while let Some((begun, task)) = self.0.pop_front() {
            if begun.load(Ordering::Relaxed) || task.is_finished() {
                continue;
            }
            task.abort();
            // Given back when the runtime has dropped it, which is next.
            let freed = tokio::time::timeout(REFUSAL_TIME, Arc::clone(slots).acquire_owned()).await;
            return freed.ok().and_then(Result::ok);
        }
        None
    }
}

/// A descriptor kept for the day when there is no other.
fn spare() -> Option<OwnedFd> {
    openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Tells those who wait to be let in why they are not, in the place of the spare descriptor.
async fn turn_away(listener: &UnixListener) {
    for _ in 0..CONNECTIONS {
        let Some(Ok((stream, _))) = listener.accept().now_or_never() else { return };
        let refused = Refused::with_status(
            StatusCode::SERVICE_UNAVAILABLE,
            Code::Busy,
            "molt has used up the files it may open; end what runs beside it, or raise its limit (prlimit --nofile)",
        );
        tell(stream, refused).await;
    }
}

fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    // One request a connection: nothing to smuggle, nothing that idles.
    http.keep_alive(false)
        .max_buf_size(16 << 10)
        .max_headers(32)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME);
    http
}

pub(super) async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    slot: Slot,
    peer: peer::Peer,
    begun: Arc<AtomicBool>,
) {
    let stream = Watched::new(stream, STUCK_TIME, Arc::clone(&slot.patient));
    let held = Arc::clone(&slot.connection);
    // The upgraded half of an exec lives on in a task of its own; its slot is held there too.
    let router = TowerToHyperService::new(router.layer(axum::Extension(slot)).layer(axum::Extension(peer)));
    let service = hyper::service::service_fn(move |request| {
        begun.store(true, Ordering::Relaxed);
        hyper::service::Service::call(&router, request)
    });
    let serving = http().serve_connection(TokioIo::new(stream), service).with_upgrades();
    match in_time(serving, WHOLE_TIME, || held.lock().unwrap_or_else(PoisonError::into_inner).is_none()).await {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "a connection ended early"),
        None => tracing::debug!("a connection was ended: its peer was too slow"),
    }
}

/// What `serving` gives, unless it is not done within `limit` and is no stream then.
pub(super) async fn in_time<T>(
    serving: impl Future<Output = T>,
    limit: Duration,
    is_stream: impl Fn() -> bool,
) -> Option<T> {
    let mut serving = pin!(serving);
    match tokio::time::timeout(limit, &mut serving).await {
        Ok(done) => Some(done),
        // It lasts for as long as its reader reads.
        Err(_) if is_stream() => Some(serving.await),
        Err(_) => None,
    }
}

/// Serves one connection that nobody needs to be admitted to.
#[cfg(feature = "fuzzing")]
pub(crate) async fn serve_one(handle: Handle, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let one = || Arc::new(Semaphore::new(1));
    let slot = Slot::among(None, Places { streams: one(), execs: one() });
    connection(stream, routes::router(handle), slot, peer::Peer::UNSEEN, Arc::default()).await;
}

/// Places beside those for requests.
#[derive(Debug, Clone)]
struct Places {
    streams: Arc<Semaphore>,
    execs: Arc<Semaphore>,
}

/// The place among [`CONNECTIONS`] that a connection holds until it is answered, or becomes a stream.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    connection: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    places: Places,
    /// Whether the peer may stop reading for as long as it likes.
    patient: Arc<AtomicBool>,
}

/// A place among the streams, or among the commands.
#[derive(Debug)]
pub(super) struct StreamSlot(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Slot {
    /// A connection's place, with places for streams; it runs no commands.
    pub(super) fn new(connection: OwnedSemaphorePermit, streams: Arc<Semaphore>) -> Self {
        Self::among(Some(connection), Places { streams, execs: Arc::new(Semaphore::new(0)) })
    }

    fn among(connection: Option<OwnedSemaphorePermit>, places: Places) -> Self {
        Self { connection: Arc::new(Mutex::new(connection)), places, patient: Arc::default() }
    }

    /// Makes the connection a stream, for as long as the answer is held.
    pub(super) fn stream(self) -> Result<StreamSlot, Refused> {
        let free = Arc::clone(&self.places.streams).try_acquire_owned();
        self.become_one(free, "streams")
    }

    /// Makes the connection that of a command. Whoever does not read its output stops it, and loses nothing.
    pub(super) fn exec(self) -> Result<StreamSlot, Refused> {
        let free = Arc::clone(&self.places.execs).try_acquire_owned();
        self.patient.store(free.is_ok(), Ordering::Relaxed);
        self.become_one(free, "commands")
    }

    fn become_one(
        self,
        free: Result<OwnedSemaphorePermit, TryAcquireError>,
        what: &str,
    ) -> Result<StreamSlot, Refused> {
        let place = free.map_err(|_| {
            let why = format!("there are as many {what} as there may be; close one and try again");
            Refused::with_status(StatusCode::SERVICE_UNAVAILABLE, Code::Busy, why)
        })?;
        // Its place among the requests is free from here on.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(StreamSlot(place))
    }
}

pub(super) async fn refuse(stream: UnixStream, refused: Refused, _slot: OwnedSemaphorePermit) {
    tell(stream, refused).await;
}

pub(super) async fn tell(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, refused: Refused) {
    let service = hyper::service::service_fn(move |_| {
        let response = Refused(refused.0.clone()).into_response();
        async move { Ok::<_, Infallible>(response) }
    });
    // Whether the words arrive does not matter.
    let _ = tokio::time::timeout(REFUSAL_TIME, http().serve_connection(TokioIo::new(stream), service)).await;
}
