//! Signed orders, once their signature is known to be good: what they say, and whether it may be done now.
//!
//! In: the claims of a token, the key that signed it, what the journal remembers, the wall clock. Out: what the journal
//! must remember before anything is done, or why nothing is. Must not: verify a signature, read a clock or a key; be less
//! strict for a friend. `supervisor/src/triggers/order` has the token itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    generation::Record,
    ids::{Digest, Generation, ImageRef, UpdateId},
    spec::OrderKey,
};

/// Version of the claims.
pub const VERSION: u32 = 1;
/// Most keys a spec may have, and most ratchets the journal holds.
pub const MAX_KEYS: usize = 8;
/// How far the signer's clock and this one may be apart, in seconds.
pub const SKEW_S: u64 = 60;
/// Longest hold, in seconds.
const HOLD_S: u64 = 366 * 86_400;
/// Longest text for people inside of an order, in characters.
const REASON: usize = 512;

/// What an order can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Operation {
    /// A new image.
    Update,
    /// Back to a generation that was confirmed.
    Rollback,
    /// Start what is staged.
    Apply,
    /// Give up an update before its gate.
    Cancel,
    /// Confirm the trial.
    Confirm,
    /// Reject the trial.
    Reject,
    /// Hold updates back.
    Hold,
    /// End the hold.
    Release,
    /// Raise the rollback floor, and nothing else.
    Floor,
}

impl Operation {
    /// The text, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Rollback => "rollback",
            Self::Apply => "apply",
            Self::Cancel => "cancel",
            Self::Confirm => "confirm",
            Self::Reject => "reject",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Floor => "floor",
        }
    }
}

/// The payload of a token. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of its own in the signed document")]
pub struct Claims {
    /// Always [`VERSION`].
    pub ver: u32,
    /// The sandbox it is for.
    pub aud: String,
    /// Greater than that of every order of this key taken before.
    pub seq: u64,
    /// When it was signed.
    pub iat: u64,
    /// Not taken before; `iat` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Not taken after.
    pub exp: u64,
    /// A name for the audit: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub jti: String,
    /// What is asked for.
    pub op: Operation,
    /// `update`: the image, with its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// `update`: SHA-256 of the policy's text; of the text in force where none travels with the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_digest: Option<Digest>,
    /// `update`: the policy's text, unless it travels beside the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// `update`: take a policy that allows more than the one in force.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_wider: bool,
    /// `update`: take an image that failed before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// `update`: stop after staging.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stage_only: bool,
    /// `rollback`: the generation; the previous one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Generation>,
    /// `rollback`: go below the floor. The key must be marked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downgrade: bool,
    /// `apply`, `cancel`, `confirm`, `reject`: only if this update is the one under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateId>,
    /// `hold`: seconds until it ends by itself; an hour where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Every `op`: generations below this one cannot be gone back to by hand any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Generation>,
    /// `update`, `rollback`, `hold`: why, at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why an order is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a token of the one form that is taken.
    #[error("the token is malformed: {0}")]
    Malformed(String),
    /// The spec has no such key.
    #[error("no key of spec.orders.keys has the id '{0}'")]
    UnknownKey(String),
    /// The key is there and cannot be used.
    #[error("the key '{key}' cannot be used: {why}")]
    KeyUnusable {
        /// Which.
        key: String,
        /// Why.
        why: String,
    },
    /// The header names another algorithm than the key has.
    #[error("the header says {said:?}, and the key is for {wanted}")]
    Algorithm {
        /// What the header says, cut.
        said: String,
        /// What the key is for.
        wanted: &'static str,
    },
    /// The signature is not the key's, or not over these bytes.
    #[error("the signature does not fit")]
    Signature,
    /// A claim is missing, of the wrong form, or has no meaning here.
    #[error("{0}")]
    Claims(String),
    /// For another sandbox.
    #[error("it is for {said:?}, and this sandbox is {wanted:?}")]
    Audience {
        /// What the order says, cut.
        said: String,
        /// What this sandbox is.
        wanted: String,
    },
    /// Its time has not come.
    #[error("it is not valid yet: it says {from}, and the clock says {now} (seconds since 1970)")]
    NotYet {
        /// Valid from.
        from: u64,
        /// The clock.
        now: u64,
    },
    /// Its time is over.
    #[error("it has expired: it says {exp}, and it is {now} at least (seconds since 1970){}", set_back(*.clock, *.now))]
    Expired {
        /// Valid until.
        exp: u64,
        /// What time it is at least, by the clock and by the orders taken before.
        now: u64,
        /// The clock.
        clock: u64,
    },
    /// Longer than the spec allows.
    #[error("it is valid for {lifetime} s, and spec.orders.maxLifetime allows {most} s")]
    Lifetime {
        /// Its own.
        lifetime: u64,
        /// The longest.
        most: u64,
    },
    /// Taken before, or overtaken.
    #[error(
        "its seq is {seq}, and the key '{key}' has been used up to {last}: it is a replay, or a later one came first"
    )]
    Replayed {
        /// The key.
        key: String,
        /// Its own.
        seq: u64,
        /// The newest.
        last: u64,
    },
    /// The key may not ask for this.
    #[error("the key '{key}' may not {what}")]
    Forbidden {
        /// The key.
        key: String,
        /// What not.
        what: String,
    },
    /// The image can change under its name.
    #[error("an order names its image by digest, as in HOST/PATH@sha256:HEX; '{0}' has none")]
    DigestMissing(String),
    /// The policy is not the one that was signed.
    #[error("the policy is not the one that was signed: {0}")]
    Policy(String),
    /// The floor only rises, and never above what is confirmed.
    #[error("{0}")]
    Floor(String),
}

