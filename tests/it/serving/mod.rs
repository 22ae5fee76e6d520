//! `dlc serve` as clients see it: over a socket, with the built-in tract.

mod client;
mod faults;
mod others;

use std::time::Duration;

use serde_json::{Value, json};

use self::client::Server;
use crate::command::Shell;

const PROMPT: &str = "And it came to pass in those days, that";

fn completion(server: &Server, body: &Value) -> Value {
    let answer = server.post("/v1/completions", body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[test]
fn a_completion_is_what_run_writes() {
    let server = Server::start(&[]);
    let said = completion(
        &server,
        &json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 12}),
    );
    let run = server.shell.ok(&[
        "run",
        "tiny",
        "--prompt",
        PROMPT,
        "--no-echo",
        "--max-tokens",
        "12",
    ]);
    let choice = &said["choices"][0];
    assert_eq!(choice["text"], run.stdout.trim_end_matches('\n'));
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(said["object"], "text_completion");
    assert_eq!(said["usage"]["completion_tokens"], 12);
    let tokens = said["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(said["usage"]["total_tokens"], tokens + 12);
}

#[test]
fn parts_of_a_stream_add_up_to_the_whole() {
    let server = Server::start(&[]);
    let mut body = json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "stop": ["the"], "n": 2, "logprobs": 1});
    let whole = completion(&server, &body);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let events = server.post("/v1/completions", &body).events();
    let (done, parts) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let parts: Vec<Value> = parts
        .iter()
        .map(|part| serde_json::from_str(part).unwrap())
        .collect();
    let (usage, parts) = parts.split_last().unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]),
        (&json!([]), &whole["usage"])
    );
    for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let of_text = || {
            let all = parts
                .iter()
                .flat_map(|part| part["choices"].as_array().unwrap());
            all.filter(|choice| choice["index"] == i)
        };
        let text: String = of_text()
            .filter_map(|choice| choice["text"].as_str())
            .collect();
        assert_eq!(text, choice["text"].as_str().unwrap());
        assert!(!text.contains("the"));
        for key in ["tokens", "text_offset"] {
            let parts =
                of_text().flat_map(|choice| choice["logprobs"][key].as_array().unwrap().clone());
            assert_eq!(
                Value::from(parts.collect::<Vec<_>>()),
                choice["logprobs"][key],
                "{key}"
            );
        }
        assert_eq!(
            of_text().next_back().unwrap()["finish_reason"],
            choice["finish_reason"]
        );
    }
}

#[test]
fn texts_in_company_are_what_they_are_alone() {
    let server = Server::start(&["--max-concurrent", "3", "--prompt-piece", "4"]);
    let bodies: Vec<Value> = (0..8)
        .map(|i| {
            let prompt = &PROMPT[..PROMPT.len() - 3 * i];
            json!({"model": "tiny", "prompt": prompt, "max_tokens": 10 + i, "logprobs": 2})
        })
        .collect();
    let alone: Vec<Value> = bodies
        .iter()
        .map(|body| completion(&server, body))
        .collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let server = &server;
        let asked: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(move || completion(server, body)))
            .collect();
        asked
            .into_iter()
            .map(|answer| answer.join().unwrap())
            .collect()
    });
    for (alone, together) in alone.iter().zip(&together) {
        let text = |answer: &Value| answer["choices"][0]["text"].clone();
        let tokens = |answer: &Value| answer["choices"][0]["logprobs"]["tokens"].clone();
        assert_eq!(
            (text(alone), tokens(alone)),
            (text(together), tokens(together))
        );
    }
    assert!(server.metric("dlc_prompt_tokens_reused_total{model=\"tiny\"}") > 0);
    server.becomes("dlc_requests_running{model=\"tiny\"}", 0);
    assert_eq!(server.metric("dlc_texts_total{model=\"tiny\"}"), 16);
}

