//! Servers that fail or lie, transfers that break off, caches that lead elsewhere.

use std::fs;

use super::{Machine, TINY, WEIGHTS, files};
use crate::atomic::wait_for;
use crate::common::fixture;
use crate::common::hub::{COMMIT, Reply, etag};
use crate::stopping::send;

#[test]
fn a_broken_transfer_goes_on_where_it_ended() {
    let machine = Machine::new();
    let mut cuts = 0;
    machine.server.meddle(move |seen, mut reply| {
        if seen.elsewhere && cuts < 3 {
            cuts += 1;
            reply.cut = Some(1_000_000);
        }
        reply
    });
    machine.ok(&["inspect", TINY]);
    let seen = machine.server.seen();
    let ranges: Vec<_> = seen
        .iter()
        .filter(|seen| seen.elsewhere)
        .map(|seen| seen.header("range"))
        .collect();
    let later = ["bytes=1000000-", "bytes=2000000-", "bytes=3000000-"].map(Some);
    assert_eq!(ranges, [&[None][..], &later].concat());
}

#[test]
fn the_next_run_goes_on_where_the_last_one_ended() {
    let machine = Machine::new();
    let mut sent = false;
    machine.server.meddle(move |seen, mut reply| {
        if seen.elsewhere {
            reply.cut = Some(if sent { 0 } else { 1000 });
            sent = true;
        }
        reply
    });
    let parts = [
        "org/tiny@main",
        "of model.safetensors broke off after 1000 of 4966184 bytes",
        "goes on from there",
    ];
    machine.fails(&["inspect", TINY], &[], &parts);
    let content = fs::read(fixture("tiny-llama/model.safetensors")).unwrap();
    let etag = etag(WEIGHTS, &content);
    let blobs = machine.folder(TINY).join("blobs");
    let part = blobs.join(format!("{etag}.incomplete"));
    assert_eq!(fs::read(&part).unwrap(), content[..1000]);
    machine.server.behave();
    machine.server.seen();
    let outcome = machine.ok(&["inspect", TINY]);
    assert!(
        outcome.stderr.contains(": 3 files, 5 MB"),
        "{}",
        outcome.transcript()
    );
    let seen = machine.server.seen();
    let last = seen.iter().find(|seen| seen.elsewhere).unwrap();
    assert_eq!(last.header("range"), Some("bytes=1000-"));
    assert!(!part.exists() && blobs.join(etag).exists());
}

#[test]
fn a_server_without_ranges_and_a_damaged_beginning_cost_a_second_try() {
    for damaged in [false, true] {
        let machine = Machine::new();
        let content = fs::read(fixture("tiny-llama/model.safetensors")).unwrap();
        let etag = etag(WEIGHTS, &content);
        let mut start = content[..5000].to_vec();
        start[7] ^= u8::from(damaged);
        machine.shell.write(
            &format!("hf/hub/models--org--tiny/blobs/{etag}.incomplete"),
            start,
        );
        machine.server.meddle(move |seen, reply| {
            if seen.elsewhere && !damaged {
                return Reply::new("200 OK").body(content.clone());
            }
            reply
        });
        machine.ok(&["inspect", TINY]);
        let seen = machine.server.seen();
        let transfers = seen.iter().filter(|seen| seen.elsewhere).count();
        assert_eq!(transfers, if damaged { 2 } else { 1 });
    }
}

#[test]
fn what_is_not_the_file_gets_no_name() {
    for (file, large) in [("config.json", false), (WEIGHTS, true)] {
        let machine = Machine::new();
        machine.server.meddle(move |seen, mut reply| {
            if seen.method == "GET" && seen.elsewhere == large && seen.path.contains(file) {
                reply.body[20] ^= 1;
            }
            reply
        });
        machine.fails(
            &["inspect", TINY],
            &[],
            &["org/tiny@main", file, "its hash is", "HF_ENDPOINT"],
        );
        let blobs = files(&machine.folder(TINY).join("blobs"));
        assert!(
            blobs.iter().all(|name| !name.ends_with(".incomplete")),
            "{blobs:?}"
        );
        machine.server.behave();
        machine.ok(&["inspect", TINY]);
    }
    let machine = Machine::new();
    machine.server.meddle(|seen, mut reply| {
        if seen.elsewhere {
            reply.body.push(0);
        }
        reply
    });
    machine.fails(
        &["inspect", TINY],
        &[],
        &[WEIGHTS, "longer than the 4966184 bytes"],
    );
}

