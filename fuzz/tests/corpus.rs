//! The corpus is replayed: what was once found stays mended.

use std::path::Path;

fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("a folder").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{} files in {}", files.len(), folder.display());
    for file in files {
        let bytes = std::fs::read(&file).expect("a file");
        let replayed = std::panic::catch_unwind(|| target(&bytes));
        assert!(replayed.is_ok(), "{}", file.display());
    }
}

#[test]
fn no_command_of_the_corpus_breaks_the_parser() {
    replay("command", fuzz::command);
}

#[test]
fn no_answer_of_the_corpus_breaks_the_client() {
    replay("answer", fuzz::answer);
}

#[test]
fn no_picture_of_the_corpus_breaks_the_pipeline() {
    replay("picture", fuzz::picture);
}
