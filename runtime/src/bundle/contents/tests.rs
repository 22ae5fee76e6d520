//! What is remembered of weights, and for how long.

use dlc_bundle::WEIGHTS_FILE;

use super::*;

/// A file whose content was last changed long ago, as far as its times say.
fn old_file(folder: &Path) -> PathBuf {
    let path = folder.join(WEIGHTS_FILE);
    fs::write(&path, "0123456789abcdef").unwrap();
    path
}

fn state(path: &Path) -> State {
    State::of(&fs::metadata(path).unwrap()).unwrap()
}

#[test]
fn a_file_that_changed_just_now_is_not_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let (path, cache) = (old_file(folder.path()), folder.path().join("cache"));
    assert!(!state(&path).is_settled());
    hash(&path, Some(&cache)).unwrap();
    assert!(!cache.exists());
    let long_ago = State {
        modified: (7, 0),
        changed: (7, 0),
        ..state(&path)
    };
    assert!(long_ago.is_settled());
    assert!(
        !State {
            modified: (i64::MAX, 0),
            ..long_ago
        }
        .is_settled()
    );
}

#[test]
fn what_is_remembered_holds_until_the_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (path, cache) = (old_file(folder.path()), folder.path().join("cache"));
    let remembered = FileRecord {
        bytes: 16,
        sha256: "remembered".into(),
    };
    state(&path).keep(&cache, &remembered);
    assert_eq!(hash(&path, Some(&cache)).unwrap(), remembered);
    assert_eq!(
        hash(&path, None).unwrap(),
        FileRecord::of_file(&path).unwrap()
    );
    // Times that are set back are a change too.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "X123456789abcdef").unwrap();
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert_eq!(
        hash(&path, Some(&cache)).unwrap(),
        FileRecord::of_file(&path).unwrap()
    );
}

#[test]
fn broken_entries_are_no_entries() {
    let folder = tempfile::tempdir().unwrap();
    let (path, cache) = (old_file(folder.path()), folder.path().join("cache"));
    fs::create_dir(&cache).unwrap();
    for text in ["", "{", "{\"state\": null}"] {
        fs::write(state(&path).entry(&cache), text).unwrap();
        assert_eq!(
            hash(&path, Some(&cache)).unwrap(),
            FileRecord::of_file(&path).unwrap()
        );
    }
}
