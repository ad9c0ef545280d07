//! The server and the client against each other, over a real socket.

mod crowd;
mod document;
mod exec;
mod slow;

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

use super::{fake, frame, listen, openapi, peer};
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

#[tokio::test]
async fn metrics_are_served() {
    let served = served();
    let (status, bytes) = served.client.answer(Method::GET, "/metrics", NO_BODY).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("\nmolt_workload_ready 1\n") && text.ends_with("# EOF\n"), "{text}");
}