#[test]
fn refusals_say_what_to_do() {
    let machine = Machine::new();
    let (inspect, url) = (["inspect", TINY], machine.server.url.clone());
    let say = |status: &'static str, code: &'static str| {
        machine
            .server
            .meddle(move |_, _| Reply::new(status).header("X-Error-Code", code));
    };
    for (status, code) in [
        ("403 Forbidden", "GatedRepo"),
        ("401 Unauthorized", "GatedRepo"),
        ("403 Forbidden", ""),
    ] {
        say(status, code);
        machine.fails(
            &inspect,
            &[],
            &[&format!("accept its terms at {url}/org/tiny"), "HF_TOKEN"],
        );
    }
    say("404 Not Found", "RepoNotFound");
    machine.fails(
        &inspect,
        &[],
        &["no such folder here, and the Hub has no repository of this name"],
    );
    say("418 Teapot", "");
    machine.fails(&inspect, &[], &["the server answers 418"]);
    machine.server.meddle(|seen, reply| {
        if seen.path.ends_with(WEIGHTS) {
            return Reply::new("404 Not Found").header("X-Error-Code", "EntryNotFound");
        }
        reply
    });
    machine.fails(&inspect, &[], &["no file model.safetensors in it"]);
    machine.fails(
        &inspect,
        &[("HF_ENDPOINT", "ftp://hub")],
        &["HF_ENDPOINT isn't an address"],
    );
    machine.fails(
        &inspect,
        &[("HF_ENDPOINT", "http://127.0.0.1:9")],
        &[
            "neither a folder here nor whole in the cache",
            "http://127.0.0.1:9 can't be asked",
            "HTTPS_PROXY",
            "hf download",
        ],
    );
}

#[test]
fn a_busy_server_is_asked_again_when_it_says_so() {
    let machine = Machine::new();
    let mut answers = vec![
        Reply::new("429 Too Many Requests").header("RateLimit", "\"api\";r=0;t=0"),
        Reply::new("503 Service Unavailable"),
        Reply::new("429 Too Many Requests").header("Retry-After", "1"),
    ];
    machine
        .server
        .meddle(move |_, reply| answers.pop().unwrap_or(reply));
    machine.ok(&["inspect", TINY]);
    let other = Machine::new();
    other
        .server
        .meddle(|_, _| Reply::new("429 Too Many Requests").header("Retry-After", "86400"));
    other.fails(
        &["inspect", TINY],
        &[],
        &["429", "asks to wait 86400 s", "HF_TOKEN"],
    );
    assert_eq!(other.server.seen().len(), 1);
    other
        .server
        .meddle(|_, _| Reply::new("429 Too Many Requests").header("Retry-After", "0"));
    other.fails(
        &["inspect", TINY],
        &[],
        &["429", "takes no more requests for now"],
    );
    assert_eq!(other.server.seen().len(), 5);
}

