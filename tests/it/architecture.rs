//! The crate graph of ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const PAGE: &str = include_str!("../../ARCHITECTURE.md");

/// Packages that exist for tests and development only.
const DEVELOPMENT: [&str; 6] =
    ["dev-services", "dev-tools", "fuzz", "gemini-sandbox", "integration-tests", "stability-sandbox"];

/// `a --> b` for each product crate and each product crate that it depends on.
fn edges() -> Result<BTreeSet<String>> {
    let arguments = ["metadata", "--no-deps", "--locked", "--offline", "--format-version", "1"];
    let output = Command::new(env!("CARGO")).args(arguments).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let name = |package: &Value| package["name"].as_str().unwrap_or_default().to_owned();
    let product: BTreeSet<String> =
        packages.iter().map(name).filter(|name| !DEVELOPMENT.contains(&name.as_str())).collect();
    let mut edges = BTreeSet::new();
    for package in packages.iter().filter(|package| product.contains(&name(package))) {
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            if dependency["kind"].is_null() && product.contains(&name(dependency)) {
                edges.insert(format!("{} --> {}", name(package), name(dependency)));
            }
        }
    }
    Ok(edges)
}

#[test]
fn crate_graph_is_the_one_of_cargo() -> Result<()> {
    let graph = PAGE.split("```mermaid\ngraph TD\n").nth(1).context("the crate graph")?;
    let graph = graph.split("```").next().context("its end")?;
    let drawn: BTreeSet<String> = graph.lines().map(|line| line.trim().to_owned()).collect();
    assert_eq!(drawn.iter().filter(|line| !line.is_empty()).cloned().collect::<BTreeSet<_>>(), edges()?);
    Ok(())
}
