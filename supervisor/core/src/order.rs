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
    /// The order of this very `seq` was taken for the same revision of a gateway, and nothing was touched by it yet.
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
        if self.ttl == Some(0) {
            return wrong("a hold of no time holds nothing".to_owned());
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
mod tests {
    use super::*;
    use crate::spec::{Algorithm, Span};

    const NOW: u64 = 1_800_000_000;

    fn key() -> OrderKey {
        OrderKey {
            id: "release".to_owned(),
            algorithm: Algorithm::EdDSA,
            key: None,
            file: None,
            operations: vec![
                Operation::Update,
                Operation::Rollback,
                Operation::Confirm,
                Operation::Hold,
                Operation::Release,
                Operation::Floor,
            ],
            policy: true,
            downgrade: true,
        }
    }

    fn claims(op: Operation) -> Claims {
        let image = "registry.example.com/a/b@sha256:0000000000000000000000000000000000000000000000000000000000000000";
        Claims {
            ver: VERSION,
            aud: "molt:web".to_owned(),
            seq: 7,
            iat: NOW,
            nbf: None,
            exp: NOW + 300,
            jti: "a-1".to_owned(),
            op,
            image: (op == Operation::Update).then(|| image.parse().unwrap()),
            policy_digest: None,
            policy: None,
            allow_wider: false,
            force: false,
            stage_only: false,
            to: None,
            downgrade: false,
            update: None,
            ttl: None,
            floor: (op == Operation::Floor).then_some(Generation(3)),
            reason: None,
        }
    }

    fn judged(claims: &Claims, key: &OrderKey, memory: Option<&Memory>, now: u64) -> Result<Memory, Refusal> {
        let rules = Rules { audience: "molt:web", max_lifetime_s: 600, keys: std::slice::from_ref(key) };
        judge(claims, key, rules, Facts { memory, confirmed: Some(Generation(5)), now, again: false })
    }

    fn word(claims: &Claims) -> &'static str {
        let memory = Memory { floor: Generation(2), ..Memory::default() };
        judged(claims, &key(), Some(&memory), NOW).map_or_else(|refusal| refusal.word(), |_| "taken")
    }

    #[test]
    fn an_order_raises_its_keys_ratchet_and_no_other() {
        let other = Ratchet { key: "other".to_owned(), seq: 900 };
        let memory = Memory { ratchets: vec![other.clone()], floor: Generation(2), clock: 0 };
        let after = judged(&claims(Operation::Update), &key(), Some(&memory), NOW).unwrap();
        assert_eq!(after.ratchets, [other, Ratchet { key: "release".to_owned(), seq: 7 }]);
        assert_eq!((after.floor, after.clock), (Generation(2), NOW));
        for seq in [1, 6, 7] {
            let again = Claims { seq, ..claims(Operation::Update) };
            let refusal = judged(&again, &key(), Some(&after), NOW).unwrap_err();
            assert_eq!(refusal, Refusal::Replayed { key: "release".to_owned(), seq, last: 7 });
        }
        assert!(judged(&Claims { seq: 8, ..claims(Operation::Update) }, &key(), Some(&after), NOW).is_ok());
    }

    #[test]
    fn time_is_what_the_clock_says_and_never_earlier_than_the_last_order() {
        let order = claims(Operation::Confirm);
        let at = |now: u64, clock: u64| {
            let memory = Memory { clock, ..Memory::default() };
            judged(&order, &key(), Some(&memory), now).map_or_else(|refusal| refusal.word(), |_| "taken")
        };
        assert_eq!(at(NOW - SKEW_S - 1, 0), "not-yet-valid");
        assert_eq!(at(NOW - SKEW_S, 0), "taken");
        assert_eq!(at(NOW + 300 + SKEW_S, 0), "taken");
        assert_eq!(at(NOW + 300 + SKEW_S + 1, 0), "expired");
        // The clock was set back to when the order was still good.
        assert_eq!(at(NOW, NOW + 7200), "expired");
        let memory = Memory { clock: NOW + 7200, ..Memory::default() };
        let refusal = judged(&order, &key(), Some(&memory), NOW).unwrap_err();
        assert!(refusal.to_string().contains("set back"), "{refusal}");
        // And nobody's clock can push the memory beyond what a key signed for.
        let after = judged(&order, &key(), None, NOW + 300 + SKEW_S).unwrap();
        assert!(after.clock <= order.exp + SKEW_S);
    }

    #[test]
    fn an_order_is_valid_for_no_longer_than_the_spec_says() {
        assert_eq!(word(&Claims { exp: NOW + 600, ..claims(Operation::Confirm) }), "taken");
        assert_eq!(word(&Claims { exp: NOW + 601, ..claims(Operation::Confirm) }), "lifetime");
        assert_eq!(word(&Claims { exp: u64::MAX, ..claims(Operation::Confirm) }), "lifetime");
        assert_eq!(word(&Claims { iat: 0, ..claims(Operation::Confirm) }), "lifetime");
        assert_eq!(word(&Claims { nbf: Some(NOW + 200), ..claims(Operation::Confirm) }), "not-yet-valid");
        assert_eq!(word(&Claims { nbf: Some(0), ..claims(Operation::Confirm) }), "taken");
        let later = Claims { iat: NOW + 500, exp: NOW + 600, ..claims(Operation::Confirm) };
        assert_eq!(word(&later), "not-yet-valid");
    }

    #[test]
    fn the_floor_rises_up_to_what_is_confirmed_and_never_falls() {
        let floor = |floor: u32| Claims { floor: Some(Generation(floor)), ..claims(Operation::Floor) };
        assert_eq!([1, 2, 5, 6].map(|number| word(&floor(number))), ["floor", "taken", "taken", "floor"]);
        let after = judged(&floor(4), &key(), None, NOW).unwrap();
        assert_eq!(after.floor, Generation(4));
        let without = OrderKey { operations: vec![Operation::Update], ..key() };
        let order = Claims { floor: Some(Generation(4)), ..claims(Operation::Update) };
        assert_eq!(judged(&order, &without, None, NOW).unwrap_err().word(), "forbidden");
        let rules = Rules { audience: "molt:web", max_lifetime_s: 600, keys: &[] };
        let facts = Facts { memory: None, confirmed: None, now: NOW, again: false };
        assert_eq!(judge(&floor(1), &key(), rules, facts).unwrap_err().word(), "floor");
    }

    #[test]
    fn a_key_orders_what_it_is_marked_for() {
        let plain = OrderKey { policy: false, downgrade: false, ..key() };
        let refused = |claims: &Claims| judged(claims, &plain, None, NOW).unwrap_err().word();
        let digest = Some(Digest::from_bytes([1; 32]));
        let policy = Claims { policy: Some("x".into()), policy_digest: digest, ..claims(Operation::Update) };
        assert_eq!(refused(&policy), "forbidden");
        assert_eq!(refused(&Claims { allow_wider: true, ..claims(Operation::Update) }), "forbidden");
        assert_eq!(refused(&Claims { downgrade: true, ..claims(Operation::Rollback) }), "forbidden");
        assert_eq!(refused(&claims(Operation::Reject)), "forbidden");
        assert_eq!(word(&policy), "taken");
        assert_eq!(word(&Claims { downgrade: true, to: Some(Generation(1)), ..claims(Operation::Rollback) }), "taken");
    }

    #[test]
    fn what_a_revision_was_taken_for_and_did_not_begin_may_come_again_and_nothing_older() {
        let key = key();
        let rules = Rules { audience: "molt:web", max_lifetime_s: 600, keys: std::slice::from_ref(&key) };
        let memory = judged(&Claims { seq: 7, ..claims(Operation::Update) }, &key, None, NOW).unwrap();
        let facts = Facts { memory: Some(&memory), confirmed: Some(Generation(5)), now: NOW, again: true };
        for (seq, taken) in [(6, false), (7, true), (8, true)] {
            let judged = judge(&Claims { seq, ..claims(Operation::Update) }, &key, rules, facts);
            assert_eq!(judged.is_ok(), taken, "{seq}: {judged:?}");
        }
    }

    #[test]
    fn claims_that_mean_nothing_are_refused_and_not_passed_over() {
        let tagged: ImageRef = "registry.example.com/a/b:1".parse().unwrap();
        let layout: ImageRef = "oci:/images/a:1".parse().unwrap();
        let odd = [
            (Claims { ver: 2, ..claims(Operation::Confirm) }, "claims"),
            (Claims { aud: "molt:web2".into(), ..claims(Operation::Confirm) }, "audience"),
            (Claims { aud: "MOLT:web".into(), ..claims(Operation::Confirm) }, "audience"),
            (Claims { aud: String::new(), ..claims(Operation::Confirm) }, "audience"),
            (Claims { seq: 0, ..claims(Operation::Confirm) }, "claims"),
            (Claims { exp: NOW, ..claims(Operation::Confirm) }, "claims"),
            (Claims { nbf: Some(NOW + 301), ..claims(Operation::Confirm) }, "claims"),
            (Claims { jti: String::new(), ..claims(Operation::Confirm) }, "claims"),
            (Claims { jti: "a b".into(), ..claims(Operation::Confirm) }, "claims"),
            (Claims { jti: "\u{1b}[31m".into(), ..claims(Operation::Confirm) }, "claims"),
            (Claims { jti: "x".repeat(65), ..claims(Operation::Confirm) }, "claims"),
            (Claims { image: None, ..claims(Operation::Update) }, "claims"),
            (Claims { image: Some(tagged.clone()), ..claims(Operation::Update) }, "digest-missing"),
            (Claims { image: Some(layout), ..claims(Operation::Update) }, "digest-missing"),
            (Claims { image: Some(tagged), ..claims(Operation::Confirm) }, "claims"),
            (Claims { policy: Some("x".into()), ..claims(Operation::Update) }, "policy"),
            (Claims { policy_digest: Some(Digest::from_bytes([1; 32])), ..claims(Operation::Rollback) }, "claims"),
            (Claims { to: Some(Generation(1)), ..claims(Operation::Update) }, "claims"),
            (Claims { downgrade: true, ..claims(Operation::Update) }, "claims"),
            (Claims { ttl: Some(0), ..claims(Operation::Hold) }, "claims"),
            (Claims { ttl: Some(5), ..claims(Operation::Release) }, "claims"),
            (Claims { update: Some(UpdateId(1)), ..claims(Operation::Hold) }, "claims"),
            (Claims { force: true, ..claims(Operation::Rollback) }, "claims"),
            (Claims { stage_only: true, ..claims(Operation::Confirm) }, "claims"),
            (Claims { floor: None, ..claims(Operation::Floor) }, "claims"),
            (Claims { reason: Some("x".repeat(513)), ..claims(Operation::Update) }, "claims"),
        ];
        for (claims, wanted) in odd {
            assert_eq!(word(&claims), wanted, "{claims:?}");
        }
    }

    #[test]
    fn a_key_the_spec_has_never_loses_its_ratchet_to_others() {
        let mut memory = Memory::default();
        for number in 0..MAX_KEYS {
            memory.ratchets.push(Ratchet { key: format!("k{number}"), seq: 1 });
        }
        let (kept, new) = (OrderKey { id: "k0".into(), ..key() }, key());
        let keys = [kept, new.clone()];
        let rules = Rules { audience: "molt:web", max_lifetime_s: 600, keys: &keys };
        let facts = Facts { memory: Some(&memory), confirmed: None, now: NOW, again: false };
        let after = judge(&claims(Operation::Confirm), &new, rules, facts).unwrap();
        assert_eq!(after.ratchets.len(), MAX_KEYS);
        assert_eq!((after.last("k0"), after.last("k1"), after.last("release")), (Some(1), None, Some(7)));
    }

    #[test]
    fn the_spec_says_everything_that_is_wrong_with_its_keys() {
        let text = "
apiVersion: molt.dev/v1alpha1
kind: Sandbox
spec:
  state: [/sandbox/state]
  orders:
    maxLifetime: 25h
    audience: 'a b'
    keys:
      - {id: 'a b', algorithm: EdDSA, operations: [update], key: x, file: /k}
      - {id: k, algorithm: ES256, operations: []}
      - {id: k, algorithm: ES256, operations: [hold], policy: true, downgrade: true, file: /sandbox/state/k}
      - {id: l, algorithm: HS256, operations: [update], key: x}
      - {id: m, algorithm: EdDSA, operations: [everything], key: x}
";
        let found = crate::spec::parse(text).unwrap_err().to_string();
        for wanted in [
            "maxLifetime",
            "audience",
            "keys[0].id",
            "keys[0].file",
            "keys[1].key",
            "keys[1].operations",
            "keys[2].id",
            "keys[2].policy",
            "keys[2].downgrade",
            "keys[2].file: is in '/sandbox/state'",
            "keys[3].algorithm",
            "keys[4].operations[0]",
        ] {
            assert!(found.contains(wanted), "{wanted} is not in\n{found}");
        }
        assert_eq!(crate::spec::Orders::default().max_lifetime, Span::from_secs(600));
        assert_eq!(crate::spec::Orders::default().audience_of("web"), "molt:web");
    }
}
