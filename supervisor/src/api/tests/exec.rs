//! Runs beside the workload, over the socket.

use super::*;

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
