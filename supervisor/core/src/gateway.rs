//! What a gateway and a sandbox say to each other, and what a sandbox does about it: `docs/GATEWAY.md`.
//!
//! In: a desired state, what was acted on before, the updates so far. Out: [`next`], what follows from that. Must not: do
//! I/O or wait; hold anything secret. Readers must ignore fields they do not know, but those of [`Want`]: what is not
//! understood there is refused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    code::Code,
    ids::{Generation, ImageRef, UpdateId},
    journal::Revision,
    wire::{API_VERSION, Document, Event, Ordered, Outcome, PhaseName, Problem, UpdateView},
};

/// Longest policy, in bytes, as everywhere.
pub const POLICY_BYTES: usize = 1 << 20;
/// Longest document a sandbox takes from a gateway: a policy, escaped, and what is around it.
pub const DESIRED_BYTES: usize = 4 << 20;
/// Longest signed order, in bytes.
const ORDER_BYTES: usize = 64 << 10;
/// Longest reason, in characters.
const REASON: usize = 512;

/// What is wanted: exactly one of `image`, `rollback` and `order`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Want {
    /// Run this image. From a registry: a gateway has no say over files of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// With `image`: under this policy, YAML text. The one in force is kept where absent. With `order`: the text whose digest
    /// the order has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// With `image`: take it although it failed before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// With `image`: take a policy wider than the one in force. Refused unless the spec says `gateway.allowWider`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_wider: bool,
    /// Go back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Back>,
    /// Do what this signed order says, a compact JWS. The sandbox judges it as on every other channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// Why, in the asker's words; at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Where to go back to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Back {
    /// The previous generation where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Generation>,
}

impl Want {
    /// Why nobody could do that; `Ok` where it makes sense.
    pub fn check(&self) -> Result<(), String> {
        let asks = [self.image.is_some(), self.rollback.is_some(), self.order.is_some()];
        if asks.iter().filter(|asked| **asked).count() != 1 {
            return Err("exactly one of image, rollback and order is taken".to_owned());
        }
        if self.image.is_none() && (self.force || self.allow_wider) {
            return Err("force and allowWider go with an image".to_owned());
        }
        if self.rollback.is_some() && self.policy.is_some() {
            return Err("a policy goes with an image or an order".to_owned());
        }
        if self.order.as_ref().is_some_and(|order| order.len() > ORDER_BYTES || !order.is_ascii()) {
            return Err("an order is a compact JWS of at most 64 KiB".to_owned());
        }
        if let Some(ImageRef::Layout { .. }) = self.image {
            return Err("an image from a gateway comes from a registry, not from a file of the sandbox".to_owned());
        }
        if self.policy.as_ref().is_some_and(|policy| policy.len() > POLICY_BYTES) {
            return Err("the policy is longer than 1 MiB".to_owned());
        }
        if self.policy.as_ref().is_some_and(|policy| policy.trim().is_empty()) {
            return Err("the policy is empty: write it out, or leave it out to keep the one in force".to_owned());
        }
        if self.reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON) {
            return Err(format!("the reason is longer than {REASON} characters"));
        }
        Ok(())
    }
}

/// `GET /v1/sandboxes/{name}/desired`: the newest thing that is wanted of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Names the gateway's store: revisions of another one are another count.
    pub gateway: String,
    /// Rises by one with each change; 0 where nothing was ever wanted.
    pub revision: u64,
    /// What is wanted.
    pub want: Option<Want>,
}

