//! A dispatcher in a state, with nothing behind it, for the tests of what it answers.
//!
//! In: a state, the fields of a spec. Out: a dispatcher whose loop does not run. Must not: be compiled into the product.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use molt_core::{
    machine::State,
    spec::{self, Spec},
};
use tokio::sync::{mpsc, watch};

use super::{Dispatcher, Facts, Start, empty_view};
use crate::{
    cli::InitArgs,
    command::Handle,
    effects::Context,
    observe::{events::EventLog, now::Now, output::OutputRing},
    preflight::IdMap,
    rootfs::Parts,
    store::{audit::Audit, memory::Remembered},
    triggers::{signal::Reaped, spec::Source},
    workload::shim::Shim,
};

/// It has no store. To be made within a runtime.
pub(super) fn dispatcher(state: State, spec: &str) -> Dispatcher {
    let spec = spec.replace('\n', "\n  ");
    let spec = spec::parse(&format!("apiVersion: molt.dev/v1alpha1\nkind: Sandbox\nspec:\n  {spec}\n")).unwrap();
    let shown = spec.to_document()["spec"].clone();
    let (view, seen) = watch::channel(empty_view(&spec.name, shown));
    let (commands, _) = mpsc::channel(1);
    let (events, output, audit, now) = (EventLog::new(0, []), OutputRing::new(), Audit::default(), Now::new());
    let handle = Handle {
        commands,
        view: seen,
        now: now.clone(),
        events: events.clone(),
        output: output.clone(),
        audit: audit.clone(),
    };
    Dispatcher::new(Start {
        context: Arc::new(context(spec, handle)),
        state,
        journal: None,
        answers: mpsc::unbounded_channel().0,
        brought: mpsc::unbounded_channel().0,
        view,
        history: VecDeque::new(),
        remembered: Remembered::default(),
        now,
        facts: Facts::default(),
    })
}

fn context(spec: Spec, handle: Handle) -> Context {
    let arguments = InitArgs {
        spec: None,
        image: None,
        policy: None,
        store: None,
        state: Vec::new(),
        name: None,
        socket: None,
        command: Vec::new(),
    };
    let own_root = std::fs::File::open("/").unwrap().into();
    let parts = Parts { state: Vec::new(), carried: Vec::new(), own_root, anchors: PathBuf::new() };
    Context {
        policy: String::new(),
        source: Source::new(&arguments),
        store: None,
        parts: Arc::new(parts),
        shim: Shim::keep(None).unwrap(),
        client: molt_oci::Client::new(&molt_oci::Registries::default(), molt_oci::Limits::default()).unwrap(),
        run: PathBuf::new(),
        events: handle.events.clone(),
        output: handle.output.clone(),
        audit: handle.audit.clone(),
        kernel_abi: 0,
        mapped: IdMap::read().unwrap(),
        tidy: Arc::default(),
        reaped: Reaped::default(),
        proc: molt_core::launch::ProcMode::Fresh,
        handle,
        spec,
    }
}
