//! `molt init`: from the first instruction of PID 1 to the running dispatcher. Everything that can be refused is refused
//! here, with the line that mends it, before anything is touched.
//!
//! In: arguments. Out: the exit status of PID 1. Must not: touch the store before the checks; run anything unconfined.

mod found;

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use molt_core::{
    generation::{Record, VERSION},
    ids::{Generation, ImageRef},
    journal::Slot,
    machine::{Event, Found, Settings, State, Wanted},
    spec::{Confirm, Spec},
};
use molt_oci::unpacker::{Ended, Unpacker};
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::sync::{mpsc, watch};

use crate::{
    aside,
    cli::InitArgs,
    dispatch::{Dispatcher, Facts, Inputs, Start, empty_view},
    effects::{Context, plan},
    observe::{now::Now, output::OutputRing, standard},
    preflight::{self, Grade, IdMap},
    rootfs::{self, Parts, StateMount, carry, table::Table},
    store::{Store, audit::Audit, history::History, journal::Journal, memory::Remembered},
    triggers::{
        files,
        signal::{Reaped, Signals, TAKEN},
        spec::{Source, Taken},
    },
    workload::shim::Shim,
};

/// Where the store is unless told otherwise.
pub(crate) const STORE: &str = "/var/lib/molt";
/// How long the exit of PID 1 waits for work under way, and for a reader of its log that is late.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(1);

/// A start that cannot go on.
#[derive(Debug)]
struct Refusal {
    status: u8,
    text: String,
}

fn refuse<T>(status: u8, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, text: text.into() })
}

/// Runs PID 1.
pub(crate) fn run(args: &InitArgs) -> u8 {
    crate::observe::log::install();
    standard::take_panics();
    let status = start(args).unwrap_or_else(|refusal| {
        tracing::error!("{}", refusal.text);
        refusal.status
    });
    standard::last_words(LAST_WORDS);
    status
}

