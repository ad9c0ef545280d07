//! Orders that may be done, and each reason why one may not.

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
