//! Help texts and version of the built program.

use std::process::Command;

/// Runs `asset-worker` with these arguments and an empty environment, and returns its standard output.
fn stdout_of(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_asset-worker"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("standard output is UTF-8")
}

#[test]
fn help_output_of_every_command_matches_snapshot() {
    for command in [
        "run",
        "submit",
        "generate",
        "estimate",
        "jobs",
        "costs",
        "purge",
        "storage",
        "dead-letters",
        "style",
        "inspect",
        "pause",
        "resume",
        "migrate",
        "doctor",
        "completions",
        "man",
    ] {
        insta::assert_snapshot!(command, stdout_of(&[command, "--help"]));
    }
    insta::assert_snapshot!("asset-worker", stdout_of(&["--help"]));
    insta::assert_snapshot!("storage_verify", stdout_of(&["storage", "verify", "--help"]));
    insta::assert_snapshot!("jobs_list", stdout_of(&["jobs", "list", "--help"]));
    insta::assert_snapshot!("jobs_show", stdout_of(&["jobs", "show", "--help"]));
    insta::assert_snapshot!("jobs_republish", stdout_of(&["jobs", "republish", "--help"]));
    for subcommand in ["list", "show", "replay", "discard"] {
        insta::assert_snapshot!(
            format!("dead_letters_{subcommand}"),
            stdout_of(&["dead-letters", subcommand, "--help"])
        );
    }
    for subcommand in ["set", "show", "clear"] {
        insta::assert_snapshot!(format!("style_{subcommand}"), stdout_of(&["style", subcommand, "--help"]));
    }
}

#[test]
fn version_flag_prints_package_version() {
    assert_eq!(stdout_of(&["--version"]), format!("asset-worker {}\n", env!("CARGO_PKG_VERSION")));
}
