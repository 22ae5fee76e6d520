//! Models that continue no texts: encoders, cross-encoders, pipelines of pictures.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::Server;
use crate::command::Shell;
use crate::common::fixture;

#[test]
fn vectors_are_those_of_run_whatever_the_company() {
    let shell = Shell::new();
    shell.ok(&[
        "compile",
        "fixtures/cases/sentence-default-prompt",
        "-o",
        "vectors",
    ]);
    let server = Server::start_in(shell, &["vectors"]);
    let texts = ["w1 w7 w30", "w90 w2 w11 w2 w55", "w4"];
    let args = texts.iter().flat_map(|text| ["--text", text]);
    let args: Vec<&str> = ["run", "vectors", "--json"]
        .into_iter()
        .chain(args)
        .collect();
    let run = server.shell.ok(&args).json();
    let body = json!({"model": "vectors", "input": texts});
    let together = server.post("/v1/embeddings", &body).json();
    for (i, text) in texts.iter().enumerate() {
        let body = json!({"model": "vectors", "input": text, "encoding_format": "base64"});
        let alone = server.post("/v1/embeddings", &body).json();
        let bytes = STANDARD
            .decode(alone["data"][0]["embedding"].as_str().unwrap())
            .unwrap();
        let whole = together["data"][i]["embedding"].as_array().unwrap();
        let expected = run[i]["embedding"].as_array().unwrap();
        assert_eq!(bytes.len(), 4 * expected.len());
        for ((x, y), z) in whole.iter().zip(expected).zip(bytes.chunks(4)) {
            let z = f64::from(f32::from_le_bytes(z.try_into().unwrap()));
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            assert!((x - y).abs() < 1e-6 && (z - y).abs() < 1e-6);
        }
    }
    assert!(together["usage"]["prompt_tokens"].as_u64().unwrap() > 8);
    let wrong = json!({"model": "tiny", "input": "a"});
    assert_eq!(server.post("/v1/embeddings", &wrong).status, 400);
    let wrong = json!({"model": "vectors", "prompt": "a"});
    assert_eq!(server.post("/v1/completions", &wrong).status, 400);
    for more in [
        json!({"input": []}),
        json!({"input": [1, 2]}),
        json!({"input": "a", "dimensions": 3}),
    ] {
        let mut body = json!({"model": "vectors"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        assert_eq!(server.post("/v1/embeddings", &body).status, 400, "{more}");
    }
}

#[test]
fn relevance_is_that_of_sentence_transformers() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/cases/cross-encoder", "-o", "ranker"]);
    let server = Server::start_in(shell, &["ranker"]);
    let golden = std::fs::read(fixture("cases/cross-encoder/golden.json")).unwrap();
    let golden: Vec<Value> = serde_json::from_slice(&golden).unwrap();
    for case in &golden {
        let body = json!({"model": "ranker", "query": case["query"], "documents": case["texts"]});
        let answer = server.post("/v1/rerank", &body).json();
        let results = answer["results"].as_array().unwrap();
        let score = |result: &Value| result["relevance_score"].as_f64().unwrap();
        assert!(results.is_sorted_by(|a, b| score(a) >= score(b)));
        assert_eq!(results.len(), case["texts"].as_array().unwrap().len());
        for result in results {
            let expected = &case["scores"][result["index"].as_u64().unwrap() as usize];
            assert!((score(result) - expected.as_f64().unwrap()).abs() < 1e-5);
        }
        let tokens = case["tokens"].as_array().unwrap().iter();
        let tokens: u64 = tokens.map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(answer["usage"]["total_tokens"], tokens);
    }
    let body = json!({"model": "ranker", "query": "w1", "documents": [{"text": "w2"}, "w3"], "top_n": 1, "return_documents": true});
    let answer = server.post("/v1/rerank", &body).json();
    let best = &answer["results"][0];
    assert_eq!(answer["results"].as_array().unwrap().len(), 1);
    let texts = ["w2", "w3"];
    let text = texts[best["index"].as_u64().unwrap() as usize];
    assert_eq!(best["document"]["text"], text);
    for wrong in [
        json!({"model": "ranker", "query": "w1", "documents": []}),
        json!({"model": "ranker", "query": "w1", "documents": [["w2"]]}),
        json!({"model": "ranker", "query": "w1", "documents": [{"text": "w2", "title": "w3"}]}),
        json!({"model": "ranker", "query": "w1", "documents": ["w2"], "top_n": 0}),
        json!({"model": "tiny", "query": "w1", "documents": ["w2"]}),
        json!({"model": "ranker", "documents": ["w2"]}),
    ] {
        assert_eq!(server.post("/v1/rerank", &wrong).status, 400, "{wrong}");
    }
}

#[test]
fn the_open_inference_protocol_says_what_the_other_routes_say() {
    let shell = Shell::new();
    let vectors = "fixtures/cases/sentence-default-prompt";
    shell.ok(&["compile", "fixtures/cases/cross-encoder", "-o", "ranker"]);
    shell.ok(&["compile", vectors, "-o", "vectors"]);
    let server = Server::start_in(shell, &["ranker", "vectors"]);
    let infer = |model: &str, inputs: &Value| {
        let body = json!({"id": "7", "inputs": inputs});
        server.post(&format!("/v2/models/{model}/infer"), &body)
    };
    let texts = ["w1 w7", "w9"];
    let (text, queries) = (tensor("text", &texts), tensor("query", &["w1", "w1"]));

    let told = infer("vectors", &json!([text])).json();
    let body = json!({"model": "vectors", "input": texts});
    let known = server.post("/v1/embeddings", &body).json();
    let rows = [0, 1].map(|i| known["data"][i]["embedding"].as_array().unwrap().clone());
    let output = &told["outputs"][0];
    assert_eq!(output["shape"], json!([2, rows[0].len()]));
    assert_eq!(output["data"], json!(rows.concat()));
    assert_eq!(
        (&told["id"], &told["model_name"]),
        (&json!("7"), &json!("vectors"))
    );

    let told = infer("ranker", &json!([text, queries])).json();
    let body = json!({"model": "ranker", "query": "w1", "documents": texts});
    let known = server.post("/v1/rerank", &body).json();
    for result in known["results"].as_array().unwrap() {
        let at = result["index"].as_u64().unwrap() as usize;
        assert_eq!(told["outputs"][0]["data"][at], result["relevance_score"]);
    }

    let about = server.get("/v2/models/ranker").json();
    assert_eq!(about["inputs"][0]["name"], "query");
    assert_eq!(
        server.get("/v2/health/ready").json(),
        json!({"ready": true})
    );
    assert_eq!(server.get("/v2/models/ranker/ready").status, 200);
    assert_eq!(server.get("/v2/models/nobody/ready").status, 404);
    let of_three = json!({"name": "text", "shape": [3], "datatype": "BYTES", "data": texts});
    let number = json!({"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]});
    for (model, inputs, status) in [
        ("vectors", json!([queries]), 400),
        ("vectors", json!([of_three]), 400),
        ("vectors", json!([number]), 400),
        ("vectors", json!([text, tensor("more", &texts)]), 400),
        ("ranker", json!([text]), 400),
        ("ranker", json!([text, tensor("query", &["w1"])]), 400),
        ("tiny", json!([text]), 400),
        ("nobody", json!([text]), 404),
    ] {
        let answer = infer(model, &inputs);
        assert_eq!(answer.status, status, "{model} {inputs}: {}", answer.body);
        assert!(answer.json()["error"].is_string(), "{}", answer.body);
    }
}

fn tensor(name: &str, data: &[&str]) -> Value {
    json!({"name": name, "shape": [data.len()], "datatype": "BYTES", "data": data})
}

#[test]
fn pictures_are_those_of_sample() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/pipelines/sd15", "-o", "sd"]);
    let server = Server::start_in(shell, &["sd"]);
    let body = json!({"model": "sd", "prompt": "a cat", "negative_prompt": "a dog", "n": 2, "seed": 3, "steps": 2});
    let answer = server.post("/v1/images/generations", &body).json();
    for (at, seed) in ["3", "4"].into_iter().enumerate() {
        let prompt = ["--prompt", "a cat", "--negative-prompt", "a dog"];
        let how = [
            "--seed", seed, "--steps", "2", "--scale", "1", "-o", "one.png",
        ];
        server
            .shell
            .ok(&[&["sample", "sd"], &prompt[..], &how[..]].concat());
        let file = STANDARD.decode(answer["data"][at]["b64_json"].as_str().unwrap());
        let sampled = std::fs::read(server.shell.path("one.png")).unwrap();
        assert_eq!(pixels(&file.unwrap()), pixels(&sampled));
    }
    for (field, value) in [
        ("size", json!("33x32")),
        ("size", json!("large")),
        ("size", json!("0x32")),
        ("size", json!("2048x2048")),
        ("n", json!(11)),
        ("response_format", json!("url")),
        ("quality", json!("hd")),
        ("style", json!("vivid")),
        ("model", json!("tiny")),
    ] {
        let mut wrong = body.clone();
        wrong[field] = value;
        let answer = server.post("/v1/images/generations", &wrong);
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.body);
    }
    let unguided =
        json!({"model": "sd", "prompt": "a cat", "negative_prompt": "a dog", "guidance_scale": 1});
    assert_eq!(server.post("/v1/images/generations", &unguided).status, 400);
}

fn pixels(file: &[u8]) -> Vec<u8> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(file))
        .read_info()
        .unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    pixels
}