impl Desired {
    /// Reads one. Where all but `want` makes sense, a reader is told which revision it cannot obey.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let whole: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|error| Unreadable { revision: None, why: plain(&error.to_string()) })?;
        let named = whole.get("gateway").and_then(serde_json::Value::as_str).filter(|name| is_id(name));
        let named = named.zip(whole.get("revision").and_then(serde_json::Value::as_u64));
        let revision = named.map(|(gateway, revision)| (gateway.to_owned(), revision));
        let unreadable = |why: String| Unreadable { revision: revision.clone(), why: plain(&why) };
        let desired: Self = serde_json::from_value(whole).map_err(|error| unreadable(error.to_string()))?;
        if desired.api_version != API_VERSION {
            return Err(unreadable(format!("apiVersion is not {API_VERSION}")));
        }
        if revision.is_none() {
            return Err(unreadable("gateway is not 32 hex digits".to_owned()));
        }
        if let Some(want) = &desired.want {
            want.check().map_err(unreadable)?;
        }
        Ok(desired)
    }

    /// Whether a signed order is wanted.
    pub fn orders(&self) -> bool {
        self.want.as_ref().is_some_and(|want| want.order.is_some())
    }

    /// The entity tag of this document.
    pub fn tag(&self) -> String {
        format!("\"{}.{}\"", self.gateway, self.revision)
    }
}

/// A desired state that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the desired state: {why}")]
pub struct Unreadable {
    /// Gateway and revision, where these could be made out.
    pub revision: Option<(String, u64)>,
    /// Why.
    pub why: String,
}

/// Text of the other side's, fit for a log and a terminal: a line of at most 300 characters.
pub fn plain(text: &str) -> String {
    text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Names a store, of a gateway or a sandbox: 32 lower-case hex digits.
pub fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Answer to a status: what the gateway has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Received {
    /// Names the gateway's store.
    pub gateway: String,
    /// Updates of the sandbox's store whose reports it has, the last 96.
    pub reports: Vec<UpdateId>,
    /// Number of the newest event of that store it has, 0 where it has none; nothing where it takes no events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
}

/// Most events in one [`Batch`].
pub const BATCH: usize = 64;

/// `POST /v1/sandboxes/{name}/events`: what happened, in the order of its numbers. What the gateway has is left out; numbers
/// that are missing were lost, or tell of progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Names the sandbox's store, which numbers its events.
    pub store: String,
    /// At most [`BATCH`]. The evidence of an update is in its report alone.
    #[schemars(with = "Vec<Event>")]
    pub events: Vec<serde_json::Value>,
}

/// `POST /v1/sandboxes/{name}/reports`: how something ended. Taken any number of times, kept once for each `store` and
/// `update.id` (or, where no update came of it, for each `revision`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Names the sandbox's store, which gave the update its number.
    pub store: String,
    /// The gateway that asked for it, if one did.
    pub gateway: Option<String>,
    /// The revision that asked for it.
    pub revision: Option<u64>,
    /// Nothing more is done for that revision. Where this is false, it is tried again.
    pub settled: bool,
    /// The record, with evidence.
    pub update: Option<UpdateView>,
    /// Why no update came of the revision at all.
    pub problem: Option<Problem>,
    /// Of a signed order that was taken and begins no update: what it was. Left out where Molt was started again since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered: Option<Ordered>,
}

/// How far a revision has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// The sandbox has not been heard to do anything about it.
    Waiting,
    /// The sandbox is at it.
    UnderWay,
    /// It failed for a passing reason, and is tried again.
    Retrying,
    /// It ended; the report says how.
    Done,
    /// Another one took its place before it ended.
    Superseded,
}

/// `GET /v1/sandboxes/{name}/revisions/{revision}`: one thing that was wanted, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionView {
    /// Which.
    pub revision: u64,
    /// What was wanted; the policy is left out where the revision is not the newest.
    pub want: Want,
    /// Who wanted it.
    pub by: String,
    /// When.
    pub since: String,
    /// How far it is.
    pub stage: Stage,
    /// Where the sandbox is with it.
    pub phase: Option<PhaseName>,
    /// For people.
    pub message: String,
    /// How it ended, or failed last.
    pub report: Option<Report>,
    /// When the sandbox was last heard of.
    pub seen: Option<String>,
}

/// `GET /v1/sandboxes`: one sandbox in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxView {
    /// Its name.
    pub name: String,
    /// Newest revision.
    pub revision: u64,
    /// How far that is; none where nothing was wanted yet.
    pub stage: Option<Stage>,
    /// Image that runs.
    pub image: Option<ImageRef>,
    /// Whether its workload is ready.
    pub ready: bool,
    /// Where its machine is.
    pub phase: Option<PhaseName>,
    /// When it was last heard of.
    pub seen: Option<String>,
}

