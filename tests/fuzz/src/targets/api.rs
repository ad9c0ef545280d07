//! The operator socket: HTTP/1.1 over an in-memory stream, through the router, to a dispatcher that only pretends.
//!
//! In: the bytes of a connection. Out: a panic where the server panics, hangs, answers with an internal error, or with
//! what is no HTTP. Must not: open a socket.

use tokio::runtime::Builder;

pub(super) fn run(data: &[u8]) {
    // A runtime an input, so that no task outlives it; the clock is paused, so that time limits cost none.
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let answer = runtime.block_on(molt::fuzzing::request(data));
    if answer.is_empty() {
        return;
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 ")).expect("an HTTP answer");
    let code: u16 = status.get(..3).and_then(|code| code.parse().ok()).expect("a status");
    assert!(code < 500 || matches!(code, 501 | 503), "{text}");
    if let Some((head, body)) = text.split_once("\r\n\r\n")
        && head.to_ascii_lowercase().contains("application/problem+json")
        && !data.starts_with(b"HEAD ")
    {
        let problem: molt_core::wire::Problem = serde_json::from_str(body).expect("a problem document");
        super::is_plain(&problem.detail);
    }
}
