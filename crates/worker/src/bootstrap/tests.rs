use std::fs;
use std::path::Path;

use domain::event::EventKind;
use domain::schema;

use super::rules;

/// Rewrites a file that differs from what the types say, and fails: the change is to be reviewed and committed.
#[test]
fn schema_files_match_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schemas");
    let schemas = [
        ("command.json", schema::command(&rules())),
        ("cancel.json", schema::cancel()),
        ("event-started.json", schema::event(EventKind::Started)),
        ("event-progress.json", schema::event(EventKind::Progress)),
        ("event-completed.json", schema::event(EventKind::Completed)),
        ("event-failed.json", schema::event(EventKind::Failed)),
    ];
    let mut outdated = Vec::new();
    for (name, schema) in schemas {
        let text = serde_json::to_string_pretty(&schema).expect("a schema serialises") + "\n";
        if fs::read_to_string(folder.join(name)).ok().as_deref() != Some(&text) {
            fs::write(folder.join(name), text).expect("the file can be written");
            outdated.push(name);
        }
    }
    assert!(outdated.is_empty(), "these files of docs/schemas were outdated, and are updated now: {outdated:?}");
}
