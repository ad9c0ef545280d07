//! `Staging`: the generation on disk, synced, under its number.
//!
//! In: a draft, its layers, its number. Out: its record. Must not: run anything but the preStage hook, which runs in the
//! old generation.

use molt_core::{
    code::Code,
    generation::{LayerName, Record},
    ids::Generation,
};

use super::{Context, Fault, plan::Draft};

/// Makes it durable.
pub(crate) async fn stage(
    context: &Context,
    draft: Draft,
    layers: Vec<LayerName>,
    number: Generation,
) -> Result<Record, Fault> {
    let Some(store) = context.store.clone() else {
        return Err(Fault::new(Code::StoreUnusable, "there is no usable store; see condition Durable"));
    };
    let record = Record { generation: number, layers, ..draft.record };
    let written = record.clone();
    tokio::task::spawn_blocking(move || store.stage(&written, &draft.policy))
        .await
        .map_err(|error| Fault::new(Code::Internal, error.to_string()))??;
    Ok(record)
}
