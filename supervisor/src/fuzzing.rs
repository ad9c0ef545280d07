//! What reads bytes from outside, reachable for `tests/fuzz`; only with the feature `fuzzing`, which no shipped build has.
//!
//! In: bytes. Out: what was made of them, as plain data. Must not: run, open or change anything.

use std::time::Duration;

use molt_core::{
    code::Code,
    ids::Generation,
    order::{Claims, Facts, Memory, Operation, Ratchet, Rules, judge},
    spec::{Algorithm, OrderKey, Orders, Principal, UserRef},
    wire::Problem,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

use crate::{
    api::{fake, frame, serve_one},
    command::{Command, Handle},
    rootfs::users,
    timer::Instant,
    triggers::order,
    workload::notify::{self, Said},
};

/// Longest answer that is read.
const ANSWER: u64 = 4 << 20;
/// Streams never end by themselves.
const PATIENCE: Duration = Duration::from_secs(40);

/// Sends `request` to the operator socket's server as the operator, and gives its answer. Wants a runtime whose clock is
/// paused. The dispatcher behind it is the tests' own and runs nothing.
pub async fn request(request: &[u8]) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(64 << 10);
    let serving = tokio::spawn(serve_one(dispatcher(), server));
    let (from, mut to) = tokio::io::split(client);
    let mut answer = Vec::new();
    let mut from = from.take(ANSWER);
    let talk = async {
        let send = async {
            // A server that has heard enough closes early.
            let _ = to.write_all(request).await;
            let _ = to.shutdown().await;
        };
        tokio::join!(send, from.read_to_end(&mut answer)).1
    };
    let _ = tokio::time::timeout(PATIENCE, talk).await;
    serving.abort();
    // A panic of the server is a panic here.
    if let Err(error) = serving.await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
    answer
}

fn dispatcher() -> Handle {
    let fake = fake::start();
    let (commands, mut queue) = mpsc::channel(16);
    let inner = fake.commands.clone();
    tokio::spawn(async move {
        while let Some(command) = queue.recv().await {
            match command {
                Command::Exec { reply, .. } => {
                    let _ = reply.send(Err(Problem::new(Code::Unsupported, "nothing is run here")));
                }
                command => {
                    let _ = inner.send(command).await;
                }
            }
        }
    });
    Handle { commands, ..fake }
}

/// Reads frames of an exec stream; each read one is written again. Gives the bytes written.
pub async fn frames(bytes: &[u8]) -> Vec<u8> {
    let mut from = bytes;
    let mut again = Vec::new();
    while let Ok(Some(frame)) = frame::read(&mut from).await {
        let _ = (frame::number(&frame.data), frame::window(&frame.data));
        again.extend_from_slice(&frame::encode(frame.kind, &frame.data));
    }
    again
}

const ORDER_KEYS: [(&str, Algorithm, &str); 2] = [
    ("one", Algorithm::EdDSA, r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#),
    (
        "two",
        Algorithm::ES256,
        r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
    ),
];

fn order_keys() -> Orders {
    let key = |(id, algorithm, text): (&str, Algorithm, &str)| OrderKey {
        id: id.to_owned(),
        algorithm,
        key: Some(text.to_owned()),
        file: None,
        operations: vec![Operation::Update, Operation::Rollback, Operation::Hold, Operation::Floor],
        policy: true,
        downgrade: true,
    };
    Orders { keys: ORDER_KEYS.map(key).into(), ..Orders::default() }
}

/// Whether a signed order is taken. The keys are those of RFC 8037 and RFC 7515, and sign nothing that Molt would take.
pub fn order(token: &[u8]) -> bool {
    order::verify(&order_keys(), token, None).is_ok()
}

/// Judges claims as if they had been signed; what is remembered before and after.
pub fn claims(payload: &[u8]) -> Option<(Memory, Memory)> {
    let claims: Claims = serde_json::from_slice(payload).ok()?;
    let orders = order_keys();
    let ratchets = vec![Ratchet { key: "one".to_owned(), seq: 5 }];
    let before = Memory { ratchets, floor: Generation(2), clock: 1_800_000_000 };
    let rules = Rules { audience: "molt:web", max_lifetime_s: 600, keys: &orders.keys };
    let facts = Facts { memory: Some(&before), confirmed: Some(Generation(5)), now: 1_799_999_000, again: false };
    let after = judge(&claims, orders.keys.first()?, rules, facts).ok()?;
    Some((before, after))
}

/// Who a workload is.
#[derive(Debug)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home folder.
    pub home: String,
}

/// Looks a user up in the text of an image's passwd and group.
pub fn user(passwd: &str, group: &str, wanted: Option<&UserRef>, of: Option<&Principal>) -> Result<User, String> {
    match users::find(passwd, group, wanted, of) {
        Ok(user) => Ok(User { uid: user.uid, gid: user.gid, groups: user.groups, home: user.home }),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads a downward API file with annotations.
pub fn annotations(text: &str) -> Result<std::collections::BTreeMap<String, String>, String> {
    crate::triggers::annotations::parse(text)
}

/// Names in a certificate, DNS names and URIs.
pub fn names(certificate: &[u8]) -> usize {
    crate::api::san::names(certificate).len()
}

/// Takes notify datagrams. Gives the status text and how much more time was asked for in all.
pub fn notify<'a>(datagrams: impl Iterator<Item = &'a str>) -> (Option<String>, Duration) {
    let (mut said, now) = (Said::default(), Instant::now());
    for datagram in datagrams {
        notify::take(&mut said, datagram, now);
    }
    (said.status, said.extended_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)))
}
