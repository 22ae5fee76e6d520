//! The passes that take away what nothing uses.

use dlc_errors::Faulty;
use dlc_ir::{Module, verify};
use dlc_passes::{Sources, registry};

use super::fakes::{Given, Outside, run_with};
use super::model::Model;

const ALL: [&str; 3] = ["remove-dead-nodes", "remove-unused", "renumber-caches"];

fn text(module: &Module) -> String {
    let graphs: Vec<String> = module
        .graphs
        .iter()
        .map(|g| g.to_text(&module.weights))
        .collect();
    let weights: Vec<&str> = module
        .weights
        .entries()
        .map(|(_, w)| w.name.as_str())
        .collect();
    format!("{}\nweights {}", graphs.concat(), weights.join(" "))
}

/// Runs a pass; returns its facts.
fn run(pass: &str, module: &mut Module) -> Vec<String> {
    let calibration = Given::new(vec![]);
    let outside = Outside {
        calibration: &calibration,
        machine: None,
        samplers: None,
        progress: &(),
        cache: None,
        key: "",
        threads: 1,
    };
    let runs = run_with(pass, "", module, &outside).unwrap();
    assert_eq!((runs.len(), runs[0].name), (1, pass));
    for graph in &module.graphs {
        assert_eq!(verify::verify(graph, &module.weights), []);
    }
    runs[0]
        .report
        .facts
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect()
}

/// The decoder with a copy that lacks the block and layer named.
fn pruned() -> Module {
    let mut module = Model::decoder().module();
    let mut draft = module.graphs[0].clone();
    draft.name = "draft".into();
    for block in ["layers.1.attn", "layers.1.mlp", "layers.0.mlp"] {
        draft.bypass(draft.find_block(block).unwrap()).unwrap();
    }
    module.graphs.push(draft);
    module
}

#[test]
fn nothing_changes_where_nothing_is_left_over() {
    let module = Model::decoder().module();
    for (pass, facts) in [
        ("remove-dead-nodes", vec!["target nodes removed: 0"]),
        (
            "remove-unused",
            vec!["target inputs removed: 0", "weights removed: 0"],
        ),
        ("renumber-caches", vec!["target cache layers: 0 1 2"]),
    ] {
        let mut after = module.clone();
        assert_eq!(run(pass, &mut after), facts);
        assert_eq!(text(&after), text(&module), "{pass}");
    }
}

#[test]
fn what_bypassed_blocks_leave_behind_goes() {
    let mut module = pruned();
    let target = module.graphs[0].to_text(&module.weights);
    assert_eq!(
        run("remove-dead-nodes", &mut module),
        ["target nodes removed: 0", "draft nodes removed: 23"]
    );
    assert_eq!(
        run("remove-unused", &mut module),
        [
            "target inputs removed: 0",
            "draft inputs removed: 2",
            "weights removed: 0"
        ]
    );
    assert_eq!(
        run("renumber-caches", &mut module),
        ["target cache layers: 0 1 2", "draft cache layers: 0 2"]
    );
    assert_eq!(module.graphs[0].to_text(&module.weights), target);
    insta::assert_snapshot!(module.graphs[1].to_text(&module.weights));
}

#[test]
fn a_second_time_changes_nothing() {
    let mut module = pruned();
    for pass in ALL {
        run(pass, &mut module);
    }
    let once = text(&module);
    for pass in ALL {
        run(pass, &mut module);
    }
    assert_eq!(text(&module), once);
}

#[test]
fn weights_go_once_no_graph_uses_them() {
    let mut module = pruned();
    module.graphs.remove(0);
    run("remove-dead-nodes", &mut module);
    assert_eq!(
        run("remove-unused", &mut module),
        ["draft inputs removed: 2", "weights removed: 14"]
    );
    let names: Vec<&str> = module
        .weights
        .entries()
        .map(|(_, w)| w.name.as_str())
        .collect();
    assert!(
        names.iter().all(|n| !n.starts_with("1.") && *n != "0.gate") && names.contains(&"embed"),
        "{names:?}"
    );
}

#[test]
fn passes_are_found_by_name_and_take_only_their_options() {
    for info in registry::PASSES {
        assert_eq!(
            (info.build)(&serde_yaml::Mapping::new(), Sources::NONE)
                .unwrap()
                .name(),
            info.name
        );
        assert!(
            info.then.iter().all(|next| registry::find(next).is_ok()),
            "{}",
            info.name
        );
    }
    let problems = [
        registry::find("fit-prun").unwrap_err(),
        registry::find("dead-nodes").unwrap_err(),
        registry::find("q").unwrap_err(),
        registry::build(
            "remove-unused",
            &serde_yaml::from_str("{drop: 1}").unwrap(),
            Sources::NONE,
        )
        .unwrap_err(),
    ];
    let report: Vec<String> = problems
        .iter()
        .map(|e| format!("{:?}: {e}", e.fault()))
        .collect();
    insta::assert_snapshot!(report.join("\n"));
}
