//! `Staging`: the generation on disk, synced, under its number.
//!
//! In: a draft, its layers, its number. Out: its record. Must not: run anything but the preStage hook, which runs in the
//! old generation; wait for ever.

use molt_core::{
    code::Code,
    generation::{LayerName, Record},
    ids::Generation,
};

use super::{Context, Fault, plan::Draft};
use crate::{aside, timer::timeout};

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
    let deadline = context.spec.update.pull_deadline.as_duration();
    // A sync of a disk that does not answer cannot be given up; whoever waits for it can.
    let work = aside::run("stage", move || store.stage(&written, &draft.policy));
    timeout(deadline, work)
        .await
        .map_err(|_| {
            let message =
                format!("the generation was not on disk after {} s (update.pullDeadline)", deadline.as_secs());
            Fault::new(Code::DeadlineExceeded, message)
        })?
        .ok_or_else(|| Fault::new(Code::Internal, "staging the generation ended without a result"))??;
    Ok(record)
}