#[test]
fn a_chat_goes_through_the_template() {
    let server = Server::start(&[]);
    let messages = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "is it?"}]},
    ]);
    let mut body = json!({"model": "tiny", "messages": messages, "max_completion_tokens": 8});
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let chat = answer.json();
    let rendered = "<system>Be brief.<user>Who is it?<assistant>";
    let plain = completion(
        &server,
        &json!({"model": "tiny", "prompt": rendered, "max_tokens": 8}),
    );
    assert_eq!(
        chat["choices"][0]["message"]["content"],
        plain["choices"][0]["text"]
    );
    body["stream"] = true.into();
    let events = server.post("/v1/chat/completions", &body).events();
    let parts = events[..events.len() - 1].iter();
    let parts: Vec<Value> = parts
        .map(|part| serde_json::from_str(part).unwrap())
        .collect();
    let text: String = parts
        .iter()
        .filter_map(|part| part["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(chat["choices"][0]["message"]["content"], text);
    assert_eq!(parts[0]["choices"][0]["delta"]["role"], "assistant");
}

#[test]
fn sampling_is_heeded_and_a_seed_repeats_a_text() {
    let server = Server::start(&[]);
    let ask = |more: Value| {
        let mut body = json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 12});
        let fields = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        completion(&server, &body)["choices"][0]["text"].clone()
    };
    let greedy = ask(json!({}));
    let drawn = |seed: i64| ask(json!({"temperature": 1.5, "seed": seed}));
    assert_eq!(drawn(7), drawn(7));
    assert!((1..6).any(|seed| drawn(seed) != greedy));
    assert_eq!(ask(json!({"temperature": 1.5, "top_k": 1})), greedy);
    for penalty in [
        json!({"frequency_penalty": 50}),
        json!({"repetition_penalty": 3}),
        json!({"logit_bias": {"11": -100, "13": -100, "262": -100}, "presence_penalty": 30}),
    ] {
        assert_ne!(ask(penalty.clone()), greedy, "{penalty}");
    }
}

#[test]
fn texts_have_the_form_that_is_asked_for() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    });
    for temperature in [0.0, 1.0] {
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
        let messages = json!([{"role": "user", "content": "Who is it?"}]);
        let body = json!({
            "model": "tiny", "messages": messages, "max_tokens": 60, "response_format": format, "temperature": temperature, "seed": 3,
        });
        let answer = server.post("/v1/chat/completions", &body).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
        let said: Value =
            serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(said["name"].is_string() && said["age"].as_u64().unwrap() < 100);
    }
    let body = json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "structured_outputs": {"regex": "[0-9]{3}-[a-c]+!"}});
    let said = completion(&server, &body);
    let text = said["choices"][0]["text"].as_str().unwrap();
    assert!(
        text.len() > 5 && text.as_bytes()[3] == b'-' && text.ends_with('!'),
        "{text}"
    );
    let refused = json!({"model": "tiny", "prompt": "a", "structured_outputs": {"regex": "("}});
    assert_eq!(server.post("/v1/completions", &refused).status, 400);
}

#[test]
fn models_health_and_descriptions_are_told() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/health").body, "ok\n");
    assert_eq!(server.get("/ready").json()["models"]["tiny"], "ready");
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(server.get("/v1/models/tiny").json()["object"], "model");
    let described = server.get("/openapi.json").json();
    let paths = described["paths"].as_object().unwrap();
    for path in [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/metrics",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
}

#[test]
fn a_stopped_server_finishes_what_is_under_way() {
    let mut server = Server::start(&["--grace", "60"]);
    let body = json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "stream": true, "ignore_eos": true});
    let mut stream = server.open("/v1/completions", &body);
    stream.first_event();
    server.signal("TERM");
    let events = stream.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(server.wait(), Some(143));
    assert!(std::net::TcpStream::connect(("127.0.0.1", server.port)).is_err());
}

#[test]
fn a_stopped_server_breaks_off_what_takes_too_long() {
    let mut server = Server::start(&["--grace", "0"]);
    let body = json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 400, "stream": true, "ignore_eos": true, "temperature": 1.5});
    let mut stream = server.open("/v1/completions", &body);
    stream.first_event();
    let asked = std::time::Instant::now();
    server.signal("INT");
    let events = stream.events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["message"], "the server is stopping");
    assert_eq!(server.wait(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(20));
}

#[test]
fn beginnings_of_texts_go_from_one_server_to_the_next() {
    const REUSED: &str = "dlc_prompt_tokens_reused_total{model=\"tiny\"}";
    let place = Shell::new();
    let folder = place.path("kept");
    let args = ["--save-cache", folder.to_str().unwrap()];
    let body = json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 8});
    let mut first = Server::start(&args);
    let said = completion(&first, &body);
    first.signal("TERM");
    let kept = first.line("model `tiny`: 1 beginning of texts (");
    assert!(kept.contains(" kept in "), "{kept}");
    assert_eq!(first.wait(), Some(143));
    let second = Server::start(&args);
    second.tells("1 beginning of texts");
    assert_eq!(completion(&second, &body)["choices"], said["choices"]);
    let prompt = said["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(second.metric(REUSED), prompt - 1);
    // What isn't whole is named, and read anew.
    place.write("kept/tiny.safetensors", "nonsense");
    let third = Server::start(&args);
    third.tells("beginnings of texts are read anew");
    assert_eq!(completion(&third, &body)["choices"], said["choices"]);
    assert_eq!(third.metric(REUSED), 0);
}

