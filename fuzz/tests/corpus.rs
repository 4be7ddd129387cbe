//! Replays the corpus, so that earlier findings stay fixed.

use std::path::Path;

fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("readable folder").map(|file| file.expect("readable file").path()).collect();
    files.sort();
    assert!(files.len() >= 10, "expected at least 10 files, found {} in {}", files.len(), folder.display());
    for file in files {
        let bytes = std::fs::read(&file).expect("the corpus file is readable");
        let replayed = std::panic::catch_unwind(|| target(&bytes));
        assert!(replayed.is_ok(), "the target panicked on {}", file.display());
    }
}

#[test]
fn no_command_of_the_corpus_breaks_the_parser() {
    replay("command", fuzz::check_command);
}

#[test]
fn no_answer_of_the_corpus_breaks_the_client() {
    replay("answer", fuzz::check_answer);
}

#[test]
fn no_picture_of_the_corpus_breaks_the_encoder() {
    replay("encoder", fuzz::check_encoder);
}

#[test]
fn no_picture_of_the_corpus_breaks_the_pipeline() {
    replay("picture", fuzz::check_picture);
}