/// `GET /v1/sandboxes/{name}`: everything the gateway knows of a sandbox but its reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecord {
    /// The same in short.
    pub sandbox: SandboxView,
    /// What is wanted.
    pub desired: Desired,
    /// The status document it sent last.
    pub status: Option<Document>,
}

/// What a sandbox does about a desired state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: nothing is wanted, it is done, or it is older than what was done.
    Rest,
    /// Ask the machine for it.
    Act,
    /// This update is under way for it.
    Wait(UpdateId),
    /// Ask for it again, in a while: this update failed for a passing reason.
    Again(UpdateId),
}

/// What to do about `desired`, where `last` is the revision that was acted on last (durably, with the number of its
/// update), and `updates` are those under way and the last that ended.
pub fn next(desired: &Desired, last: Option<&Revision>, updates: &[UpdateView]) -> Next {
    if desired.want.is_none() {
        return Next::Rest;
    }
    let Some(last) = last.filter(|last| last.gateway == desired.gateway) else { return Next::Act };
    if desired.revision != last.number {
        return if desired.revision > last.number { Next::Act } else { Next::Rest };
    }
    match updates.iter().rev().find(|view| view.id == last.update) {
        Some(view) => match view.outcome {
            None => Next::Wait(view.id),
            Some(outcome) if settled(outcome, view.reason) => Next::Rest,
            Some(_) => Next::Again(view.id),
        },
        // It got past its gate, or ended, and the history of that is gone.
        None if last.done => Next::Rest,
        // It was interrupted before it touched anything, and nobody else remembers it.
        None => Next::Act,
    }
}

