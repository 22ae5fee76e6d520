//! What goes wrong on the way to an answer: each gets one clear error, and the server goes on.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::client::{JSON, Server};
use super::{PROMPT, completion};
use crate::command::Shell;

/// A text that takes a while: one that is drawn repeats little, so that little can be looked up.
fn long(most: usize) -> Value {
    json!({
        "model": "tiny", "prompt": PROMPT, "max_tokens": most, "stream": true, "ignore_eos": true, "temperature": 1.5, "seed": 1,
    })
}

#[test]
fn requests_that_contradict_themselves_are_refused_by_field() {
    let server = Server::start(&["--max-tokens", "50", "--max-request-bytes", "2000"]);
    let base = json!({"model": "tiny", "prompt": "a"});
    let bodies = [
        json!({}),
        json!([1]),
        json!({"model": "other", "prompt": "a"}),
        json!({"model": "tiny"}),
        json!({"model": "tiny", "prompt": ["a", "b"]}),
        json!({"model": "tiny", "prompt": [999_999]}),
        json!({"model": "tiny", "prompt": "x".repeat(3000)}),
    ];
    let fields = [
        json!({"max_tokens": 51}),
        json!({"max_tokens": -1}),
        json!({"temperature": "hot"}),
        json!({"top_p": 1.5}),
        json!({"n": 0}),
        json!({"n": 33}),
        json!({"stop": ["a", ""]}),
        json!({"logit_bias": {"x": 1}}),
        json!({"logit_bias": {"1": 101}}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"stream": true, "stream_options": {"other": true}}),
        json!({"suffix": "z"}),
        json!({"best_of": 3}),
        json!({"echo": true, "logprobs": 1}),
        json!({"guided_json": {}}),
    ];
    let with = |more: Value| {
        let mut body = base.clone();
        let fields = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        body
    };
    let completions = bodies.into_iter().chain(fields.map(with));
    let chats = [
        json!({"model": "tiny", "messages": []}),
        json!({"model": "tiny", "messages": [{"role": "king", "content": "a"}]}),
        json!({"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}),
        json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "max_completion_tokens": 2}),
    ];
    let routes = completions.map(|body| ("/v1/completions", body));
    let routes = routes.chain(chats.map(|body| ("/v1/chat/completions", body)));
    let refused: Vec<String> = routes
        .map(|(route, body)| {
            let answer = server.post(route, &body);
            let shown: String = body.to_string().chars().take(120).collect();
            format!("{route} {shown}\n  {} {}\n", answer.status, answer.body)
        })
        .collect();
    insta::assert_snapshot!(refused.concat());
    let wrong = [
        ("GET", "/v1/completions"),
        ("POST", "/v1/models"),
        ("GET", "/v1/nothing"),
    ];
    for ((method, path), status) in wrong.into_iter().zip([405, 405, 404]) {
        assert_eq!(server.request(method, path, "", b"").status, status);
    }
    let unasked = server.request(
        "POST",
        "/v1/completions",
        "Content-Type: text/plain\r\n",
        b"{}",
    );
    assert_eq!(unasked.status, 415);
    let answer = server.request("POST", "/v1/completions", JSON, b"{\"model\": \"ti");
    assert!(answer.status == 400 && answer.body.contains("isn't JSON"));
}

