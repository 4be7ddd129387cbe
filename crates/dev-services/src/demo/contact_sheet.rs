//! The contact sheet: an HTML page that opens from disk and loads nothing from the network.

use serde_json::Value;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --quiet: #777; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 2rem 1.5rem 4rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; }
header { margin-bottom: 2rem; }
header p { margin: .25rem 0 0; color: var(--quiet); }
main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
img, .failed { display: block; width: 100%; aspect-ratio: 16 / 9; }
.failed { display: grid; place-content: center; text-align: center; padding: 1rem; background: repeating-linear-gradient(135deg, #c0392b14 0 12px, #c0392b22 12px 24px); }
.failed b { font-size: 1.2rem; color: #c0392b; }
figcaption { padding: .8rem 1rem 1rem; }
figcaption h2 { font-size: 1rem; margin: 0 0 .3rem; }
figcaption p { margin: 0 0 .3rem; }
.english { font-style: italic; }
.prompt { color: var(--quiet); font-size: .875rem; }
.facts { color: var(--quiet); font-size: .8125rem; font-variant-numeric: tabular-nums; }
";

/// Renders the page for jobs of one project as `asset-worker jobs show --json` prints them. Image paths are relative to
/// the page.
pub(super) fn render_page(jobs: &[Value]) -> String {
    let mut assets: Vec<&Value> = jobs.iter().filter_map(|job| job["assets"].as_array()).flatten().collect();
    // Images of the same description side by side.
    assets.sort_by_key(|asset| asset["index"].as_u64());
    let completed_count = assets.iter().filter(|asset| asset["status"] == "completed").count();
    let figures: String = assets.iter().map(|asset| render_figure(asset)).collect();
    let jobs_line = |job: &Value| {
        let (id, status) = (escape_html(&job["job_id"]), escape_html(&job["status"]));
        format!("<p>job {id}, {status}, USD {:.2}</p>\n", job["cost_usd"].as_f64().unwrap_or_default())
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Contact sheet of project {project}</title>\n<style>{STYLE}</style>\n\
         <header><h1>Project {project}: {completed_count} of {total} images</h1>\n\
         {lines}</header>\n<main>\n{figures}</main>\n</html>\n",
        project = jobs.first().map(|job| escape_html(&job["project_id"])).unwrap_or_default(),
        total = assets.len(),
        lines = jobs.iter().map(jobs_line).collect::<String>(),
    )
}

fn render_figure(asset: &Value) -> String {
    let metadata = &asset["metadata"];
    let (index, description) = (escape_html(&asset["index"]), escape_html(&metadata["description"]));
    if asset["status"] != "completed" {
        return format!(
            "<figure><div class=\"failed\"><b>{}</b>{}</div>\n\
             <figcaption><h2>{index}. {description}</h2><p class=\"facts\">no image, requests: {}</p></figcaption></figure>\n",
            escape_html(&asset["error_code"]),
            escape_html(&asset["error_message"]),
            escape_html(&asset["requests"]),
        );
    }
    let path = escape_html(&asset["file_path"]);
    let english = match &metadata["english"] {
        Value::Null => String::new(),
        english => format!("<p class=\"english\">{}</p>\n", escape_html(english)),
    };
    let upscaler = match metadata["upscaler"].as_str() {
        Some("fast") => "enlarged by Stability's fast upscaler",
        _ if metadata["requested_upscaler"].is_string() => "scaled by the worker, because the upscaler failed",
        _ => "scaled by the worker",
    };
    #[expect(clippy::cast_precision_loss, reason = "a rounded number for display")]
    let megabytes = asset["size_bytes"].as_u64().unwrap_or_default() as f64 / 1e6;
    format!(
        "<figure><a href=\"data/assets/{path}\"><img src=\"data/assets/{path}\" alt=\"{description}\"></a>\n\
         <figcaption><h2>{index}. {description}</h2>\n{english}<p class=\"prompt\">{}</p>\n\
         <p class=\"facts\">{path}, {megabytes:.2} MB, {}, seed {}, {upscaler}</p></figcaption></figure>\n",
        escape_html(&metadata["prompt"]),
        escape_html(&metadata["origin"]),
        escape_html(&metadata["seed"]),
    )
}

/// Formats a value as text and escapes it for HTML.
fn escape_html(value: &Value) -> String {
    let plain = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn page_shows_completed_and_failed_images_with_escaped_texts() {
        let job = json!({
            "job_id": "0199", "project_id": 42, "status": "completed", "cost_usd": 0.02,
            "assets": [
                {
                    "index": 1, "status": "completed", "file_path": "projects/42/assets/image_001.png",
                    "size_bytes": 3_100_000, "requests": 1,
                    "metadata": {"description": "<b>狐狸</b>", "english": "A <red> fox", "prompt": "A fox, 4k", "seed": 7, "origin": "generated"},
                },
                {
                    "index": 2, "status": "failed", "error_code": "content_policy", "error_message": "refused & gone",
                    "requests": 1, "metadata": {"description": "A battle"},
                },
            ],
        });
        let upscaled = json!({
            "job_id": "0200", "project_id": 42, "status": "completed", "cost_usd": 0.04,
            "assets": [{
                "index": 1, "status": "completed", "file_path": "projects/42/assets/image_001-0200.png",
                "size_bytes": 3_100_000, "requests": 2,
                "metadata": {"description": "A fox", "prompt": "A fox", "seed": 7, "origin": "generated", "upscaler": "fast"},
            }],
        });
        let page = render_page(&[job, upscaled]);
        for part in [
            "Project 42: 2 of 3 images",
            "<p>job 0200, completed, USD 0.04</p>",
            "src=\"data/assets/projects/42/assets/image_001.png\"",
            "1. &lt;b&gt;狐狸&lt;/b&gt;",
            "<p class=\"english\">A &lt;red&gt; fox</p>",
            "A fox, 4k",
            "3.10 MB, generated, seed 7, scaled by the worker",
            "3.10 MB, generated, seed 7, enlarged by Stability's fast upscaler",
            "<b>content_policy</b>refused &amp; gone",
            "2. A battle",
        ] {
            assert!(page.contains(part), "{part} is missing in {page}");
        }
        assert!(!page.contains("<b>狐"), "{page}");
        assert!(!page.contains("http"), "the page refers to the network: {page}");
    }
}