/// Whether an update that ended so is the end of what was wanted. What a registry, a deadline or a stop of Molt did may be
/// otherwise the next time; anything else would be the same again.
pub fn settled(outcome: Outcome, reason: Option<Code>) -> bool {
    let passing = matches!(
        reason,
        Some(
            Code::RegistryUnreachable
                | Code::RegistryUnavailable
                | Code::DeadlineExceeded
                | Code::Interrupted
                | Code::Busy
        )
    );
    !(passing && matches!(outcome, Outcome::Aborted | Outcome::Refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn desired(revision: u64) -> Desired {
        let want = Want { image: "localhost/app:2".parse().ok(), ..Want::default() };
        Desired { api_version: API_VERSION.to_owned(), gateway: ID.to_owned(), revision, want: Some(want) }
    }

    fn last(number: u64, update: u64, done: bool) -> Revision {
        Revision {
            gateway: ID.to_owned(),
            host: "gw".to_owned(),
            number,
            update: UpdateId(update),
            done,
            order: None,
            came: None,
        }
    }

    fn view(id: u64, outcome: Option<Outcome>, reason: Option<Code>) -> UpdateView {
        UpdateView {
            id: UpdateId(id),
            kind: "update".to_owned(),
            image: None,
            from: None,
            to: None,
            outcome,
            reason,
            message: String::new(),
            downtime_us: None,
            unready_us: None,
            by: String::new(),
            note: None,
            started: String::new(),
            ended: None,
            evidence: None,
            event: None,
        }
    }

    #[test]
    fn a_revision_is_acted_on_once_and_only_the_newest_counts() {
        assert_eq!(next(&desired(1), None, &[]), Next::Act);
        assert_eq!(next(&desired(3), Some(&last(2, 5, true)), &[]), Next::Act);
        assert_eq!(next(&desired(1), Some(&last(2, 5, true)), &[]), Next::Rest, "late");
        let under_way = view(5, None, None);
        assert_eq!(next(&desired(2), Some(&last(2, 5, false)), &[under_way]), Next::Wait(UpdateId(5)));
        for outcome in [Outcome::Confirmed, Outcome::RolledBack, Outcome::Refused, Outcome::Noop, Outcome::Degraded] {
            let ended = view(5, Some(outcome), Some(Code::KnownBad));
            assert_eq!(next(&desired(2), Some(&last(2, 5, false)), &[ended]), Next::Rest, "{outcome:?}");
        }
        assert_eq!(next(&Desired { want: None, ..desired(0) }, None, &[]), Next::Rest);
    }

    #[test]
    fn what_was_interrupted_before_its_gate_is_done_again_and_what_passed_it_never() {
        assert_eq!(next(&desired(2), Some(&last(2, 5, false)), &[]), Next::Act);
        assert_eq!(next(&desired(2), Some(&last(2, 5, true)), &[]), Next::Rest);
        let other = view(6, Some(Outcome::Confirmed), None);
        assert_eq!(next(&desired(2), Some(&last(2, 5, true)), &[other]), Next::Rest);
    }

    #[test]
    fn a_registry_that_is_away_is_asked_again_and_a_refusal_is_final() {
        let away = view(5, Some(Outcome::Aborted), Some(Code::RegistryUnreachable));
        assert_eq!(next(&desired(2), Some(&last(2, 5, false)), &[away]), Next::Again(UpdateId(5)));
        let missing = view(5, Some(Outcome::Aborted), Some(Code::NotFound));
        assert_eq!(next(&desired(2), Some(&last(2, 5, false)), &[missing]), Next::Rest);
        // Never after the gate, whatever the reason.
        let back = view(5, Some(Outcome::RolledBack), Some(Code::Interrupted));
        assert_eq!(next(&desired(2), Some(&last(2, 5, false)), &[back]), Next::Rest);
    }

    #[test]
    fn another_store_of_a_gateway_is_another_count() {
        let other = Desired { gateway: "f".repeat(32), ..desired(1) };
        assert_eq!(next(&other, Some(&last(9, 5, true)), &[]), Next::Act);
    }

    #[test]
    fn what_cannot_be_obeyed_names_its_revision() {
        let read = |text: &str| Desired::read(text.as_bytes());
        let good = serde_json::to_string(&desired(7)).unwrap();
        assert_eq!(read(&good).unwrap(), desired(7));
        assert_eq!(read("<html>").unwrap_err().revision, None);
        assert_eq!(read("{}").unwrap_err().revision, None);
        for want in [
            r#"{"image": "localhost/app:2", "teleport": true}"#,
            r#"{"image": "localhost/app:2", "rollback": {}}"#,
            r#"{"image": "oci:/tmp/x"}"#,
            r#"{"policy": "version: 1"}"#,
            r#"{"rollback": {}, "policy": "version: 1"}"#,
            r#"{"order": "a.b.c", "force": true}"#,
            r#"{"image": "localhost/app:2", "policy": " \n"}"#,
            r#"{"order": "a.b.c", "policy": ""}"#,
            r#"{"order": "\u00e4.b.c"}"#,
            r#"{"rollback": {}, "allowWider": true}"#,
            "{}",
        ] {
            let text =
                format!(r#"{{"apiVersion": "{API_VERSION}", "gateway": "{ID}", "revision": 7, "want": {want}}}"#);
            assert_eq!(read(&text).unwrap_err().revision, Some((ID.to_owned(), 7)), "{want}");
        }
        let newer = good.replace(API_VERSION, "molt.dev/v9");
        assert_eq!(read(&newer).unwrap_err().revision, Some((ID.to_owned(), 7)));
        let hostile = good.replace("\"image\"", "\"\\u001b[2Jimage\"");
        assert!(!read(&hostile).unwrap_err().why.contains('\u{1b}'), "a gateway writes to a terminal");
        let long = Want { order: Some("a".repeat(ORDER_BYTES + 1)), ..Want::default() };
        assert!(long.check().is_err());
        let order = Want { order: Some("a.b.c".to_owned()), policy: Some("version: 1".to_owned()), ..Want::default() };
        assert_eq!(order.check(), Ok(()));
        // Fields beside `want` are for those who know them.
        assert!(read(&good.replacen('{', r#"{"more": 1, "#, 1)).is_ok());
    }
}
