//! Brings the layers of a resolved image into the store.
//!
//! Socket -> hash -> pipe -> (decompress -> hash) -> pipe -> (tar -> files), each layer in one pass, several at a time,
//! none ever whole in memory or packed on disk. What is in brackets is done by confined processes, two a layer. Layers are
//! unpacked alone; those that ask something of the layers below are settled when all are there. Then one sync and the
//! renames.
//!
//! In: [`Resolved`], the store, someone to tell. Out: [`Fetched`]: names of layers that are whole and on disk. Must not:
//! leave anything behind on an error, or block the runtime: what computes or writes runs on threads of its own.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    io::{BufRead, BufReader},
    os::fd::OwnedFd,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    future::{Either, select},
    stream::{FuturesUnordered, StreamExt as _},
};
use molt_core::ids::{Digest, ImageRef};
use tokio::sync::oneshot;

use crate::{
    error::{Error, Result},
    layer::{self, apply::Options, packed::Promise, settle::settle},
    layout::Layout,
    made::{Made, Ready, publish},
    need,
    pieces::{Counted, Pieces, Stop},
    remote::{
        blob::{Wanted, pump},
        registry::Endpoint,
    },
    reserve::Reserve,
    resolve::{Client, Layer, Resolved, repository_at},
    store::{LayerId, Staged, Store, chain},
    thread,
};

/// Pieces on their way from the socket to the decoder, for each layer.
const PIECES: usize = 32;
const BUFFER: usize = 256 << 10;
const TICK: Duration = Duration::from_millis(100);
/// After a failure: to put what was finished under its names.
const KEPT_WITHIN: Duration = Duration::from_mins(1);

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

