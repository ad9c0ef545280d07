//! The server and the client against each other, over a real socket.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use molt_core::{
    code::Code,
    ids::Generation,
    wire::{BadView, Document, ExecOptions, GenerationView, Outcome, Problem, UpdateView},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{fake, frame, listen, peer};
use crate::{
    cli::client::Client,
    command::Handle,
    observe::output::{End, Line, Stream},
};

const NO_BODY: Option<&()> = None;

/// A served socket in a folder of its own.
pub(crate) struct Served {
    pub(crate) socket: PathBuf,
    pub(crate) client: Client,
    pub(crate) handle: Handle,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.socket.ancestors().nth(2).map(std::fs::remove_dir_all);
    }
}

fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("molt-api-{}-{number}", std::process::id()))
}

pub(crate) fn served_to(uid: u32) -> Served {
    let socket = folder().join("run/molt.sock");
    let handle = fake::start();
    let listener = listen::bind(&socket).unwrap();
    tokio::spawn(listen::serve_user(handle.clone(), listener, uid));
    Served { client: Client::new(&socket), socket, handle }
}

pub(crate) fn served() -> Served {
    served_to(rustix::process::getuid().as_raw())
}

/// Serves the socket anew after a while, with an update u7 that ends well and events that begin with 101 again.
pub(crate) fn later(served: &Served) -> impl Future<Output = ()> + use<> {
    let socket = served.socket.clone();
    std::fs::remove_file(&socket).unwrap();
    async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let handle = fake::start();
        tokio::spawn(listen::serve_user(handle, listen::bind(&socket).unwrap(), rustix::process::getuid().as_raw()));
        let request = serde_json::json!({"image": "localhost/app:good"});
        Client::new(&socket).done(Method::POST, "/v1/updates", Some(&request)).await.unwrap();
    }
}

