//! What is in force for a generation, kept beside it: what a later update is compared with where nothing runs.
//!
//! In: an armed generation and what it reported. Out: `confinement.json`, and warnings. Must not: keep what ran before from
//! starting.

use std::sync::Arc;

use molt_core::{code::Code, confined::InForce, ids::Generation, wire::What};

use super::{
    Context, Fault,
    arm::{Against, Order},
};

/// Keeps what is in force beside the generation, and says in what it is wider than what was there: another spec, or a path
/// that leads elsewhere. What ran before starts on a full or failing disk, too: only what a later update is compared with is
/// older then.
pub(super) async fn keep(context: &Arc<Context>, order: &Order, in_force: &InForce) -> Result<(), Fault> {
    let generation = order.record.generation;
    let warn = |message: String| {
        tracing::warn!("{message}");
        context.events.publish(order.update, What::Warning { message });
    };
    if let Some(why) = order.rootfs.read_only {
        warn(why.to_owned());
    }
    match written(context, generation, in_force).await {
        Ok(wider) => {
            for more in wider {
                warn(format!("generation {generation} may do more than when it was armed last: {more}"));
            }
            Ok(())
        }
        Err(fault) if matches!(order.against, Against::Nothing) => {
            warn(format!("{}; what a later update is compared with may be older", fault.message));
            Ok(())
        }
        Err(fault) => Err(fault),
    }
}

/// Writes it; what is there already is not written again. In what it is wider, in words.
async fn written(context: &Arc<Context>, generation: Generation, in_force: &InForce) -> Result<Vec<String>, Fault> {
    let Some(store) = context.store.clone() else { return Ok(Vec::new()) };
    let in_force = in_force.clone();
    let kept = move || {
        let before = store.confinement(generation);
        store.keep_confinement(generation, &in_force)?;
        let wider = before.map(|before| molt_policy::compare(&before, &in_force)).unwrap_or_default();
        Ok(wider.iter().map(ToString::to_string).collect())
    };
    let ended = || Fault::new(Code::Internal, "keeping what is in force ended without a result");
    crate::aside::run("keep", kept).await.ok_or_else(ended)?
}