fn start(args: &InitArgs) -> Result<u8, Refusal> {
    let missing: Vec<String> = preflight::required()
        .into_iter()
        .filter(|finding| finding.grade == Grade::Missing)
        .map(|finding| {
            let mend = finding.mend.map(|mend| format!("\n    mend: {mend}")).unwrap_or_default();
            format!("  {}: {}{mend}", finding.what, finding.found)
        })
        .collect();
    if !missing.is_empty() {
        return refuse(125, format!("failed to start; nothing was touched:\n{}", missing.join("\n")));
    }
    let source = Source::new(args);
    let taken = source.read().or_else(|text| refuse(122, text))?;
    check_keys(&taken.spec)?;
    harden();
    let container = container();
    rootfs::remember_pretended_kernel();
    let _ = preflight::landlock_abi();
    // There is one thread still. The pod's secrets are the workload's, where it is given them, and nobody else's.
    if let Err(error) = molt_sys::process::forget_environment() {
        tracing::warn!("failed to forget the environment, which root can read at /proc/1/environ: {error}");
    }
    molt_sys::memory::limit_arenas(2);
    let signals = molt_sys::signal::descriptor(&TAKEN)
        .or_else(|error| refuse(125, format!("failed to take over signals: {error}")))?;

    let mut facts = Facts::default();
    let store = found::open_store(args, &taken.spec, &mut facts)?;
    let (store, journal, slot, known) = found::read_journal(args, &taken.spec, store, &mut facts)?;
    let socket = args.socket.clone().unwrap_or_else(|| PathBuf::from(&taken.spec.api.socket));
    let parts = hold_parts(args, &taken.spec, &socket, store.as_deref(), &mut facts)?;
    let shim = Shim::keep(store.as_ref().map(|store| store.path.as_path()))
        .or_else(|error| refuse(125, format!("failed to {error}; allow executable memory files or give a store")))?;
    aside::keep_a_thread().or_else(|error| refuse(125, format!("failed to start a thread: {error}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_else(|error| refuse(125, format!("failed to start the runtime: {error}")))?;
    let status = runtime
        .block_on(serve(source, taken, signals, facts, store, journal, slot, known, parts, shim, socket, container));
    // The history's last line gets its time; whatever else still runs the kernel ends with PID 1.
    runtime.shutdown_background();
    aside::finish(LAST_WORDS);
    status
}

#[expect(
    clippy::too_many_arguments,
    reason = "each is one thing that was made before; they meet here and nowhere else"
)]
async fn serve(
    source: Source,
    taken: Taken,
    signals: std::os::fd::OwnedFd,
    mut facts: Facts,
    store: Option<Arc<Store>>,
    journal: Option<Journal>,
    mut slot: Slot,
    mut known: BTreeMap<Generation, Record>,
    parts: Parts,
    shim: Shim,
    socket: PathBuf,
    container: molt_oci::ImageConfig,
) -> Result<u8, Refusal> {
    drop(tokio::spawn(standard::tend()));
    let listener = crate::api::bind(&socket)
        .or_else(|error| refuse(123, format!("failed to listen on {}: {error:#}", socket.display())))?;
    let tls = taken.spec.api.listen.as_ref().map(crate::api::Tls::bind).transpose();
    let tls = tls.or_else(|why| refuse(123, format!("api.listen: {why}")))?;
    let reaped = Reaped::default();
    let signals = Signals::new(signals, reaped.clone())
        .or_else(|error| refuse(125, format!("failed to watch signals: {error}")))?;
    let client = client(&taken.spec, reaped.clone())?;
    let wanted = taken.wanted();
    found::no_new_wish(&mut slot, wanted.as_ref(), &facts);
    let Taken { spec, policy, astray } = taken;
    if let Some(why) = astray {
        tracing::warn!("{why}; the annotations say nothing until that is mended");
        facts.spec_ignored = Some(("Invalid", why));
    }
    let audit = match store.as_deref().map(|store| History::open(&store.dir)) {
        Some(Ok(history)) => Audit::resume(history),
        Some(Err(error)) => return refuse(120, format!("failed to open the history: {error}")),
        None => Audit::default(),
    };
    // Asked once, for good: no answer would be a wrong one for every start of a workload.
    let mapped = IdMap::read().or_else(|text| refuse(125, text))?;
    let proc = preflight::proc_mode().or_else(|errno| refuse(125, format!("failed to try a procfs: {errno}")))?;
    let mut remembered = Remembered::open(store.as_deref());
    let (events, past) = found::past(&mut slot, &known, &audit, &mut remembered, &spec, &policy);
    let output = OutputRing::new();
    let run = socket.parent().map_or_else(|| PathBuf::from("/run/molt"), Path::to_path_buf);
    let document = spec.to_document();
    let shown = document.get("spec").cloned().unwrap_or_default();
    let (view_sender, view) = watch::channel(empty_view(&spec.name, shown));
    let (commands, commands_in) = mpsc::channel(16);
    let now = Now::new();
    let handle = crate::command::Handle {
        commands,
        view,
        now: now.clone(),
        events: events.clone(),
        output: output.clone(),
        audit: audit.clone(),
    };
    let context = Arc::new(Context {
        policy,
        source,
        store: store.clone(),
        parts: Arc::new(parts),
        shim,
        client,
        run,
        handle: handle.clone(),
        events,
        output,
        kernel_abi: preflight::landlock_abi(),
        mapped,
        tidy: Arc::default(),
        audit: audit.clone(),
        reaped,
        proc,
        spec,
    });
    own_root(&container, &context, &mut known)?;
    let up_ms = u64::try_from(crate::clock::boot().as_millis()).unwrap_or(u64::MAX);
    let found = Found { spec: wanted.or_else(|| asked_first(&context, &slot)), up_ms };
    let settings = Settings {
        auto_rollback: context.spec.update.auto_rollback,
        confirm_within_ms: (context.spec.update.confirm == Confirm::External)
            .then(|| context.spec.update.confirm_deadline.as_millis()),
        completes: context.spec.workload.completes,
        durable: store.as_ref().is_some_and(|store| !store.read_only),
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
    };
    if let Some(store) = store.clone() {
        // What an interrupted clean-up or pull left; nobody waits for it.
        aside::start("trash", move || {
            if let Err(error) = store.content.empty_trash() {
                tracing::warn!("failed to {}", crate::effects::chain(&error));
            }
        });
    }
    let (answers, events_in) = mpsc::unbounded_channel();
    let (brought, brought_in) = mpsc::unbounded_channel();
    admit(&context, handle, listener, tls)?;

    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), "molt starts");
    let dispatcher = Dispatcher::new(Start {
        context,
        state: State::new(slot, known, settings),
        journal,
        answers,
        brought,
        view: view_sender,
        history: past,
        remembered,
        now,
        facts,
    });
    let inputs = Inputs { events: events_in, brought: brought_in, commands: commands_in, signals };
    let status = dispatcher.run(Event::Boot(found), inputs).await;
    audit.finish();
    let _ = std::fs::remove_file(&socket);
    Ok(u8::try_from(status.clamp(0, 255)).unwrap_or(255))
}

