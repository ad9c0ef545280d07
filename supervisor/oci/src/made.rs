//! What a fetch has made, and what of it outlives a failure.
//!
//! In: layers that are unpacked. Out: their names in the store. Must not: publish what is not whole.

use std::collections::HashMap;

use crate::{
    error::Result,
    fetch::blocking,
    layer::tree::Asks,
    resolve::Resolved,
    store::{LayerId, Staged, Store},
    unpacker::Unpacked,
};

/// A layer that is unpacked but not published.
pub(crate) enum Ready {
    /// By this process.
    Here(Staged, Asks),
    /// By a confined one.
    Apart(Unpacked),
}

impl Ready {
    /// Whether the layer is the same whatever it lies on.
    pub(crate) fn is_plain(&self) -> bool {
        match self {
            Self::Here(_, asks) => asks.is_empty(),
            Self::Apart(unpacked) => unpacked.left.is_plain(),
        }
    }

    pub(crate) fn staged(self) -> Staged {
        match self {
            Self::Here(staged, _) | Self::Apart(Unpacked { staged, .. }) => staged,
        }
    }
}

/// What a fetch has made so far. All of it goes when this is dropped.
#[derive(Default)]
pub(crate) struct Made {
    /// By index: unpacked, without a name.
    pub(crate) ready: HashMap<usize, Ready>,
    /// Whole and named.
    pub(crate) named: Vec<(Staged, LayerId)>,
}

impl Made {
    /// Publishes the layers that are whole, and have a name or depend on nothing.
    pub(crate) async fn keep(self, resolved: &Resolved, store: &Store) -> Result<()> {
        let Self { ready, mut named } = self;
        let plain = ready.into_iter().filter(|(_, done)| done.is_plain());
        named.extend(plain.filter_map(|(index, done)| Some((done.staged(), resolved.layers.get(index)?.id()))));
        publish(store, named).await
    }
}

/// Puts layers under their names.
pub(crate) async fn publish(store: &Store, layers: Vec<(Staged, LayerId)>) -> Result<()> {
    let store = store.clone();
    blocking("the publisher of layers", move || store.publish(layers)).await
}
