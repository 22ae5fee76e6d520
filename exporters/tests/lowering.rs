//! What the ONNX graphs look like, for each profile.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{TARGET, module, request};
use dlc_bundle::Profile;
use dlc_exporters::{ExportError, write_bundle};
use dlc_onnx::{OnnxSummary, read_onnx};

fn export(text: &str, profile: Profile) -> Result<OnnxSummary, ExportError> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    write_bundle(&module(&[text]), &request(profile), &out, &())?;
    Ok(read_onnx(&out.join("model.onnx")).unwrap())
}

/// The target in another element type, as text.
fn target_in(dtype: &str) -> String {
    TARGET.replace("f32[", &format!("{dtype}["))
}

#[test]
fn each_profile_has_its_operators() {
    for profile in Profile::ALL {
        let summary = export(TARGET, profile).unwrap();
        insta::assert_snapshot!(
            format!("listing_{}", profile.name()),
            format!("opsets {:?}\n{}", summary.opsets, summary.listing())
        );
    }
}

#[test]
fn graphs_declare_the_lowest_opset_that_has_their_operators() {
    let image = include_str!("graphs/image.dlc");
    for (graph, profile, opset) in [
        (TARGET, Profile::Portable, 17),
        (TARGET, Profile::Onnx, 23),
        (TARGET, Profile::Ort, 23),
        (image, Profile::Portable, 17),
        (image, Profile::Ort, 17),
    ] {
        let summary = export(graph, profile).unwrap();
        let ir_version = if opset == 17 { 8 } else { 11 };
        assert_eq!(
            (summary.opsets[""], summary.ir_version),
            (opset, ir_version),
            "{}",
            profile.name()
        );
    }
}

#[test]
fn images_are_convolved_normed_and_resized_alike_in_every_profile() {
    let image = include_str!("graphs/image.dlc");
    for profile in Profile::ALL {
        insta::assert_snapshot!(
            format!("listing_image_{}", profile.name()),
            export(image, profile).unwrap().listing()
        );
    }
}

#[test]
fn distances_and_windows_are_computed_once_for_all_layers() {
    let encoder = include_str!("graphs/encoder.dlc");
    for profile in Profile::ALL {
        insta::assert_snapshot!(
            format!("listing_encoder_{}", profile.name()),
            export(encoder, profile).unwrap().listing()
        );
    }
}

#[test]
fn quantised_products_are_one_operator_in_blocks_or_by_exact_arithmetic() {
    let quantized = include_str!("graphs/quantized.dlc");
    for profile in Profile::ALL {
        insta::assert_snapshot!(
            format!("listing_quantized_{}", profile.name()),
            export(quantized, profile).unwrap().listing()
        );
    }
    let half = quantized.replace("f32[", "f16[");
    insta::assert_snapshot!(export(&half, Profile::Portable).unwrap_err().to_string());
}

#[test]
fn half_precision_norms_and_softmax_are_computed_in_single_precision() {
    insta::assert_snapshot!(
        "listing_portable_f16",
        export(&target_in("f16"), Profile::Portable)
            .unwrap()
            .listing()
    );
    let onnx = export(&target_in("bf16"), Profile::Onnx).unwrap();
    assert!(onnx.listing().contains("softmax_precision=1"));
}

#[test]
fn the_text_form_is_read_back_from_the_file() {
    for profile in Profile::ALL {
        let summary = export(TARGET, profile).unwrap();
        let module = module(&[TARGET]);
        assert_eq!(
            summary.graph_text,
            Some(module.graphs[0].to_text(&module.weights))
        );
        assert_eq!(
            (summary.producer.as_str(), summary.graph_name.as_str()),
            ("dlc 0.0.0", "target")
        );
        assert_eq!(summary.external_files, ["weights.bin"]);
    }
}

#[test]
fn nodes_and_values_have_names_of_their_own() {
    for profile in Profile::ALL {
        let summary = export(TARGET, profile).unwrap();
        let mut names: Vec<&str> = summary.nodes.iter().map(|n| n.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), summary.nodes.len());
        assert!(
            names
                .iter()
                .any(|name| name.starts_with("layers.3.mlp/5.linear/"))
        );
    }
}

