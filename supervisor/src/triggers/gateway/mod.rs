//! A gateway: Molt calls it, asks what is wanted, and tells what is. `docs/GATEWAY.md` has the protocol.
//!
//! In: `spec.gateway`, the snapshot. Out: commands, as from anybody else; status and reports, towards the gateway. Must not:
//! keep anything of its own on disk. What was acted on is in the journal, in one with the number of the update
//! (`Command::Revision`); what has yet to be reported is in the history, and the gateway says which of it it has.
//!
//! Three loops: [`listen`] hears the newest desired state, [`act`] does something about it, [`tell`] says what is.

mod act;
mod listen;
mod pace;
mod tell;

use std::{path::PathBuf, sync::Arc};

use molt_core::{gateway::Desired, spec};
use tokio::sync::{Notify, watch};

use crate::{
    command::{Command, Handle},
    gateway::dial::{Dial, Fault, Names},
};

/// What was heard last.
#[derive(Debug, Clone)]
enum Heard {
    /// What is wanted.
    Desired(Desired),
    /// A revision of a gateway that makes no sense, and why.
    Unreadable(String, u64, String),
}

impl Heard {
    fn revision(&self) -> (&str, u64) {
        match self {
            Self::Desired(desired) => (&desired.gateway, desired.revision),
            Self::Unreadable(gateway, revision, _) => (gateway, *revision),
        }
    }
}

/// What the loops share.
struct Shared {
    dial: Dial,
    settings: spec::Gateway,
    /// `/v1/sandboxes/NAME`.
    base: String,
    /// Names the store that gives updates their numbers.
    store: String,
    /// The gateway answers again: it may have lost what it was told.
    back: Notify,
}

/// The gateway of a spec; nothing is read or dialled yet.
pub(crate) fn dial(settings: &spec::Gateway) -> Result<Dial, Fault> {
    Dial::new(Names {
        url: settings.url.clone(),
        ca: settings.ca.as_ref().map(PathBuf::from),
        certificate: settings.certificate.as_ref().map(PathBuf::from),
        key: settings.key.as_ref().map(PathBuf::from),
        token: settings.token_file.as_ref().map(PathBuf::from),
    })
}

/// Talks to the gateway for as long as Molt runs.
pub(crate) async fn run(handle: Handle, settings: spec::Gateway, name: String, store: String) {
    let dial = match dial(&settings) {
        Ok(dial) => dial,
        Err(fault) => {
            tracing::error!("there is no gateway to talk to: {fault}");
            // It stays away: whoever looks at the status is to know.
            return Line { handle: &handle, reached: None }.tell(Err(fault.to_string())).await;
        }
    };
    // Before the first snapshot of the dispatcher nothing is known of what was acted on.
    let mut view = handle.view.clone();
    if view.changed().await.is_err() {
        return;
    }
    let shared = Arc::new(Shared { dial, settings, base: format!("/v1/sandboxes/{name}"), store, back: Notify::new() });
    let (newest, heard) = watch::channel(None);
    let (answers, answered) = watch::channel(None);
    tokio::join!(
        listen::listen(&shared, &handle, &newest),
        act::act(&shared, &handle, heard, &answers),
        tell::tell(&shared, &handle, answered),
    );
}

/// Says once that the gateway is away, and once that it is back: in the log and in the status.
struct Line<'a> {
    handle: &'a Handle,
    reached: Option<bool>,
}

impl Line<'_> {
    async fn lost(&mut self, fault: &Fault) {
        if self.reached != Some(false) {
            tracing::warn!("{fault}; the sandbox runs on, and the gateway is asked again");
            self.tell(Err(fault.to_string())).await;
        }
        self.reached = Some(false);
    }

    /// Whether it was away.
    async fn found(&mut self) -> bool {
        if self.reached == Some(false) {
            tracing::info!("the gateway answers again");
        }
        if self.reached != Some(true) {
            self.tell(Ok(())).await;
        }
        self.reached.replace(true) == Some(false)
    }

    async fn tell(&self, gateway: Result<(), String>) {
        // Where the dispatcher has ended nobody looks any more.
        let _ = self.handle.commands.send(Command::Reached { gateway }).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::api::fake;

    #[tokio::test]
    async fn a_gateway_that_cannot_be_dialled_is_told_to_be_away() {
        let json = serde_json::json!({"url": "https://gateway.example.com:99999/", "tokenFile": "/t"});
        let settings: spec::Gateway = serde_json::from_value(json).unwrap();
        let (commands, mut told) = mpsc::channel(16);
        let handle = Handle { commands, ..fake::start() };
        run(handle, settings, "sandbox".to_owned(), "0".repeat(32)).await;
        match told.recv().await {
            Some(Command::Reached { gateway: Err(why) }) => assert!(why.contains("invalid port"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