#[test]
fn hostile_servers_lead_nowhere() {
    let machine = Machine::new();
    let inspect = ["inspect", "org/shards"];
    machine
        .server
        .add_folder("org/shards", &fixture("cases/index-with-stale-key"));
    let index = fs::read_to_string(fixture(
        "cases/index-with-stale-key/model.safetensors.index.json",
    ))
    .unwrap();
    for name in [
        "../../../../escaped.safetensors",
        "/tmp/escaped.safetensors",
        "a\\\\b.safetensors",
    ] {
        machine.server.add(
            "org/shards",
            "model.safetensors.index.json",
            index.replace("model-00001-of-00002.safetensors", name),
        );
        machine.fails(&inspect, &[], &["is not a plain file name"]);
        fs::remove_dir_all(machine.cache()).unwrap();
    }
    let list = |names: &[&str]| {
        let names: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        serde_json::json!({"sha": COMMIT, "siblings": names}).to_string()
    };
    let lists = [
        (
            list(&[
                "config.json",
                "1_Pooling/../../../x",
                "1_Pooling/..\\x",
                "/etc/passwd",
                "../model.safetensors",
            ]),
            "holds no model.safetensors",
        ),
        (
            list(&["config.json"]).replace(COMMIT, "../../../../outside"),
            "isn't the Hub's",
        ),
        ("[]".to_owned(), "is no list"),
        ("<html>".to_owned(), "is no list"),
        (list(&vec!["x"; 100_001]), "isn't the Hub's"),
    ];
    for (body, expected) in lists {
        machine.server.meddle(move |seen, reply| {
            if seen.path.starts_with("/api/") {
                Reply::new("200 OK").body(body.clone())
            } else {
                reply
            }
        });
        machine.fails(&["inspect", TINY], &[], &[expected]);
    }
    for (location, expected) in [
        ("file:///etc/passwd", "isn't safe to follow"),
        ("gopher://host/", "isn't safe to follow"),
        ("/again", "too many redirects"),
    ] {
        machine
            .server
            .meddle(move |_, _| Reply::new("302 Found").header("Location", location));
        machine.fails(&["inspect", TINY], &[], &[expected]);
    }
    for etag in ["", "\"../../../../escaped\"", "\"abc\""] {
        machine.server.meddle(move |seen, reply| {
            if seen.method != "HEAD" {
                return reply;
            }
            Reply::new("200 OK")
                .header("ETag", etag)
                .header("Content-Length", "10")
        });
        machine.fails(&["inspect", TINY], &[], &["doesn't say size and hash of"]);
    }
    machine.server.meddle(|seen, reply| {
        if seen.method != "HEAD" {
            return reply;
        }
        reply.header("X-Linked-Size", u64::MAX.to_string())
    });
    machine.fails(&["inspect", TINY], &[], &["has room for", "HF_HUB_CACHE"]);
    assert_eq!(files(&machine.shell.path("hf")), Vec::<String>::new());
}

#[test]
fn links_that_leave_the_cache_are_refused() {
    let machine = Machine::new();
    machine.ok(&["inspect", TINY]);
    let path = machine
        .folder(TINY)
        .join(format!("snapshots/{COMMIT}/tokenizer.json"));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(fixture("tiny-llama/tokenizer.json"), &path).unwrap();
    machine.fails(
        &["inspect", TINY],
        &[],
        &["tokenizer.json: leads out of the cache"],
    );
    // A cache that lies elsewhere itself is nobody's trick.
    fs::remove_file(&path).unwrap();
    machine.ok(&["inspect", TINY]);
    fs::rename(machine.folder(TINY), machine.shell.path("disk")).unwrap();
    std::os::unix::fs::symlink(machine.shell.path("disk"), machine.folder(TINY)).unwrap();
    machine.ok(&["inspect", TINY]);
}

#[test]
fn an_interrupted_download_says_where_it_goes_on() {
    let machine = Machine::new();
    machine.server.meddle(|seen, mut reply| {
        if seen.elsewhere {
            (reply.cut, reply.stalls) = (Some(1_000_000), true);
        }
        reply
    });
    let mut child = machine.start(&["inspect", TINY]);
    let blobs = machine.folder(TINY).join("blobs");
    let grown = || {
        files(&blobs).iter().any(|name| {
            name.ends_with(".incomplete")
                && fs::metadata(blobs.join(name)).is_ok_and(|part| part.len() == 1_000_000)
        })
    };
    assert!(wait_for(&mut child, grown));
    send("INT", &child);
    let outcome = machine
        .shell
        .outcome(&[], &child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    let kept = "the work so far is kept in [TMP]/hf/hub, and the same command goes on from there";
    assert!(outcome.stderr.contains(kept), "{}", outcome.transcript());
    machine.server.behave();
    machine.server.seen();
    machine.ok(&["inspect", TINY]);
    let seen = machine.server.seen();
    let last = seen.iter().find(|seen| seen.elsewhere).unwrap();
    assert_eq!(last.header("range"), Some("bytes=1000000-"));
}