#[test]
fn a_bundle_that_cannot_be_served_leaves_the_others_alone() {
    let shell = Shell::new();
    shell.write("broken/dlc.yaml", "nonsense");
    let server = Server::start_in(shell, &["broken"]);
    assert_eq!(server.get("/ready").status, 200);
    let body = json!({"model": "broken", "prompt": "a"});
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("broken/dlc.yaml") && !answer.head.contains("retry-after"),
        "{}",
        answer.body
    );
    assert_eq!(server.get("/ready").json()["models"]["broken"], "failed");
    completion(
        &server,
        &json!({"model": "tiny", "prompt": "a", "max_tokens": 1}),
    );
}

#[test]
fn what_cannot_be_served_at_all_ends_the_command() {
    let shell = Shell::new();
    shell.write("broken/dlc.yaml", "nonsense");
    let outcomes = [
        vec!["serve"],
        vec!["serve", "broken", "--port", "0"],
        vec!["serve", "a/out", "b/out"],
        vec!["serve", "broken", "--api-key-file", "missing"],
        vec!["serve", "broken", "--host", "203.0.113.7"],
        vec!["serve", "broken", "--save-cache", "broken/dlc.yaml/kept"],
    ]
    .map(|args| shell.dlc(&args).transcript());
    insta::with_settings!({filters => [(r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]")]}, {
        insta::assert_snapshot!(outcomes.join("\n"));
    });
}

/// As Qwen's templates list functions and show calls.
const WITH_TOOLS: &str = "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools> Answer <tool_call>{...}</tool_call>{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}<assistant>";

#[test]
fn functions_are_called_where_that_is_demanded() {
    let shell = Shell::new();
    let server = Server::start_with(shell, WITH_TOOLS, &[]);
    let weather = json!({"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["days"], "additionalProperties": false,
    }}});
    let mut body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "Rain?"}], "tools": [weather], "tool_choice": "required", "max_tokens": 60,
    });
    let answer = server.post("/v1/chat/completions", &body).json();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null),
        "{answer}"
    );
    let call = choice["message"]["tool_calls"][0].clone();
    assert_eq!(call["function"]["name"], "weather");
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!((1..10).contains(&arguments["days"].as_u64().unwrap()));
    body["stream"] = true.into();
    let events = server.post("/v1/chat/completions", &body).events();
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    let streamed = &last["choices"][0]["delta"]["tool_calls"][0];
    assert_eq!(
        (&streamed["function"], &streamed["index"]),
        (&call["function"], &json!(0))
    );
    let more = json!([
        {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "yes"},
    ]);
    let body = json!({"model": "tiny", "messages": more, "tools": [weather], "max_tokens": 4});
    assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
    let odd = json!([
        {"role": "assistant", "content": "x", "tool_calls": ["a", {"function": "a"}]}, {"role": "user", "content": "b"},
    ]);
    let odd = json!({"model": "tiny", "messages": odd, "max_tokens": 2});
    assert_eq!(server.post("/v1/chat/completions", &odd).status, 400);
    let nested = json!({"type": "function", "function": {"name": "go", "parameters": {
        "type": "object", "properties": {"at": {"$ref": "#/$defs/At"}}, "required": ["at"], "additionalProperties": false,
        "$defs": {"At": {"enum": ["here", "there"]}},
    }}});
    let go = json!([{"role": "user", "content": "Go"}]);
    let named = json!({"type": "function", "function": {"name": "go"}});
    let nested = json!({"model": "tiny", "messages": go, "tools": [nested], "tool_choice": named, "max_tokens": 60});
    let answer = server.post("/v1/chat/completions", &nested).json();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert!(
        call["arguments"]
            .as_str()
            .unwrap_or_default()
            .ends_with("here\"}"),
        "{answer}"
    );
    let demanded = json!({"model": "tiny", "messages": go, "tool_choice": "required"});
    assert_eq!(server.post("/v1/chat/completions", &demanded).status, 400);
    for choice in [
        json!("sometimes"),
        json!({"type": "function", "function": {"name": "rain"}}),
    ] {
        let mut body = body.clone();
        body["tool_choice"] = choice;
        assert_eq!(server.post("/v1/chat/completions", &body).status, 400);
    }
}