fn set_back(clock: u64, now: u64) -> String {
    if clock < now { format!("; the clock was set back and says {clock}") } else { String::new() }
}

impl Refusal {
    /// One word from a closed list, for the audit.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::UnknownKey(_) => "unknown-key",
            Self::KeyUnusable { .. } => "key-unusable",
            Self::Algorithm { .. } => "algorithm",
            Self::Signature => "signature",
            Self::Claims(_) => "claims",
            Self::Audience { .. } => "audience",
            Self::NotYet { .. } => "not-yet-valid",
            Self::Expired { .. } => "expired",
            Self::Lifetime { .. } => "lifetime",
            Self::Replayed { .. } => "replayed",
            Self::Forbidden { .. } => "forbidden",
            Self::DigestMissing(_) => "digest-missing",
            Self::Policy(_) => "policy",
            Self::Floor(_) => "floor",
        }
    }
}

/// What the journal remembers of orders.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// One for each key that was used, the one used last at the end; at most [`MAX_KEYS`].
    pub ratchets: Vec<Ratchet>,
    /// Generations below it are not gone back to by hand.
    #[serde(default)]
    pub floor: Generation,
    /// The wall clock when an order was taken last, in seconds since 1970: it cannot be earlier now, whatever the clock
    /// says. It moves only within the time that a key has signed for, so a clock that was wrong for a while leaves no
    /// trace.
    #[serde(default)]
    pub clock: u64,
}

/// How far a key has been used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ratchet {
    /// Id of the key.
    pub key: String,
    /// `seq` of the newest order taken.
    pub seq: u64,
}

impl Memory {
    /// `seq` of the newest order of a key.
    pub fn last(&self, key: &str) -> Option<u64> {
        self.ratchets.iter().find(|ratchet| ratchet.key == key).map(|ratchet| ratchet.seq)
    }
}

/// Whom an order must be for, and how long it may be valid.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// This sandbox.
    pub audience: &'a str,
    /// From `iat` to `exp` at most, in seconds.
    pub max_lifetime_s: u64,
    /// Keys of the spec: their ratchets are kept.
    pub keys: &'a [OrderKey],
}

/// What is true when an order comes.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What the journal remembers.
    pub memory: Option<&'a Memory>,
    /// The generation that boots.
    pub confirmed: Option<Generation>,
    /// The wall clock, in seconds since 1970.
    pub now: u64,
    /// This very order was taken for the same revision of a gateway, and nothing was touched by it yet.
    pub again: bool,
}

/// Whether what `key` signed may be done now; if so, what the journal must hold before it is.
pub fn judge(claims: &Claims, key: &OrderKey, rules: Rules<'_>, facts: Facts<'_>) -> Result<Memory, Refusal> {
    claims.check()?;
    let mut memory = facts.memory.cloned().unwrap_or_default();
    if claims.aud != rules.audience {
        return Err(Refusal::Audience { said: cut(&claims.aud), wanted: rules.audience.to_owned() });
    }
    let now = in_time(claims, rules, memory.clock, facts.now)?;
    if let Some(last) = memory.last(&key.id).filter(|last| claims.seq < *last || (claims.seq == *last && !facts.again))
    {
        return Err(Refusal::Replayed { key: key.id.clone(), seq: claims.seq, last });
    }
    allowed(claims, key)?;
    if let Some(floor) = claims.floor {
        memory.floor = raised(floor, memory.floor, facts.confirmed)?;
    }
    memory.clock = now;
    memory.ratchets.retain(|ratchet| ratchet.key != key.id);
    if memory.ratchets.len() >= MAX_KEYS {
        // Keys the spec no longer has make place; there is one, as a spec has no more keys than there is place for.
        let spare = memory.ratchets.iter().position(|old| rules.keys.iter().all(|key| key.id != old.key));
        memory.ratchets.remove(spare.unwrap_or(0));
    }
    memory.ratchets.push(Ratchet { key: key.id.clone(), seq: claims.seq });
    Ok(memory)
}

/// What time it is at least, if the order is valid then.
fn in_time(claims: &Claims, rules: Rules<'_>, remembered: u64, clock: u64) -> Result<u64, Refusal> {
    let now = clock.max(remembered);
    let lifetime = claims.exp.saturating_sub(claims.iat);
    if lifetime > rules.max_lifetime_s {
        return Err(Refusal::Lifetime { lifetime, most: rules.max_lifetime_s });
    }
    let from = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
    if from > now.saturating_add(SKEW_S) {
        return Err(Refusal::NotYet { from, now });
    }
    if now > claims.exp.saturating_add(SKEW_S) {
        return Err(Refusal::Expired { exp: claims.exp, now, clock });
    }
    Ok(now)
}

