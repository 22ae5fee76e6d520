use std::io::Write;

use sha2::{Digest, Sha256};
use zip::write::{SimpleFileOptions, ZipWriter};

use super::*;

/// A wheel with these members, and its record.
pub fn fake(package: &'static str, members: &[(&str, &str)]) -> (Wheel, Vec<u8>) {
    let mut writer = ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, text) in members {
        writer
            .start_file(*name, SimpleFileOptions::default())
            .unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    let wheel = Wheel {
        package,
        file: "onnxruntime-0-fake.whl",
        bytes: bytes.len() as u64,
        sha256: format!("{:x}", Sha256::digest(&bytes)).leak(),
    };
    (wheel, bytes)
}

fn unpacked(package: &'static str, members: &[(&str, &str)]) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let (wheel, bytes) = fake(package, members);
    let path = folder.path().join("wheel");
    fs::write(&path, bytes).unwrap();
    let into = folder.path().join("into");
    fs::create_dir(&into).unwrap();
    let names = Libraries::find(&path, &wheel)?.unpack(&wheel, &into)?;
    for name in &names {
        assert_eq!(fs::read_to_string(into.join(name)).unwrap(), *name);
    }
    Ok(names)
}

#[test]
fn every_wheel_is_of_the_version_that_the_script_fetches() {
    let script = include_str!("../../../scripts/fetch_onnxruntime.sh");
    assert!(script.contains(&format!("\nversion={VERSION}\n")));
    for (platform, package, file, bytes, sha256) in WHEELS {
        let start = format!("{}-{VERSION}-", package.replace('-', "_"));
        assert!(file.starts_with(&start), "{file}");
        let hex = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(hex && bytes > 1_000_000, "{file}");
        let found = Wheel::pinned(platform, package == "onnxruntime-gpu");
        assert_eq!(found.map(|wheel| wheel.file), Some(file));
    }
    assert!(Wheel::pinned("macos-x86_64", false).is_none());
    assert!(Wheel::pinned("linux-musl-x86_64", false).is_none());
}

#[test]
fn only_libraries_are_taken_and_providers_only_of_the_cuda_build() {
    let members = [
        "onnxruntime/capi/libonnxruntime.so.1.2.3",
        "onnxruntime/capi/libonnxruntime_providers_cuda.so",
        "onnxruntime/capi/onnxruntime_pybind11_state.so",
        "onnxruntime/capi/../libonnxruntime.so.1.2.3",
        "onnxruntime/libonnxruntime.so.1.2.3",
    ]
    .map(|name| (name, name.rsplit('/').next().unwrap_or(name)));
    assert_eq!(
        unpacked("onnxruntime", &members).unwrap(),
        ["libonnxruntime.so.1.2.3"]
    );
    assert_eq!(
        unpacked("onnxruntime-gpu", &members).unwrap(),
        [
            "libonnxruntime.so.1.2.3",
            "libonnxruntime_providers_cuda.so"
        ]
    );
    for other in ["onnxruntime.dll", "libonnxruntime.1.2.3.dylib"] {
        let member = format!("onnxruntime/capi/{other}");
        assert_eq!(
            unpacked("onnxruntime", &[(&member, other)]).unwrap(),
            [other]
        );
    }
    let error = unpacked("onnxruntime-gpu", &members[1..3]).unwrap_err();
    assert!(error.message().contains("holds no shared library"));
}
