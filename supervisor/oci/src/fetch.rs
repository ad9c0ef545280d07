//! Brings the layers of a resolved image into the store.
//!
//! Socket -> hash -> pipe -> (decompress -> hash -> tar -> files), each layer in one pass, several at a time, none ever
//! whole in memory or packed on disk. What is in brackets is done by a confined process, one a layer. Layers are unpacked
//! alone; those that ask something of the layers below are settled when all are there. Then one sync and the renames.
//!
//! In: [`Resolved`], the store, someone to tell. Out: [`Fetched`]: names of layers that are whole and on disk. Must not:
//! leave anything behind on an error, or block the runtime: what computes or writes runs on threads of its own.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    io::{self, BufRead, BufReader, Read},
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use futures_util::{
    future::{Either, select},
    stream::{FuturesUnordered, StreamExt as _},
};
use molt_core::ids::{Digest, ImageRef};
use tokio::sync::{mpsc::Receiver, oneshot};

use crate::{
    error::{Error, Result},
    layer::{self, apply::Options, packed::Promise, settle::settle, tree::Asks},
    layout::Layout,
    need,
    remote::{
        blob::{Wanted, pump},
        registry::Endpoint,
    },
    resolve::{Client, Layer, Resolved, repository_at},
    store::{LayerId, Staged, Store, chain},
    thread,
    unpacker::{Switch, Unpacked},
};

/// Pieces on their way from the socket to the unpacker, for each layer.
const PIECES: usize = 32;
const BUFFER: usize = 256 << 10;
const TICK: Duration = Duration::from_millis(100);

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// It was in the store.
    Present,
    /// Under way.
    Fetching,
    /// Unpacked and verified.
    Done,
}

/// Is told how a fetch goes. Called from the task that fetches; must not block.
pub trait Progress: Send + Sync {
    /// `bytes_done` of the `bytes_total` packed bytes of the layer with this index (bottom is 0) have arrived.
    fn layer(&self, index: usize, digest: &Digest, bytes_done: u64, bytes_total: u64, state: LayerState);
    /// `what` failed with `error` and will be tried again after a pause.
    fn retry(&self, what: &str, after: Duration, error: &str);
}

/// Tells nobody.
impl Progress for () {
    fn layer(&self, _: usize, _: &Digest, _: u64, _: u64, _: LayerState) {}
    fn retry(&self, _: &str, _: Duration, _: &str) {}
}

/// What a fetch did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The image's layers in the store, bottom first.
    pub layers: Vec<LayerId>,
    /// Layers that were fetched.
    pub layers_fetched: usize,
    /// Packed bytes that were fetched.
    pub bytes_fetched: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// A layer that is unpacked but not published.
enum Ready {
    /// By this process.
    Here(Staged, Asks),
    /// By a confined one.
    Apart(Unpacked),
}

impl Ready {
    /// Whether the layer is the same whatever it lies on.
    fn is_plain(&self) -> bool {
        match self {
            Self::Here(_, asks) => asks.is_empty(),
            Self::Apart(unpacked) => unpacked.left.is_plain(),
        }
    }

    fn staged(self) -> Staged {
        match self {
            Self::Here(staged, _) | Self::Apart(Unpacked { staged, .. }) => staged,
        }
    }
}

enum Source {
    Registry(Vec<Endpoint>, String),
    Layout(Arc<Layout>),
}

impl Client {
    /// What `fetch` will take, if there is room for it beside the reserve.
    pub fn room(&self, resolved: &Resolved, store: &Store) -> Result<need::Need> {
        let need = need::need(resolved, store);
        need::check(&need, &resolved.reference.to_string(), store, self.limits.reserve)?;
        Ok(need)
    }

    /// Fetches what the store lacks of `resolved`, and its documents. Dropping the future stops it; what it was writing
    /// is then removed by the threads that write.
    pub async fn fetch(&self, resolved: &Resolved, store: &Store, progress: &dyn Progress) -> Result<Fetched> {
        let what = resolved.reference.to_string();
        self.room(resolved, store)?;
        let deadline = self.limits.deadline;
        match tokio::time::timeout(deadline, self.fetch_all(resolved, store, progress)).await {
            Ok(Err(Error::NoSpace { operation, why })) => {
                let figures = store.space().map_or_else(
                    |_| String::new(),
                    |space| format!("; {} bytes and {} inodes are free", space.bytes_free, space.inodes_free),
                );
                Err(Error::NoSpace { operation, why: format!("{why}{figures}") })
            }
            Ok(done) => done,
            Err(_) => Err(Error::Deadline { operation: "fetch", what, after: deadline }),
        }
    }