/// Opens every way in that the spec asks for.
fn admit(
    context: &Context,
    handle: crate::command::Handle,
    listener: tokio::net::UnixListener,
    tls: Option<crate::api::Tls>,
) -> Result<(), Refusal> {
    let watched = context.source.watched(&context.spec);
    drop(tokio::spawn(files::watch(watched, handle.commands.clone())));
    if let Some(tls) = tls {
        drop(tokio::spawn(tls.serve(handle.clone())));
    }
    if let Some(gateway) = context.spec.gateway.clone() {
        let id = found::store_id(context.store.as_deref())?;
        let name = context.spec.name.clone();
        drop(tokio::spawn(crate::triggers::gateway::run(handle.clone(), gateway, name, id)));
    }
    drop(tokio::spawn(async move { crate::api::serve(handle, listener).await }));
    Ok(())
}

/// A key in the spec that is none is a mistake; a file may still come, and is read for each order.
fn check_keys(spec: &Spec) -> Result<(), Refusal> {
    if let Some(note) = spec.orders.shared_audience(&spec.name) {
        tracing::warn!("{note}");
    }
    for (index, key) in spec.orders.keys.iter().enumerate() {
        let Err(why) = crate::triggers::order::key::Key::of(key) else { continue };
        if key.key.is_some() {
            return refuse(122, format!("the spec is not valid:\n  spec.orders.keys[{index}].key: {why}"));
        }
        tracing::warn!("orders of the key '{}' are refused for now: {why}", key.id);
    }
    Ok(())
}

/// PID 1 shows nothing of itself to anyone.
fn harden() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(errno) = setrlimit(Resource::Core, none) {
        tracing::warn!(%errno, "failed to forbid core dumps");
    }
    if let Err(errno) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%errno, "failed to become undumpable");
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
}

fn table() -> Result<Table, Refusal> {
    Table::read().or_else(|error| refuse(125, format!("failed to read the table of mounts: {error}")))
}

/// Holds PID 1's own mounts, and makes a state folder that is not there.
fn hold_parts(
    args: &InitArgs,
    spec: &Spec,
    socket: &Path,
    store: Option<&Store>,
    facts: &mut Facts,
) -> Result<Parts, Refusal> {
    let mut state = Vec::new();
    for path in &spec.state {
        if !Path::new(path).exists() {
            std::fs::create_dir_all(path).or_else(|error| refuse(122, format!("failed to make {path}: {error}")))?;
            // Nobody's yet: the default user may write it. Any other owner is the operator's to choose.
            let id = rustix::fs::Uid::from_raw(crate::rootfs::users::DEFAULT_ID);
            let group = rustix::fs::Gid::from_raw(crate::rootfs::users::DEFAULT_ID);
            if let Err(errno) = rustix::fs::chown(path.as_str(), Some(id), Some(group)) {
                tracing::debug!(%errno, "state folder keeps its owner");
            }
        }
        if !carry::is_mount_point(&table()?, path) {
            let message = format!(
                "{path} is not a mount of its own: it goes with the container; mount a volume there to keep it"
            );
            tracing::warn!("{message}");
            facts.not_durable.push(message);
        }
        let source = carry::hold(path).or_else(|errno| refuse(122, format!("failed to open {path}: {errno}")))?;
        state.push(StateMount { path: path.clone(), source });
    }
    let table = table()?;
    let mut own = own_paths(args, spec, socket, store);
    for path in &own {
        if let Some(state) = carry::shown_with_state(&table, &spec.state, path) {
            return refuse(
                122,
                format!(
                    "{} is shown to the workload with the state at {state}, through a link or a second mount of the \
                     same volume; give Molt's own files a folder (a volume, or a subPath of one) that no state path \
                     contains",
                    path.display()
                ),
            );
        }
    }
    // An image that lies in a folder is Molt's business, too; the workload may be the one that puts it there.
    if let Some(ImageRef::Layout { path, .. }) = &spec.image {
        own.push(PathBuf::from(path));
    }
    let carried = carry::find(&table, &spec.state, &own, &spec.mounts)
        .or_else(|error| refuse(125, format!("failed to {error}")))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own_root =
        openat(CWD, "/", flags, Mode::empty()).or_else(|errno| refuse(125, format!("failed to open /: {errno}")))?;
    let anchors = store.map_or_else(|| PathBuf::from("/run/molt"), |store| store.path.clone()).join("anchors");
    Ok(Parts { state, carried, own_root, anchors })
}

