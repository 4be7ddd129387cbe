//! Checks the documentation, the workflows and the release check of the repository.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// The tracked files, relative to the root of the repository.
fn tracked_files() -> Result<Vec<String>> {
    let output = Command::new("git").arg("-C").arg(root()).arg("ls-files").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

fn markdown_files() -> Result<Vec<String>> {
    Ok(tracked_files()?.into_iter().filter(|file| Path::new(file).extension().is_some_and(|end| end == "md")).collect())
}

/// The targets of the links in a page, without those in code.
fn links(page: &str) -> Vec<&str> {
    let prose = page.split("```").step_by(2);
    prose.flat_map(|text| text.split("](").skip(1)).filter_map(|rest| rest.split(')').next()).collect()
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
}

#[test]
fn links_between_pages_lead_to_existing_headings() -> Result<()> {
    for file in markdown_files()? {
        let page = read(&file)?;
        let folder = Path::new(&file).parent().unwrap_or(Path::new(""));
        for link in links(&page).into_iter().filter(|link| !link.contains("://")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { PathBuf::from(&file) } else { folder.join(path) };
            ensure!(root().join(&target).exists(), "{file} links to {link}, which does not exist");
            if !heading.is_empty() {
                let text = read(&target.to_string_lossy())?;
                let exists = text.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
                ensure!(exists, "{file} links to {link}, a heading that does not exist");
            }
        }
    }
    Ok(())
}

#[test]
fn index_lists_every_page_and_each_states_its_purpose() -> Result<()> {
    let index = read("docs/README.md")?;
    for file in markdown_files()?.iter().filter(|file| file.starts_with("docs/")) {
        let name = file.trim_start_matches("docs/");
        if !name.starts_with("decisions/") && name != "README.md" {
            assert!(index.contains(&format!("({name})")), "docs/README.md does not list {name}");
        }
        let page = read(file)?;
        let mut lines = page.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with("# ")), "{file} has no title");
        let purpose = lines.nth(1).unwrap_or_default();
        assert!(purpose.starts_with(char::is_alphabetic), "{file} does not begin with a sentence: {purpose}");
    }
    Ok(())
}

#[test]
fn each_promise_of_the_http_api_and_the_pages_names_its_test() -> Result<()> {
    let mut rows = Vec::new();
    for (page, expected) in [("docs/api.md", 15), ("docs/pages.md", 12)] {
        let page = read(page)?;
        let (_, table) = page.split_once("## Under attack and load").context("the page has no such section")?;
        let found: Vec<String> =
            table.lines().filter(|line| line.starts_with("| ")).skip(2).map(str::to_owned).collect();
        assert!(found.len() >= expected, "{found:#?}");
        rows.extend(found);
    }
    let tests = tracked_files()?.into_iter().filter(|file| file.starts_with("tests/it/"));
    let tests = tests.map(|file| read(&file)).collect::<Result<String>>()?;
    for row in rows {
        let names = row.trim_end_matches(" |").rsplit('|').next().unwrap_or_default().split(',');
        for name in names.map(|name| name.trim().trim_matches('`')) {
            assert!(!name.is_empty() && tests.contains(&format!("fn {name}(")), "no test {name}: {row}");
        }
    }
    Ok(())
}

#[test]
fn readme_is_short_and_its_pictures_are_small() -> Result<()> {
    assert!(read("README.md")?.lines().count() <= 150);
    for picture in ["docs/contact-sheet.jpg", "docs/page-job.jpg", "docs/page-overview.jpg"] {
        let size = std::fs::metadata(root().join(picture))?.len();
        assert!(size < 200_000, "{picture}: {size} bytes");
    }
    Ok(())
}

#[test]
fn workflows_run_only_existing_make_targets() -> Result<()> {
    let makefile = read("Makefile")?;
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| line.contains(": ") && line.contains("## "))
        .filter_map(|line| line.split(':').next())
        .collect();
    let workflows = tracked_files()?.into_iter().filter(|file| file.starts_with(".github/workflows/"));
    let mut commands = 0;
    for file in workflows {
        let workflow: Value = serde_saphyr::from_str(&read(&file)?)?;
        for (job, content) in workflow["jobs"].as_object().context("the workflow has no jobs")? {
            let steps = content["steps"].as_array().with_context(|| format!("{file}: {job} has no steps"))?;
            for command in steps.iter().filter_map(|step| step["run"].as_str()) {
                let mut words = command.split_whitespace();
                assert_eq!(words.next(), Some("make"), "{file}: {command}");
                for target in words
                    .filter(|word| !word.starts_with("IMAGE="))
                    .filter(|word| word.starts_with(char::is_alphabetic))
                {
                    assert!(targets.contains(target), "{file}: {command}");
                }
                commands += 1;
            }
        }
    }
    assert!(commands >= 7, "{commands} commands");
    Ok(())
}