fn allowed(claims: &Claims, key: &OrderKey) -> Result<(), Refusal> {
    let forbidden = |what: &str| Err(Refusal::Forbidden { key: key.id.clone(), what: what.to_owned() });
    if !key.operations.contains(&claims.op) {
        return forbidden(&format!("order {}: its operations are others", claims.op.as_str()));
    }
    if claims.floor.is_some() && !key.operations.contains(&Operation::Floor) {
        return forbidden("raise the rollback floor: floor is not among its operations");
    }
    if (claims.policy.is_some() || claims.allow_wider) && !key.policy {
        return forbidden("bring a policy: it is not marked policy: true");
    }
    if claims.downgrade && !key.downgrade {
        return forbidden("go below the rollback floor: it is not marked downgrade: true");
    }
    Ok(())
}

fn raised(floor: Generation, now: Generation, confirmed: Option<Generation>) -> Result<Generation, Refusal> {
    if floor < now {
        return Err(Refusal::Floor(format!("the rollback floor is {now} and only rises; the order says {floor}")));
    }
    match confirmed {
        Some(confirmed) if floor <= confirmed => Ok(floor),
        Some(confirmed) => Err(Refusal::Floor(format!(
            "the rollback floor can be {confirmed} at most, the generation that is confirmed; the order says {floor}"
        ))),
        None => Err(Refusal::Floor("nothing is confirmed yet, so there is no rollback floor to be raised".to_owned())),
    }
}

impl Claims {
    /// What no signature makes right: claims that do not go together, or that would be passed over.
    fn check(&self) -> Result<(), Refusal> {
        let wrong = |why: String| Err(Refusal::Claims(why));
        if self.ver != VERSION {
            return wrong(format!("ver is {}, and this Molt takes {VERSION}", self.ver));
        }
        if self.seq == 0 {
            return wrong("seq begins with 1".to_owned());
        }
        if self.exp <= self.iat || self.nbf.is_some_and(|nbf| nbf > self.exp) {
            return wrong("exp must be after iat, and not before nbf".to_owned());
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !(1..=64).contains(&self.jti.len()) || !self.jti.bytes().all(plain) {
            return wrong("jti must be 1 to 64 letters, digits, '.', '_' or '-'".to_owned());
        }
        if self.reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON) {
            return wrong(format!("reason is longer than {REASON} characters"));
        }
        let takes = takes(self.op);
        if let Some(field) = self.given().into_iter().find(|field| !takes.contains(field)) {
            return wrong(format!("{field} means nothing for op {}", self.op.as_str()));
        }
        match (self.op, &self.image) {
            (Operation::Update, None) => return wrong("op update needs an image".to_owned()),
            (Operation::Update, Some(ImageRef::Registry { digest: Some(_), .. })) => {}
            (Operation::Update, Some(image)) => return Err(Refusal::DigestMissing(image.to_string())),
            _ => {}
        }
        if self.op == Operation::Floor && self.floor.is_none() {
            return wrong("op floor needs a floor".to_owned());
        }
        if self.policy.is_some() && self.policy_digest.is_none() {
            return Err(Refusal::Policy("a policy needs its policyDigest".to_owned()));
        }
        if self.ttl.is_some_and(|ttl| !(1..=HOLD_S).contains(&ttl)) {
            return wrong("a hold lasts from 1 s to 366 days".to_owned());
        }
        Ok(())
    }

    /// The claims beyond those that every order has.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("image", self.image.is_some()),
            ("policyDigest", self.policy_digest.is_some()),
            ("policy", self.policy.is_some()),
            ("allowWider", self.allow_wider),
            ("force", self.force),
            ("stageOnly", self.stage_only),
            ("to", self.to.is_some()),
            ("downgrade", self.downgrade),
            ("update", self.update.is_some()),
            ("ttl", self.ttl.is_some()),
            ("floor", self.floor.is_some()),
            ("reason", self.reason.is_some()),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

/// The claims an operation has a use for.
fn takes(op: Operation) -> &'static [&'static str] {
    match op {
        Operation::Update => {
            &["image", "policyDigest", "policy", "allowWider", "force", "stageOnly", "floor", "reason"]
        }
        Operation::Rollback => &["to", "downgrade", "floor", "reason"],
        Operation::Apply | Operation::Cancel | Operation::Confirm | Operation::Reject => &["update", "floor"],
        Operation::Hold => &["ttl", "floor", "reason"],
        Operation::Release | Operation::Floor => &["floor"],
    }
}

/// The newest generation of an image of which all that are known lie below the floor: to run it again is to go below.
pub fn only_below(
    known: &BTreeMap<Generation, Record>,
    floor: Generation,
    digest: Option<Digest>,
) -> Option<Generation> {
    let of_it = known.values().filter(|record| record.digest.is_some() && record.digest == digest);
    of_it.map(|record| record.generation).max().filter(|newest| *newest < floor)
}

/// The beginning of a text that somebody else chose.
pub fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests;