#[test]
fn keys_are_demanded_where_there_are_any() {
    let shell = Shell::new();
    shell.write("keys", "# ours\nsk-one\n");
    let server = Server::start_in(shell, &["--api-key-file", "keys"]);
    let ask = |headers: &str| server.request("GET", "/v1/models", headers, b"").status;
    assert_eq!(ask(""), 401);
    assert_eq!(ask("Authorization: Bearer sk-two\r\n"), 401);
    assert_eq!(ask("Authorization: Bearer sk-one\r\n"), 200);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_flood_is_turned_away_and_who_was_let_in_is_answered() {
    let server = Server::start(&["--max-concurrent", "1", "--max-queue", "2"]);
    let body = json!({
        "model": "tiny", "prompt": PROMPT, "max_tokens": 200, "ignore_eos": true, "temperature": 1.5,
    });
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..12)
            .map(|_| scope.spawn(|| server.post("/v1/completions", &body)))
            .collect();
        let answers = asked.into_iter().map(|asked| asked.join().unwrap());
        answers
            .map(|answer| {
                assert!(answer.status == 200 || answer.head.contains("retry-after: 1"));
                answer.status
            })
            .collect()
    });
    let let_in = statuses.iter().filter(|status| **status == 200).count();
    assert!((3..12).contains(&let_in), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)));
}

#[test]
fn clients_that_go_away_leave_nothing_behind() {
    let server = Server::start(&["--max-concurrent", "2", "--max-queue", "100"]);
    for i in 0..40u64 {
        let mut stream = server.open("/v1/completions", &long(300));
        if i % 3 == 0 {
            stream.first_event();
        }
        std::thread::sleep(Duration::from_millis(i % 7));
    }
    server.becomes("dlc_requests_running{model=\"tiny\"}", 0);
    server.becomes("dlc_requests_waiting{model=\"tiny\"}", 0);
    assert!(server.metric("dlc_texts_abandoned_total{model=\"tiny\"}") >= 10);
    completion(
        &server,
        &json!({"model": "tiny", "prompt": "a", "max_tokens": 2}),
    );
}

#[test]
fn a_reader_that_reads_nothing_does_not_hold_up_the_others() {
    let server = Server::start(&["--max-concurrent", "2"]);
    let _stuck = server.open("/v1/completions", &long(400));
    completion(
        &server,
        &json!({"model": "tiny", "prompt": "a", "max_tokens": 4}),
    );
}

#[test]
fn half_a_request_does_not_hold_up_the_others() {
    let server = Server::start(&[]);
    let mut half = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    completion(
        &server,
        &json!({"model": "tiny", "prompt": "a", "max_tokens": 4}),
    );
}

#[test]
fn an_answer_that_takes_too_long_is_broken_off() {
    let server = Server::start(&["--timeout", "0"]);
    let body = json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": true});
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 504, "{}", answer.body);
    server.becomes("dlc_requests_running{model=\"tiny\"}", 0);
}

#[test]
fn bytes_that_are_no_request_do_no_harm() {
    let server = Server::start(&[]);
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let json = "[\\[\\]{}\":,a-z0-9 .\\\\-]{0,80}";
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let checked = runner.run(&(bytes, json, any::<bool>()), |(bytes, json, chat)| {
        server.raw(&[&bytes[..], b"\r\n\r\n"].concat());
        let route = if chat {
            "/v1/chat/completions"
        } else {
            "/v1/completions"
        };
        let body = format!("{{\"model\": \"tiny\", {json}}}");
        let answer = server.request("POST", route, JSON, body.as_bytes());
        prop_assert_eq!(answer.status, 400, "{}", answer.body);
        let answer = server.request("POST", route, JSON, &bytes);
        prop_assert_eq!(answer.status, 400, "{}", answer.body);
        Ok(())
    });
    checked.unwrap();
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn who_waits_and_goes_away_leaves_the_queue() {
    let server = Server::start(&["--max-concurrent", "1", "--max-queue", "1"]);
    let mut first = server.open("/v1/completions", &long(400));
    first.first_event();
    for _ in 0..5 {
        let waiter = server.open("/v1/completions", &long(10));
        server.becomes("dlc_requests_waiting{model=\"tiny\"}", 1);
        drop(waiter);
        server.becomes("dlc_requests_waiting{model=\"tiny\"}", 0);
    }
    let body = json!({"model": "tiny", "prompt": "a", "n": 3});
    assert_eq!(server.post("/v1/completions", &body).status, 400);
}