/// A copy of the repository in which releases can be tried.
struct Checkout {
    folder: tempfile::TempDir,
}

impl Checkout {
    fn new() -> Result<Self> {
        let checkout = Self { folder: tempfile::tempdir()? };
        for file in
            tracked_files()?.iter().filter(|file| !file.starts_with("docs/") && !file.starts_with("fuzz/corpus/"))
        {
            let target = checkout.folder.path().join(file);
            std::fs::create_dir_all(target.parent().context("a file without a folder")?)?;
            std::fs::copy(root().join(file), target).with_context(|| file.clone())?;
        }
        checkout.git(&["init", "--quiet"])?;
        Ok(checkout)
    }

    fn git(&self, arguments: &[&str]) -> Result<()> {
        let identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"];
        let output = Command::new("git").current_dir(&self.folder).args(identity).args(arguments).output()?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn commit(&self) -> Result<()> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "a commit"])
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.path().join(file), text)?)
    }

    fn release(&self) -> Result<Output> {
        let cargo = format!("CARGO={}", env!("CARGO"));
        let mut command = Command::new("make");
        // `make test` runs this test: its options do not apply.
        command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env("CARGO_NET_OFFLINE", "true");
        Ok(command.current_dir(&self.folder).args(["--no-print-directory", "release", &cargo]).output()?)
    }

    fn assert_refused(&self, expected: &str) -> Result<()> {
        let output = self.release()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && printed.contains(expected), "{expected}: {printed}{errors}");
        Ok(())
    }
}

#[test]
fn release_check_names_what_is_missing() -> Result<()> {
    let checkout = Checkout::new()?;
    let cargo_toml = read("Cargo.toml")?;
    let version = cargo_toml.lines().find_map(|line| line.strip_prefix("version = ")).context("no version")?;
    let version = version.trim_matches('"');
    checkout.write("CHANGELOG.md", "# Changelog\n\n## Unreleased\n\n- A change.\n")?;
    checkout.commit()?;
    checkout.assert_refused(&format!("CHANGELOG.md has no section '## {version} - YYYY-MM-DD'"))?;

    let released = format!("## {version} - 2026-12-01\n\n- A change.\n");
    checkout.write("CHANGELOG.md", &format!("# Changelog\n\n## Unreleased\n\n- Another.\n\n{released}"))?;
    checkout.assert_refused("uncommitted changes")?;
    checkout.commit()?;
    checkout.assert_refused("CHANGELOG.md still lists unreleased changes")?;

    checkout.write("CHANGELOG.md", &format!("# Changelog\n\n## Unreleased\n\n{released}"))?;
    checkout.commit()?;
    let ready = checkout.release()?;
    let printed = String::from_utf8_lossy(&ready.stdout);
    assert!(ready.status.success() && printed.contains(&format!("{version} is ready")), "{printed}");

    checkout.git(&["tag", &format!("v{version}")])?;
    assert!(checkout.release()?.status.success(), "the tag of this commit is accepted");
    checkout.commit()?;
    checkout.assert_refused(&format!("the tag v{version} is at another commit"))?;

    let next = cargo_toml.replacen(&format!("version = \"{version}\""), "version = \"98.7.6\"", 1);
    checkout.write("Cargo.toml", &next)?;
    checkout.commit()?;
    checkout.assert_refused("Cargo.lock is not up to date")
}

/// The codecs are optimised in development builds too, and never lose their single codegen unit in release builds.
#[test]
fn codecs_are_optimised_in_every_profile() -> Result<()> {
    let manifest = read("Cargo.toml")?;
    let packages = |profile: &str| -> BTreeSet<String> {
        let header = format!("[profile.{profile}.package.");
        manifest.lines().filter_map(|line| line.strip_prefix(&header)?.strip_suffix(']')).map(str::to_owned).collect()
    };
    let (release, development) = (packages("release"), packages("dev"));
    assert!(release.contains("asset-fast-png") && release.is_subset(&development), "{release:?} {development:?}");
    let sections = manifest.split("[profile.release.package.").skip(1);
    for section in sections {
        assert!(section.contains("]\ncodegen-units = 1\nopt-level = 3\n"), "{section}");
    }
    Ok(())
}