async fn raw(socket: &Path, request: &str) -> String {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn problem(
    served: &Served,
    method: Method,
    path: &str,
    body: Option<&serde_json::Value>,
) -> (StatusCode, Problem) {
    let (status, bytes) = served.client.answer(method, path, body).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn the_socket_is_private_and_taken_over_only_when_stale() {
    use std::os::unix::fs::PermissionsExt as _;
    let socket = folder().join("molt.sock");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let first = listen::bind(&socket).unwrap();
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    assert!(listen::bind(&socket).unwrap_err().to_string().contains("another supervisor answers"));
    drop(first);
    drop(listen::bind(&socket).unwrap());
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "mine").unwrap();
    assert!(listen::bind(&socket).unwrap_err().to_string().contains("not a socket"));
    assert_eq!(std::fs::read(&socket).unwrap(), b"mine");
    std::fs::remove_dir_all(socket.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn another_user_is_told_to_go() {
    let served = served_to(rustix::process::getuid().as_raw() + 1);
    let (status, problem) = problem(&served, Method::GET, "/v1/status", None).await;
    assert_eq!((status, problem.code), (StatusCode::FORBIDDEN, Code::Unauthorized));
}

#[test]
fn uid_0_of_a_nested_user_namespace_is_not_ours() {
    assert!(!peer::is_foreign(std::process::id().try_into().unwrap()));
    let mut nested = std::process::Command::new("unshare").args(["--user", "sleep", "30"]).spawn().unwrap();
    let pid = nested.id().try_into().unwrap();
    let ends = std::time::Instant::now() + Duration::from_secs(5);
    while !peer::is_foreign(pid) {
        assert!(std::time::Instant::now() < ends, "unshare --user must be seen");
        std::thread::sleep(Duration::from_millis(5));
    }
    nested.kill().unwrap();
    nested.wait().unwrap();
}

#[tokio::test]
async fn status_has_a_tag_and_is_not_sent_twice() {
    let served = served();
    let document: Document = served.client.get("/v1/status").await.unwrap();
    assert_eq!(document, fake::document());
    let answer = raw(&served.socket, "GET /v1/status HTTP/1.1\r\nhost: molt\r\n\r\n").await;
    let tag = answer.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = format!("GET /v1/status HTTP/1.1\r\nhost: molt\r\nif-none-match: \"x\", {tag}\r\n\r\n");
    assert!(raw(&served.socket, &again).await.starts_with("HTTP/1.1 304"));
    let other = "GET /v1/status HTTP/1.1\r\nhost: molt\r\nif-none-match: \"x\"\r\n\r\n";
    assert!(raw(&served.socket, other).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn wrong_requests_get_problem_documents() {
    let served = served();
    let long = "x".repeat(600);
    for (method, path, body, status, code) in [
        (Method::GET, "/nowhere", None, 404, Code::NotFound),
        (Method::DELETE, "/v1/status", None, 405, Code::Invalid),
        (Method::GET, "/v1/updates/7", None, 400, Code::Invalid),
        (Method::GET, "/v1/updates/u99", None, 404, Code::NotFound),
        (Method::GET, "/v1/generations/9", None, 404, Code::NotFound),
        (Method::DELETE, "/v1/bad/md5:0", None, 400, Code::Invalid),
        (Method::POST, "/v1/updates", Some(serde_json::json!({"image": "busybox"})), 400, Code::ReferenceInvalid),
        (Method::POST, "/v1/updates", Some(serde_json::json!({"imgae": "localhost/a"})), 400, Code::Invalid),
        (Method::POST, "/v1/updates?dryrun=all", Some(serde_json::json!({"image": "localhost/a"})), 400, Code::Invalid),
        (Method::POST, "/v1/rollback", Some(serde_json::json!({"reason": long})), 400, Code::Invalid),
        (Method::PUT, "/v1/hold", Some(serde_json::json!({"ttlMs": 0})), 400, Code::Invalid),
        (Method::PUT, "/v1/hold", Some(serde_json::json!({"owner": "workload"})), 400, Code::Invalid),
        (Method::GET, "/v1/events?after=x", None, 400, Code::Invalid),
        (Method::GET, "/v1/logs?folow=1", None, 400, Code::Invalid),
        (Method::POST, "/v1/exec", Some(serde_json::json!({"argv": ["true"]})), 426, Code::Invalid),
        (Method::POST, "/v1/updates", Some(serde_json::json!({"image": "localhost/a:held"})), 409, Code::Held),
        (Method::POST, "/v1/updates", Some(serde_json::json!({"image": "localhost/a:known-bad"})), 422, Code::KnownBad),
    ] {
        let (seen, problem) = problem(&served, method, path, body.as_ref()).await;
        assert_eq!((seen.as_u16(), problem.status, problem.code), (status, status, code), "{path}: {}", problem.detail);
    }
    let huge = serde_json::json!({"image": "localhost/a", "policy": "x".repeat(super::answer::BODY)});
    assert_eq!(problem(&served, Method::POST, "/v1/updates", Some(&huge)).await.0, 413);
    for (extra, status) in [("origin: http://evil.example\r\n", "403"), ("content-type: text/plain\r\n", "415")] {
        let request = format!("POST /v1/rollback HTTP/1.1\r\nhost: molt\r\n{extra}content-length: 2\r\n\r\n{{}}");
        assert!(raw(&served.socket, &request).await.starts_with(&format!("HTTP/1.1 {status}")), "{extra}");
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off_and_nobody_else_waits() {
    let served = served();
    let mut slow = tokio::net::UnixStream::connect(&served.socket).await.unwrap();
    slow.write_all(b"GET /v1/status HTTP/1.1\r\nx-").await.unwrap();
    served.client.get::<Document>("/v1/status").await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(8), slow.read_to_end(&mut rest)).await.unwrap().unwrap();
}

/// Whatever comes behind a request on its connection is not read as another one: there is nothing to smuggle.
#[tokio::test]
async fn one_connection_carries_one_request() {
    let served = served();
    let update = |image: &str| {
        let body = serde_json::json!({"image": image}).to_string();
        format!(
            "POST /v1/updates HTTP/1.1\r\nhost: molt\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let count = async || served.client.get::<Vec<UpdateView>>("/v1/updates").await.unwrap().len();
    let before = count().await;
    let first = "GET /v1/status HTTP/1.1\r\nhost: molt\r\n";
    for pipelined in [
        format!("{first}\r\n{}", update("localhost/app:good")),
        format!("{first}connection: keep-alive\r\n\r\n{}", update("localhost/app:good")),
        // Two ideas of where a body ends.
        format!(
            "{first}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{}",
            update("localhost/app:good")
        ),
        format!("{first}content-length: 0\r\ncontent-length: 9\r\n\r\n{}", update("localhost/app:good")),
        format!("{first}transfer-encoding: xchunked\r\n\r\n{}", update("localhost/app:good")),
    ] {
        let answer = raw(&served.socket, &pipelined).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{pipelined:?} got {answer:?}");
        assert_eq!(count().await, before, "{pipelined:?}");
    }
    // One alone is taken: it is not that they are refused for what they are.
    assert!(raw(&served.socket, &update("localhost/app:good")).await.starts_with("HTTP/1.1 202"));
    assert_eq!(count().await, before + 1);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_places_come_back() {
    let served = served();
    let mut open = Vec::new();
    for _ in 0..listen::CONNECTIONS {
        let mut one = tokio::net::UnixStream::connect(&served.socket).await.unwrap();
        // The head is there, the body never comes.
        let head = "POST /v1/gc HTTP/1.1\r\nhost: molt\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
        let head = head.replace("/v1/gc", "/v1/rollback");
        one.write_all(head.as_bytes()).await.unwrap();
        open.push(one);
    }
    let ends = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let (status, bytes) = served.client.answer(Method::GET, "/livez", NO_BODY).await.unwrap();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            assert_eq!(serde_json::from_slice::<Problem>(&bytes).unwrap().code, Code::Busy);
            break;
        }
        assert!(tokio::time::Instant::now() < ends, "all places must be taken");
    }
    drop(open);
    let ends = tokio::time::Instant::now() + Duration::from_secs(5);
    while served.client.answer(Method::GET, "/livez", NO_BODY).await.unwrap().0 != StatusCode::OK {
        assert!(tokio::time::Instant::now() < ends, "places must come back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whoever has a place and sends no body loses it, and need not let go of the connection for that. It takes the half minute
/// that a request may take.
#[tokio::test]
async fn bodies_that_never_come_are_given_up_and_lock_nobody_out() {
    let served = served();
    let head = |framing: &str| {
        format!("POST /v1/rollback HTTP/1.1\r\nhost: molt\r\ncontent-type: application/json\r\n{framing}")
    };
    let mut open = Vec::new();
    for number in 0..listen::CONNECTIONS {
        let mut one = tokio::net::UnixStream::connect(&served.socket).await.unwrap();
        let framing = match number % 3 {
            0 => "content-length: 2\r\n\r\n",
            1 => "content-length: 200\r\n\r\n{\"reason\": \"",
            _ => "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
        };
        one.write_all(head(framing).as_bytes()).await.unwrap();
        open.push(one);
    }
    let begun = tokio::time::Instant::now();
    for one in &mut open {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_mins(2), one.read_to_end(&mut answer)).await;
        read.expect("the connection is closed in time").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("deadline-exceeded"), "{answer}");
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(20) && took <= Duration::from_mins(1), "{took:?}");
    // The clients still hold their ends.
    assert_eq!(open.len(), listen::CONNECTIONS);
    assert_eq!(served.client.answer(Method::GET, "/livez", NO_BODY).await.unwrap().0, StatusCode::OK);
    assert!(
        served.client.get::<Vec<UpdateView>>("/v1/updates").await.unwrap().iter().all(|one| one.kind != "rollback")
    );
    drop(open);
}

#[tokio::test]
async fn whoever_only_connects_locks_nobody_out() {
    let served = served();
    let mut open = Vec::new();
    for _ in 0..10 * listen::CONNECTIONS {
        open.push(tokio::net::UnixStream::connect(&served.socket).await.unwrap());
        if open.len() % 50 == 0 {
            served.client.get::<Document>("/v1/status").await.unwrap();
        }
    }
    // Some of a head is no request either.
    for one in open.iter_mut().rev().take(listen::CONNECTIONS) {
        let _ = one.write_all(b"GET /v1/status HTTP/1.1\r\nx-").await;
    }
    served.client.get::<Document>("/v1/status").await.unwrap();
}

#[tokio::test]
async fn streams_take_no_place_of_a_request_and_give_theirs_back() {
    let served = served();
    let mut open = Vec::new();
    let refused = loop {
        match served.client.lines("/v1/events").await {
            Ok(stream) => open.push(stream),
            Err(fault) => break fault.to_string(),
        }
        assert!(open.len() <= 1024, "there is a bound");
    };
    assert!(open.len() > listen::CONNECTIONS, "{} streams", open.len());
    assert!(refused.contains("as many streams as there may be"), "{refused}");
    served.client.get::<Document>("/v1/status").await.unwrap();
    drop(open);
    let ends = tokio::time::Instant::now() + Duration::from_secs(5);
    while served.client.lines("/v1/events").await.is_err() {
        assert!(tokio::time::Instant::now() < ends, "places must come back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_dispatcher_that_has_ended_is_said_and_does_not_hang() {
    let socket = folder().join("molt.sock");
    let (commands, queue) = tokio::sync::mpsc::channel(1);
    drop(queue);
    let handle = Handle { commands, ..fake::start() };
    tokio::spawn(listen::serve_user(handle, listen::bind(&socket).unwrap(), rustix::process::getuid().as_raw()));
    let client = Client::new(&socket);
    assert_eq!(client.answer(Method::GET, "/livez", NO_BODY).await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(client.answer(Method::POST, "/v1/gc", NO_BODY).await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE);
    client.get::<Document>("/v1/status").await.unwrap();
    std::fs::remove_dir_all(socket.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn events_come_as_server_sent_events_and_resume() {
    let served = served();
    let request = serde_json::json!({"image": "localhost/app:wider"});
    let (status, _) = served.client.answer(Method::POST, "/v1/updates", Some(&request)).await.unwrap();
    assert_eq!(status, StatusCode::ACCEPTED);
    let mut news = served.handle.events.watch();
    news.wait_for(|last| *last >= 102).await.unwrap();
    let all = raw(&served.socket, "GET /v1/events?follow=0 HTTP/1.1\r\nhost: molt\r\n\r\n").await;
    assert!(all.contains("content-type: text/event-stream"), "{all}");
    assert!(all.contains("id: 101\ndata: {\"seq\":101,") && all.contains("id: 102\ndata: {"), "{all}");
    let resumed = "GET /v1/events?follow=0 HTTP/1.1\r\nhost: molt\r\nlast-event-id: 101\r\n\r\n";
    let rest = raw(&served.socket, resumed).await;
    assert!(!rest.contains("id: 101") && rest.contains("id: 102"), "{rest}");
    // A number from another life of the sandbox hides nothing.
    let ahead = raw(&served.socket, "GET /v1/events?follow=0&after=9999 HTTP/1.1\r\nhost: molt\r\n\r\n").await;
    assert!(ahead.contains("id: 101"), "{ahead}");
}

#[tokio::test]
async fn logs_are_kept_cut_and_followed() {
    let served = served();
    for text in ["one", "two", "three"] {
        served.handle.output.push(Generation(1), Stream::Stdout, text.as_bytes(), End::Line);
    }
    let mut lines = served.client.lines("/v1/logs?tail=2").await.unwrap();
    let mut seen = Vec::new();
    while let Some(line) = lines.next::<Line>().await.unwrap() {
        seen.push(line.text);
    }
    assert_eq!(seen, ["two", "three"]);
    let mut lines = served.client.lines("/v1/logs?follow=1&tail=1").await.unwrap();
    assert_eq!(lines.next::<Line>().await.unwrap().unwrap().text, "three");
    served.handle.output.push(Generation(1), Stream::Stderr, b"four", End::Line);
    let four = lines.next::<Line>().await.unwrap().unwrap();
    assert_eq!((four.text.as_str(), four.stream, four.seq), ("four", Stream::Stderr, 4));
}

#[tokio::test]
async fn documents_are_served() {
    let served = served();
    let generations: Vec<GenerationView> = served.client.get("/v1/generations").await.unwrap();
    assert_eq!(generations, [fake::generation(1, "1.4")]);
    assert_eq!(served.client.get::<GenerationView>("/v1/generations/1").await.unwrap(), generations[0]);
    assert!(served.client.get::<Vec<BadView>>("/v1/bad").await.unwrap().is_empty());
    served.client.done(Method::PUT, "/v1/hold", NO_BODY).await.unwrap();
    let document: Document = served.client.get("/v1/status").await.unwrap();
    let hold = document.status.hold.unwrap();
    // Who asked is who was at the other end, and not a word that stands for everybody.
    let me = format!("uid {}, pid {} via operator socket", rustix::process::getuid().as_raw(), std::process::id());
    assert_eq!((hold.owner.as_str(), hold.by), ("operator", me));
    served.client.done(Method::DELETE, "/v1/hold", NO_BODY).await.unwrap();
    assert!(served.client.get::<Document>("/v1/status").await.unwrap().status.hold.is_none());
    let (ready, _) = served.client.answer(Method::GET, "/readyz", NO_BODY).await.unwrap();
    assert_eq!(ready, StatusCode::OK);
    let location = raw(&served.socket, "POST /v1/rollback HTTP/1.1\r\nhost: molt\r\n\r\n").await;
    assert!(location.contains("location: /v1/updates/u7"), "{location}");
    let ends = tokio::time::Instant::now() + Duration::from_secs(5);
    while served.client.get::<UpdateView>("/v1/updates/u7").await.unwrap().outcome != Some(Outcome::Confirmed) {
        assert!(tokio::time::Instant::now() < ends);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Output, errors and status of a run; `input` goes to standard input, which is then closed.
async fn run(served: &Served, argv: &[&str], tty: bool, input: &[u8]) -> (Vec<u8>, Vec<u8>, Option<i32>) {
    let options = ExecOptions {
        argv: argv.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        tty,
        stdin: true,
        rows: 33,
        cols: 99,
        unconfined: false,
    };
    let (mut from, mut to) = tokio::io::split(served.client.exec(&options).await.unwrap());
    let feed: Vec<Bytes> =
        input.chunks(frame::MAX).chain([&[][..]]).map(|data| frame::encode(frame::Kind::Stdin, data)).collect();
    let send = tokio::spawn(async move {
        for frame in feed {
            if to.write_all(&frame).await.is_err() {
                break;
            }
        }
        to
    });
    let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), None);
    let read = async {
        while let Some(frame) = frame::read(&mut from).await.unwrap() {
            match frame.kind {
                frame::Kind::Stdout => out.extend_from_slice(&frame.data),
                frame::Kind::Stderr => err.extend_from_slice(&frame.data),
                frame::Kind::Exit => status = frame::number(&frame.data),
                other => panic!("{other:?} from the server"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("the exec must end");
    drop(send.await);
    (out, err, status)
}

#[tokio::test]
async fn exec_carries_input_output_and_status() {
    let served = served();
    let (out, err, status) = run(&served, &["sh", "-c", "cat; echo oops >&2; exit 3"], false, b"hello").await;
    assert_eq!((out.as_slice(), err.as_slice(), status), (&b"hello"[..], &b"oops\n"[..], Some(3)));
    // More than every buffer on the way holds, both ways at once.
    let much: Vec<u8> = (0..3_000_000u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
    let (out, _, status) = run(&served, &["cat"], false, &much).await;
    assert!(out == much && status == Some(0));
}

#[tokio::test]
async fn exec_ends_although_something_holds_its_output_open() {
    let served = served();
    let (out, _, status) = run(&served, &["sh", "-c", "sleep 20 & echo done"], false, b"").await;
    assert_eq!((out.as_slice(), status), (&b"done\n"[..], Some(0)));
}

#[tokio::test]
async fn exec_gives_a_terminal_of_the_size_asked_for() {
    let served = served();
    let script = "until test \"$(stty size)\" = '33 99'; do sleep 0.01; done; test -t 0 && test -t 2 && echo same";
    let (out, _, status) = run(&served, &["sh", "-c", script], true, b"").await;
    assert_eq!((String::from_utf8_lossy(&out).trim(), status), ("same", Some(0)));
}

#[test]
fn the_document_of_the_api_is_the_code_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let made = serde_json::to_string_pretty(&super::openapi::document()).unwrap() + "\n";
    if std::env::var_os("MOLT_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "docs/openapi.json is stale: MOLT_BLESS=1 cargo test -p molt the_document");
}

/// Every operation is routed, and its refusals and answers are of the kinds that it says.
#[tokio::test]
async fn what_the_document_says_is_served() {
    let served = served();
    let (status, bytes) = served.client.answer(Method::GET, "/v1/openapi.json", NO_BODY).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let mut seen = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let path = path
                .replace("{id}", "u7")
                .replace("{number}", "1")
                .replace("{digest}", &format!("sha256:{}", "0".repeat(64)));
            let query = if path == "/v1/events" { "?follow=0" } else { "" };
            let method: Method = method.to_uppercase().parse().unwrap();
            let (status, _) = served.client.answer(method.clone(), &format!("{path}{query}"), NO_BODY).await.unwrap();
            let responses = operation["responses"].as_object().unwrap();
            let told = responses.contains_key(status.as_str()) || status.is_client_error() || status.is_server_error();
            assert!(told && status != StatusCode::METHOD_NOT_ALLOWED, "{method} {path}: {status}");
            seen += 1;
        }
    }
    assert!(seen >= 23, "{seen} operations");
    // A path that is not in the document is not served.
    let (status, _) = served.client.answer(Method::GET, "/v1/nothing", NO_BODY).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
}

/// References lead somewhere, ids are unique, and path parameters are declared.
#[test]
fn the_document_of_the_api_is_whole() {
    let document = super::openapi::document();
    let text = document.to_string();
    let mut references = 0;
    for rest in text.split("\"$ref\":\"#").skip(1) {
        let pointer = rest.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
        references += 1;
    }
    assert!(references > 30, "{references}");
    let mut ids = std::collections::BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for operation in operations.as_object().unwrap().values() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{operation}");
            let declared = operation["parameters"].as_array().cloned().unwrap_or_default();
            let declared = declared.iter().filter(|one| one["in"] == "path").count();
            assert_eq!(declared, path.matches('{').count(), "{path}");
        }
    }
}

#[tokio::test]
async fn metrics_are_served() {
    let served = served();
    let (status, bytes) = served.client.answer(Method::GET, "/metrics", NO_BODY).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("\nmolt_workload_ready 1\n") && text.ends_with("# EOF\n"), "{text}");
}

/// What a supervisor of before does not know, and refuses, is not said to it unasked.
#[test]
fn an_exec_says_unconfined_only_where_it_is_meant() {
    let options = |unconfined| ExecOptions {
        argv: vec!["sh".to_owned()],
        env: Vec::new(),
        tty: false,
        stdin: false,
        rows: 0,
        cols: 0,
        unconfined,
    };
    assert_eq!(serde_json::to_value(options(false)).unwrap().get("unconfined"), None);
    assert_eq!(serde_json::to_value(options(true)).unwrap()["unconfined"], true);
}