/// With unequal rotations of queries and keys, one that is read elsewhere, or one of too few
/// entries, `GroupQueryAttention` can't rotate.
#[test]
fn rotations_that_do_not_fold_keep_position_ids() {
    let folds = |text: &str| {
        let summary = export(text, Profile::Ort).unwrap();
        let positions = summary.inputs.iter().any(|i| i.name == "position_ids");
        let rotary = summary.listing().contains("do_rotary=1");
        assert_ne!(positions, rotary);
        rotary
    };
    assert!(folds(TARGET));
    assert!(!folds(&TARGET.replacen(
        "theta=10000.0",
        "theta=500000.0",
        1
    )));
    let read_twice = TARGET.replace(
        "attention %layers.3.attn.4, %layers.3.attn.5, %layers.3.attn.3",
        "attention %layers.3.attn.4, %layers.3.attn.5, %layers.3.attn.5",
    );
    assert!(!folds(&read_twice));
    // Of heads 16 wide it rotates all entries, or none.
    assert!(!folds(&TARGET.replace(" theta=", " rotary_dim=8 theta=")));
}

#[test]
fn outputs_that_are_inputs_or_stand_twice_are_copied() {
    let text = TARGET.replace(
        "  output logits = %2\n",
        "  output ids = %input_ids\n  output logits = %2\n  output again = %2\n",
    );
    let listing = export(&text, Profile::Portable).unwrap().listing();
    assert!(
        listing.contains("ids = Identity input_ids\n")
            && listing.contains("again = Identity logits\n"),
        "{listing}"
    );
}

#[test]
fn heads_too_narrow_for_grouped_attention_get_the_standard_one() {
    let narrow = TARGET
        .replace("heads=2", "heads=8")
        .replace("kv_heads=1", "kv_heads=4")
        .replace(
            "%layers.3.attn.2, %position_ids heads=1",
            "%layers.3.attn.2, %position_ids heads=4",
        )
        .replace("[batch, 1, past", "[batch, 4, past")
        .replace(", 16] (cache", ", 4] (cache")
        .replace("past+seq, 16]", "past+seq, 4]");
    let attention = |text: &str| {
        let listing = export(text, Profile::Ort).unwrap().listing();
        (
            listing.contains("com.microsoft.GroupQueryAttention"),
            listing.contains("= Attention "),
        )
    };
    assert_eq!(attention(TARGET), (true, false));
    assert_eq!(attention(&narrow), (false, true));
}

/// As Hugging Face's exports do: OpenVINO's paged attention misreads queries that are folded into
/// the sequence instead.
#[test]
fn keys_and_values_that_heads_share_are_repeated_in_primitives() {
    let listing = export(TARGET, Profile::Portable).unwrap().listing();
    let of_attention: Vec<&str> = listing
        .lines()
        .filter(|line| line.contains("attention/"))
        .collect();
    for cache in ["present.0.key", "present.0.value"] {
        let repeated = of_attention
            .iter()
            .position(|line| line.contains(&format!("= Unsqueeze {cache},")))
            .unwrap();
        assert!(
            of_attention[repeated + 1].contains("= Expand ")
                && of_attention[repeated + 2].contains("= Reshape "),
            "{listing}"
        );
    }
    assert!(!listing.contains("= Tile "), "{listing}");
}

#[test]
fn padding_is_put_after_the_tokens_for_grouped_attention_alone() {
    let ordered = |text: &str, profile| {
        export(text, profile)
            .unwrap()
            .listing()
            .contains("= ScatterElements input_ids")
    };
    assert!(
        ordered(TARGET, Profile::Ort)
            && !ordered(TARGET, Profile::Onnx)
            && !ordered(TARGET, Profile::Portable)
    );
    // Positions go with their tokens where rotations stand outside the operator.
    let outside = TARGET.replacen("theta=10000.0", "theta=500000.0", 1);
    assert!(
        export(&outside, Profile::Ort)
            .unwrap()
            .listing()
            .contains("= ScatterElements position_ids")
    );
}

#[test]
fn names_that_clash_are_refused() {
    let clash = TARGET.replace("@gate", "@input_ids");
    insta::assert_snapshot!(export(&clash, Profile::Portable).unwrap_err().to_string());
}
