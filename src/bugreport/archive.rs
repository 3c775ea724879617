//! The archive: a tar, compressed by gzip, that unpacks into one folder.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

use super::Document;

/// The folder.
pub const FOLDER: &str = "hostweave-bugreport";

/// Packs documents.
///
/// # Errors
/// A name does not fit into a tar.
pub fn pack(documents: &[Document], now: SystemTime) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for document in documents {
        let text = document.to_text();
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
        builder.append_data(&mut header, format!("{FOLDER}/{}", document.name), text.as_bytes())?;
    }
    builder.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_packed_is_found_again() {
        let documents =
            [Document::text("README.txt", "hello\n"), Document::json("objects/port.json", serde_json::json!([1]))];
        let packed = pack(&documents, UNIX_EPOCH).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&packed[..]));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((name, text));
        }
        assert_eq!(found[0], ("hostweave-bugreport/README.txt".to_owned(), "hello\n".to_owned()));
        assert_eq!(found[1], ("hostweave-bugreport/objects/port.json".to_owned(), "[\n  1\n]\n".to_owned()));
    }
}