    async fn fetch_all(&self, resolved: &Resolved, store: &Store, progress: &dyn Progress) -> Result<Fetched> {
        let start = Instant::now();
        let source = self.source(&resolved.reference).await?;
        keep_documents(resolved, store).await?;
        let names = present(resolved, store);
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        for (index, (layer, name)) in resolved.layers.iter().zip(&names).enumerate() {
            if name.is_some() {
                progress.layer(index, &layer.digest, layer.size, layer.size, LayerState::Present);
            } else if seen.insert(layer.id()) {
                wanted.push((index, layer));
            }
        }
        let mut fetched = Fetched {
            layers: Vec::new(),
            layers_fetched: wanted.len(),
            bytes_fetched: wanted.iter().map(|(_, layer)| layer.size).sum(),
            elapsed: Duration::ZERO,
        };
        let (ready, problem) = self.several(&source, wanted, store, progress).await;
        if let Some(error) = problem {
            // A full disk gets back what this took.
            if !matches!(error, Error::NoSpace { .. }) {
                keep_finished(resolved, store, ready).await?;
            }
            return Err(error);
        }
        fetched.layers = self.settle_all(&source, resolved, names, ready, store, progress).await?;
        fetched.elapsed = start.elapsed();
        Ok(fetched)
    }

    /// Fetches and unpacks layers, a few at a time, by index; stops at the first error and gives what was finished.
    async fn several(
        &self,
        source: &Source,
        wanted: Vec<(usize, &Layer)>,
        store: &Store,
        progress: &dyn Progress,
    ) -> (HashMap<usize, Ready>, Option<Error>) {
        let mut ready = HashMap::new();
        let mut waiting = wanted.into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.parallel
                && let Some((index, layer)) = waiting.next()
            {
                running.push(async move { (index, layer, self.one(source, index, layer, store, progress).await) });
            }
            match running.next().await {
                Some((index, layer, Ok(done))) => {
                    progress.layer(index, &layer.digest, layer.size, layer.size, LayerState::Done);
                    ready.insert(index, done);
                }
                Some((_, _, Err(error))) => return (ready, Some(error)),
                None => return (ready, None),
            }
        }
    }

    /// Bottom first: names every layer, settles those that ask something of the ones below, publishes all that are new.
    async fn settle_all(
        &self,
        source: &Source,
        resolved: &Resolved,
        names: Vec<Option<LayerId>>,
        mut ready: HashMap<usize, Ready>,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Vec<LayerId>> {
        let mut below: Vec<LayerId> = Vec::new();
        let mut batch: Vec<(Staged, LayerId)> = Vec::new();
        for (index, (layer, name)) in resolved.layers.iter().zip(names).enumerate() {
            let plain = layer.id();
            if let Some(name) = name.or_else(|| batch.iter().any(|(_, id)| *id == plain).then_some(plain)) {
                below.push(name);
                continue;
            }
            let done = match ready.remove(&index) {
                Some(done) => done,
                // The same layer twice in one image, and not the same on both parents.
                None => self.one(source, index, layer, store, progress).await?,
            };
            if done.is_plain() {
                below.push(plain);
                batch.push((done.staged(), plain));
                continue;
            }
            let id = plain.on(chain(&below));
            if !store.has_layer(&id) {
                let lowers = folders(&below, &batch, store)?;
                let settled = self.settle(layer, done, lowers).await;
                batch.push((settled.map_err(|error| error.in_layer(layer.diff_id))?, id));
            }
            below.push(id);
        }
        let store = store.clone();
        blocking("the publisher of layers", move || store.publish(batch)).await?;
        Ok(below)
    }

    async fn source(&self, reference: &ImageRef) -> Result<Source> {
        match reference {
            ImageRef::Registry { host, repository, .. } => {
                Ok(Source::Registry(self.registry.endpoints(host)?, repository_at(host, repository)))
            }
            ImageRef::Layout { path, .. } => {
                let (path, limits) = (path.clone(), self.limits.clone());
                let layout = blocking("the reader of the layout", move || Layout::open(&path, &limits)).await?;
                Ok(Source::Layout(Arc::new(layout)))
            }
        }
    }

    /// Fetches and unpacks one layer.
    async fn one(
        &self,
        source: &Source,
        index: usize,
        layer: &Layer,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Ready> {
        match source {
            Source::Layout(layout) => self.one_of_layout(layout, index, layer, store, progress).await,
            Source::Registry(endpoints, repository) => {
                let first = self.one_of_registry(endpoints, repository, index, layer, store, progress).await;
                match (first, endpoints.as_slice()) {
                    // A mirror may hold something else under this digest; the registry is asked before that is believed.
                    (Err(error @ Error::Mismatch { .. }), [_, .., own]) => {
                        progress.retry(&layer.digest.to_string(), Duration::ZERO, &error.to_string());
                        let own = std::slice::from_ref(own);
                        self.one_of_registry(own, repository, index, layer, store, progress).await
                    }
                    (result, _) => result,
                }
            }
        }
    }

    async fn one_of_registry(
        &self,
        endpoints: &[Endpoint],
        repository: &str,
        index: usize,
        layer: &Layer,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Ready> {
        let (sender, receiver) = tokio::sync::mpsc::channel(PIECES);
        let pieces = Pieces { receiver, piece: Bytes::new() };
        let stop = Stop::default();
        let switch = Arc::clone(&stop.0);
        let worker = self.worker(pieces, layer, store, stop);
        let wanted = Wanted { repository, digest: layer.digest, size: layer.size };
        let report = |done| progress.layer(index, &layer.digest, done, layer.size, LayerState::Fetching);
        let sending = async {
            // The sender goes when the pump ends, and with it the worker.
            let sender = sender;
            let pumping = pin!(pump(&self.registry, endpoints, wanted, &sender, progress, report));
            let waking = pin!(async {
                // A worker that waits for the network does not see its unpacker end. Where there is no room it does not wait.
                switch.ended().await;
                let _ = sender.try_send(Bytes::new());
                std::future::pending::<Infallible>().await
            });
            match select(pumping, waking).await {
                Either::Left((pumped, _)) => pumped,
                Either::Right((never, _)) => match never {},
            }
        };
        match select(pin!(sending), pin!(worker)).await {
            Either::Left((sent, worker)) => {
                let unpacked = worker.await;
                sent?;
                unpacked
            }
            // It has failed: nobody needs what may still come.
            Either::Right((unpacked, _)) => unpacked,
        }
    }

    async fn one_of_layout(
        &self,
        layout: &Arc<Layout>,
        index: usize,
        layer: &Layer,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Ready> {
        let count = Arc::new(AtomicU64::new(0));
        let stop = Stop::default();
        let inner = layout.blob(&layer.digest)?;
        let counted = Counted { inner, count: Arc::clone(&count), stop: Arc::clone(&stop.0) };
        let worker = self.worker(BufReader::with_capacity(BUFFER, counted), layer, store, stop);
        let mut worker = pin!(worker);
        loop {
            if let Ok(done) = tokio::time::timeout(TICK, &mut worker).await {
                return done;
            }
            let done = count.load(Ordering::Relaxed).min(layer.size);
            progress.layer(index, &layer.digest, done, layer.size, LayerState::Fetching);
        }
    }

    /// The half that computes and writes. Ends when the future is dropped.
    fn worker<R: BufRead + Send + 'static>(
        &self,
        source: R,
        layer: &Layer,
        store: &Store,
        stop: Stop,
    ) -> impl Future<Output = Result<Ready>> + use<R> {
        let (store, limits, unpacker) = (store.clone(), self.limits.clone(), self.unpacker.clone());
        let &Layer { digest, size, packing, diff_id } = layer;
        let promise = Promise { digest, size, diff_id, packing };
        let switch = Arc::clone(&stop.0);
        let work = blocking("the unpacker of a layer", move || {
            let staged = store.stage()?;
            if let Some(unpacker) = unpacker {
                return unpacker.unpack(source, staged, promise, &limits, &switch).map(Ready::Apart);
            }
            let options = Options { limits: &limits, xattrs: staged.xattrs() };
            let asks = layer::unpack(source, staged.folder()?, promise, options)?;
            Ok(Ready::Here(staged, asks))
        });
        async move {
            let _stop = stop;
            work.await
        }
    }

    /// Makes a layer what it must be on top of `lowers`, nearest first. Ends when the future is dropped.
    fn settle(&self, layer: &Layer, done: Ready, lowers: Vec<OwnedFd>) -> impl Future<Output = Result<Staged>> + use<> {
        let (limits, unpacker, diff_id) = (self.limits.clone(), self.unpacker.clone(), layer.diff_id);
        let stop = Stop::default();
        let switch = Arc::clone(&stop.0);
        let work = blocking("the settler of a layer", move || match (done, unpacker) {
            (Ready::Apart(layer), Some(unpacker)) => {
                unpacker.settle(diff_id, &layer, &lowers, &limits, &switch).map(|()| layer.staged)
            }
            (Ready::Here(staged, asks), _) => {
                let options = Options { limits: &limits, xattrs: staged.xattrs() };
                settle(&staged.folder()?, asks, &lowers, options).map(|()| staged)
            }
            (Ready::Apart(_), None) => Err(Error::Worker { what: "a settler without an unpacker" }),
        });
        async move {
            let _stop = stop;
            work.await
        }
    }
}

/// Runs `work` on a thread of its own, which starts at once.
pub(crate) fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    let (sender, receiver) = oneshot::channel();
    let started = thread::start("blob", move || drop(sender.send(work())));
    let started = started.map_err(|(_, source)| Error::Thread { what, source });
    async move {
        started?;
        receiver.await.unwrap_or(Err(Error::Worker { what }))
    }
}

/// The layers that are in the store, bottom first. One that depends on its parents is known only when they are.
pub(crate) fn present(resolved: &Resolved, store: &Store) -> Vec<Option<LayerId>> {
    let mut names: Vec<Option<LayerId>> = Vec::new();
    for layer in &resolved.layers {
        let plain = layer.id();
        let below: Option<Vec<LayerId>> = names.iter().copied().collect();
        let name = if store.has_layer(&plain) {
            Some(plain)
        } else {
            below.map(|below| plain.on(chain(&below))).filter(|id| store.has_layer(id))
        };
        names.push(name);
    }
    names
}

/// Folders of the layers below, nearest first, published or about to be.
fn folders(below: &[LayerId], batch: &[(Staged, LayerId)], store: &Store) -> Result<Vec<OwnedFd>> {
    below
        .iter()
        .rev()
        .map(|id| match batch.iter().find(|(_, other)| other == id) {
            Some((staged, _)) => staged.folder(),
            None => store.layer(id),
        })
        .collect()
}

async fn keep_documents(resolved: &Resolved, store: &Store) -> Result<()> {
    let (store, resolved) = (store.clone(), resolved.clone());
    blocking("the writer of manifests", move || {
        if let Some(index) = &resolved.index {
            store.put_blob(&resolved.digest, index)?;
        }
        store.put_blob(&resolved.manifest_digest, &resolved.manifest)?;
        store.put_blob(&resolved.config_digest, &resolved.config)
    })
    .await
}

/// After a failure: layers that are whole and depend on nothing need not be fetched again.
async fn keep_finished(resolved: &Resolved, store: &Store, ready: HashMap<usize, Ready>) -> Result<()> {
    let batch: Vec<_> = ready
        .into_iter()
        .filter(|(_, done)| done.is_plain())
        .filter_map(|(index, done)| Some((done.staged(), resolved.layers.get(index)?.id())))
        .collect();
    let store = store.clone();
    blocking("the publisher of layers", move || store.publish(batch)).await
}

/// What the pump sends, as a reader. The end of the channel is the end of the blob; sums tell whether it was. An empty
/// piece is not the end: it wakes who reads, as a signal would.
struct Pieces {
    receiver: Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.len().min(out.len());
        self.piece.copy_to_slice(out.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) if piece.is_empty() => return Err(io::ErrorKind::Interrupted.into()),
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount.min(self.piece.len()));
    }
}

/// Ends the unpacker and stops its reader when the fetch is dropped.
#[derive(Default)]
struct Stop(Arc<Switch>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.off();
    }
}

struct Counted {
    inner: Box<dyn Read + Send>,
    count: Arc<AtomicU64>,
    stop: Arc<Switch>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_off() {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        let count = self.inner.read(out)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
