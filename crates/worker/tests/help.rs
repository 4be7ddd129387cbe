//! What the built program says about itself.

use std::process::Command;

/// Runs `asset-worker` with these arguments, without any settings, and takes what it prints.
fn printed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_asset-worker"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_command_explains_itself() {
    for command in ["run", "submit", "generate", "jobs", "dead-letters", "style", "inspect", "migrate", "doctor"] {
        insta::assert_snapshot!(command, printed(&[command, "--help"]));
    }
    insta::assert_snapshot!("asset-worker", printed(&["--help"]));
    insta::assert_snapshot!("jobs_list", printed(&["jobs", "list", "--help"]));
    insta::assert_snapshot!("jobs_show", printed(&["jobs", "show", "--help"]));
    insta::assert_snapshot!("jobs_republish", printed(&["jobs", "republish", "--help"]));
    for asked in ["list", "show", "replay", "discard"] {
        insta::assert_snapshot!(format!("dead_letters_{asked}"), printed(&["dead-letters", asked, "--help"]));
    }
    for asked in ["set", "show", "clear"] {
        insta::assert_snapshot!(format!("style_{asked}"), printed(&["style", asked, "--help"]));
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(printed(&["--version"]), format!("asset-worker {}\n", env!("CARGO_PKG_VERSION")));
}
