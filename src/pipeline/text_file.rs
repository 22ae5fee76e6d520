//! Text files that users name: read up to a limit, so that a wrong path (a model, a device) neither fills memory nor hangs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The text in a file of at most `cap` bytes.
///
/// # Errors
/// What the system says, or that the file is larger or no UTF-8.
pub fn read_text(path: &Path, cap: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(cap.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > cap {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {cap} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::read_text;

    #[test]
    fn files_without_end_are_refused() {
        let error = read_text(Path::new("/dev/zero"), 1 << 16).expect_err("has no end");
        assert_eq!(error.to_string(), "it is larger than 65536 bytes");
    }

    #[test]
    fn files_up_to_the_limit_are_read() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("text");
        std::fs::write(&path, "word").expect("there is room");
        assert_eq!(read_text(&path, 4).expect("fits"), "word");
        assert!(read_text(&path, 3).is_err());
    }
}