/// Where the blobs of a repository may be had.
struct Origin<'a> {
    endpoints: &'a [Endpoint],
    repository: &'a str,
    /// Whether bytes of a mirror came.
    mirrored: AtomicBool,
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

    /// Fetches what the store lacks of `resolved`, and its documents, in [`Limits::deadline`](crate::Limits::deadline)
    /// at most.
    pub async fn fetch(&self, resolved: &Resolved, store: &Store, progress: &dyn Progress) -> Result<Fetched> {
        self.fetch_until(resolved, store, progress, tokio::time::sleep(self.limits.deadline)).await
    }

    /// The same with a clock of the caller's: `late` is ready when [`Limits::deadline`](crate::Limits::deadline) has
    /// passed. After an error, that one among them, the layers that were finished are kept, unless there is no room.
    /// Dropping the future stops it at once: the threads that write end, and what was made goes to the trash, which a
    /// thread empties.
    pub async fn fetch_until(
        &self,
        resolved: &Resolved,
        store: &Store,
        progress: &dyn Progress,
        late: impl Future<Output = ()>,
    ) -> Result<Fetched> {
        self.room(resolved, store)?;
        let mut made = Made::default();
        let error = match select(pin!(self.fetch_all(resolved, store, progress, &mut made)), pin!(late)).await {
            Either::Left((Ok(fetched), _)) => return Ok(fetched),
            Either::Left((Err(error), _)) => error,
            Either::Right(_) => {
                let (what, after) = (resolved.reference.to_string(), self.limits.deadline);
                Error::Deadline { operation: "fetch", what, after }
            }
        };
        let Error::NoSpace { operation, why } = error else {
            // They need not be fetched again. A store that hangs is not waited for without end.
            if let Ok(Err(error)) = tokio::time::timeout(KEPT_WITHIN, made.keep(resolved, store)).await {
                tracing::warn!(%error, "layers that were finished are not kept");
            }
            return Err(error);
        };
        // A full disk gets back what this took.
        drop(made);
        let emptied = store.clone();
        let _ = blocking("the emptier of the trash", move || emptied.empty_trash()).await;
        let figures = store.space().map_or_else(
            |_| String::new(),
            |space| format!("; {} bytes and {} inodes are free", space.bytes_free, space.inodes_free),
        );
        Err(Error::NoSpace { operation, why: format!("{why}{figures}") })
    }

    async fn fetch_all(
        &self,
        resolved: &Resolved,
        store: &Store,
        progress: &dyn Progress,
        made: &mut Made,
    ) -> Result<Fetched> {
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
        self.several(&source, wanted, store, progress, &mut made.ready).await?;
        fetched.layers = self.settle_all(&source, resolved, names, made, store, progress).await?;
        fetched.elapsed = start.elapsed();
        Ok(fetched)
    }

    /// Fetches and unpacks layers into `ready`, a few at a time, by index; stops at the first error.
    async fn several(
        &self,
        source: &Source,
        wanted: Vec<(usize, &Layer)>,
        store: &Store,
        progress: &dyn Progress,
        ready: &mut HashMap<usize, Ready>,
    ) -> Result<()> {
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
                Some((_, _, Err(error))) => return Err(error),
                None => return Ok(()),
            }
        }
    }

    /// Bottom first: names every layer, settles those that ask something of the ones below, publishes all that are new.
    async fn settle_all(
        &self,
        source: &Source,
        resolved: &Resolved,
        names: Vec<Option<LayerId>>,
        made: &mut Made,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Vec<LayerId>> {
        let mut below: Vec<LayerId> = Vec::new();
        let Made { ready, named } = made;
        for (index, (layer, name)) in resolved.layers.iter().zip(names).enumerate() {
            let plain = layer.id();
            if let Some(name) = name.or_else(|| named.iter().any(|(_, id)| *id == plain).then_some(plain)) {
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
                named.push((done.staged(), plain));
                continue;
            }
            let id = plain.on(chain(&below));
            if !store.has_layer(&id) {
                let lowers = folders(&below, named, store)?;
                let settled = self.settle(layer, done, lowers).await;
                named.push((settled.map_err(|error| error.in_layer(layer.diff_id))?, id));
            }
            below.push(id);
        }
        publish(store, std::mem::take(named)).await?;
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
                let from = Origin { endpoints, repository, mirrored: AtomicBool::new(false) };
                let error = match self.one_of_registry(&from, index, layer, store, progress).await {
                    Err(error) if !matches!(error, Error::NoSpace { .. }) => error,
                    result => return result,
                };
                // A mirror may send anything under this digest: what comes of it says nothing yet about the layer.
                let (true, [.., own]) = (from.mirrored.into_inner(), endpoints.as_slice()) else { return Err(error) };
                progress.retry(&layer.digest.to_string(), Duration::ZERO, &error.to_string());
                let own = Origin { endpoints: std::slice::from_ref(own), repository, mirrored: AtomicBool::new(false) };
                match self.one_of_registry(&own, index, layer, store, progress).await {
                    // Nobody is there: what is wrong with the mirror's is all there is to be said.
                    Err(again) if again.transient() => Err(error),
                    result => result,
                }
            }
        }
    }

    async fn one_of_registry(
        &self,
        from: &Origin<'_>,
        index: usize,
        layer: &Layer,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Ready> {
        let (sender, receiver) = tokio::sync::mpsc::channel(PIECES);
        let pieces = Pieces::new(receiver);
        let stop = Stop::default();
        let switch = Arc::clone(&stop.0);
        let worker = self.worker(pieces, layer, store, stop);
        let wanted = Wanted { repository: from.repository, digest: layer.digest, size: layer.size };
        let report = |done| progress.layer(index, &layer.digest, done, layer.size, LayerState::Fetching);
        let sending = async {
            // The sender goes when the pump ends, and with it the worker.
            let sender = sender;
            let pumping = pin!(pump(&self.registry, from.endpoints, wanted, &sender, &from.mirrored, progress, report));
            let waking = pin!(async {
                // A worker that waits for the network sees neither its processes end nor the store fill up. Where the
                // channel has no room it does not wait yet.
                if self.unpacker.is_none() {
                    return std::future::pending::<Infallible>().await;
                }
                wake(pin!(switch.ended()), || drop(sender.try_send(Bytes::new()))).await
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
            Reserve::new(&store, limits.reserve).check()?;
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
                Reserve::new(staged.store(), limits.reserve).check()?;
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

/// Calls `wake` now and then, and as soon as something has `ended`.
async fn wake(mut ended: Pin<&mut impl Future<Output = ()>>, wake: impl Fn()) -> Infallible {
    while tokio::time::timeout(TICK, &mut ended).await.is_err() {
        wake();
    }
    loop {
        wake();
        tokio::time::sleep(TICK).await;
    }
}

/// Folders of the layers below, nearest first, published or about to be.
fn folders(below: &[LayerId], named: &[(Staged, LayerId)], store: &Store) -> Result<Vec<OwnedFd>> {
    below
        .iter()
        .rev()
        .map(|id| match named.iter().find(|(_, other)| other == id) {
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
