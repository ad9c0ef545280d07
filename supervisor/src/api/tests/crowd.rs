//! Many peers at once, and such as never come to an end: places are bounded, told and given back.

use super::*;

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