/// Everything Molt keeps for itself: what shows any of it is never carried.
fn own_paths(args: &InitArgs, spec: &Spec, socket: &Path, store: Option<&Store>) -> Vec<PathBuf> {
    let beside = args.spec.as_deref().and_then(Path::parent).unwrap_or(Path::new("/"));
    let mut paths: Vec<PathBuf> = spec.claimed_paths().into_iter().map(|path| beside.join(path)).collect();
    let given =
        [args.spec.as_deref(), args.policy.as_deref(), store.map(|store| store.path.as_path()), socket.parent()];
    paths.extend(given.into_iter().flatten().map(Path::to_owned));
    paths
}

fn client(spec: &Spec, reaped: Reaped) -> Result<molt_oci::Client, Refusal> {
    let registries = molt_oci::Registries {
        insecure: spec.registries.insecure.clone(),
        credentials: spec.registries.credentials.as_ref().map(PathBuf::from),
        certificates: spec.registries.certificates.as_ref().map(PathBuf::from),
        mirrors: spec.registries.mirrors.clone(),
        parallel: usize::try_from(spec.update.parallel).unwrap_or(3),
    };
    let limits = molt_oci::Limits {
        reserve: spec.update.reserve.0,
        deadline: spec.update.pull_deadline.as_duration(),
        ..molt_oci::Limits::default()
    };
    let client = molt_oci::Client::new(&registries, limits)
        .or_else(|error| refuse(122, format!("failed to {}", crate::effects::chain(&error))))?;
    Ok(client.confined(Arc::new(unpacker(move |pid| reaped.ended(pid)).or_else(|error| refuse(125, error))?)))
}

/// Layers are unpacked by this file once more: held from here on, so that nothing that happens to its path matters.
pub(crate) fn unpacker(
    reaped: impl Fn(rustix::process::Pid) -> Option<Ended> + Send + Sync + 'static,
) -> Result<Unpacker, String> {
    let program = openat(CWD, "/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("failed to open Molt's own file (/proc/self/exe): {errno}; mount a /proc"))?;
    Unpacker::new(program.as_fd(), reaped).map_err(|error| format!("failed to {}", crate::effects::chain(&error)))
}

/// What the container's image and its runtime gave PID 1, as an image's configuration would say it. `HOME` is that of
/// PID 1's user, and `MOLT_…` is for PID 1.
fn container() -> molt_oci::ImageConfig {
    let env =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let env = env.filter(|(name, _)| name != "HOME" && !name.starts_with("MOLT_"));
    molt_oci::ImageConfig {
        env: env.map(|(name, value)| format!("{name}={value}")).collect(),
        working_dir: std::env::current_dir().unwrap_or_default().display().to_string(),
        ..molt_oci::ImageConfig::default()
    }
}

/// Generation 0, where there is a command to run in the container's own root.
fn own_root(
    container: &molt_oci::ImageConfig,
    context: &Context,
    known: &mut BTreeMap<Generation, Record>,
) -> Result<(), Refusal> {
    if context.spec.image.is_some() {
        return Ok(());
    }
    let none = molt_oci::ImageConfig::default();
    let policy = plan::Policy::read(&context.policy).or_else(|fault| refuse(122, fault.message))?;
    let mut record = Record {
        version: VERSION,
        generation: Generation(0),
        image: None,
        digest: None,
        layers: Vec::new(),
        policy_digest: policy.digest(&context.spec),
        // Without the container's environment: it may differ at every start, and that makes no other generation.
        settings_digest: plan::settings_digest(&context.spec, &plan::program(&context.spec, &none)),
        program: plan::program(&context.spec, container),
        since: crate::observe::log::now(),
    };
    let old = known.get(&Generation(0));
    if let Some(old) = old.filter(|old| old.same_triple(None, record.policy_digest, record.settings_digest)) {
        record.since.clone_from(&old.since);
    } else if let Some(Err(error)) = context.store.as_ref().map(|store| store.stage(&record, &context.policy)) {
        // It is no reason to leave another one lying, nor itself where nothing can be written.
        let read_only = context.store.as_ref().is_some_and(|store| store.read_only);
        let none = if read_only { known.is_empty() } else { known.keys().all(|other| *other == Generation(0)) };
        if none {
            return refuse(120, format!("failed to {error}"));
        }
        tracing::warn!("failed to {error}; generation 0 stays as it was staged last");
        return Ok(());
    }
    known.insert(Generation(0), record);
    Ok(())
}

/// Where the annotations say nothing and nothing was ever confirmed, the spec's own image is better than none.
fn asked_first(context: &Context, slot: &Slot) -> Option<Wanted> {
    let image = context.spec.image.clone().filter(|_| slot.confirmed.is_none());
    image.map(|image| Wanted { image: Some(image), policy: context.policy.clone(), texts: (None, None) })
}
