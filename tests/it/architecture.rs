//! Checks the crate graph in ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const PAGE: &str = include_str!("../../ARCHITECTURE.md");

/// Packages for tests and development only.
const DEVELOPMENT_PACKAGES: [&str; 6] =
    ["dev-services", "dev-tools", "fuzz", "gemini-sandbox", "integration-tests", "stability-sandbox"];

/// One line `a --> b` for each dependency between product crates.
fn dependency_edges() -> Result<BTreeSet<String>> {
    let arguments = ["metadata", "--no-deps", "--locked", "--offline", "--format-version", "1"];
    let output = Command::new(env!("CARGO")).args(arguments).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let name = |package: &Value| package["name"].as_str().unwrap_or_default().to_owned();
    let product: BTreeSet<String> =
        packages.iter().map(name).filter(|name| !DEVELOPMENT_PACKAGES.contains(&name.as_str())).collect();
    let mut edges = BTreeSet::new();
    for package in packages.iter().filter(|package| product.contains(&name(package))) {
        for dependency in package["dependencies"].as_array().context("package without dependencies")? {
            if dependency["kind"].is_null() && product.contains(&name(dependency)) {
                edges.insert(format!("{} --> {}", name(package), name(dependency)));
            }
        }
    }
    Ok(edges)
}

#[test]
fn documented_crate_graph_matches_cargo_metadata() -> Result<()> {
    let graph = PAGE.split("```mermaid\ngraph TD\n").nth(1).context("ARCHITECTURE.md has no crate graph")?;
    let graph = graph.split("```").next().context("the crate graph has no end")?;
    let drawn: BTreeSet<String> = graph.lines().map(|line| line.trim().to_owned()).collect();
    assert_eq!(drawn.iter().filter(|line| !line.is_empty()).cloned().collect::<BTreeSet<_>>(), dependency_edges()?);
    Ok(())
}
