//! `estimate`: shows what commands would cost and how long they would take. Sends and writes nothing.

use domain::command::Command;
use domain::money::MicroUsd;
use picture::QualityCheck;
use serde::Serialize;
use uuid::Uuid;

use super::command_args::CommandArgs;
use super::command_list::CommandList;
use super::exit::CliError;
use super::screen::{Screen, to_json};
use super::tables;
use crate::cost_policy::format_usd;
use crate::estimate::{BUDGET_SHORTAGE, Budget, Estimate, Estimator, Inputs, Warning};
use crate::image_pool::ImagePool;
use crate::settings::Settings;

/// Number of warnings that are shown of a list of commands.
const MAX_LISTED_WARNINGS: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    command_args: CommandArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    show(&options.command_args, options.json, settings, screen).await
}

/// Estimates the command, or the list of commands, that the arguments describe.
pub(super) async fn show(
    command_args: &CommandArgs,
    as_json: bool,
    settings: &Settings,
    screen: &Screen,
) -> Result<(), CliError> {
    let output = match command_args.command_list() {
        None => {
            let command = command_args.to_command()?;
            let estimate = estimator(settings).await.estimate(&command).await;
            if as_json { to_json(&estimate) } else { format_estimate(&estimate) }
        }
        Some(list) => {
            let list = CommandList::read(list)?;
            let commands = list.parse(&command_args.config_keys(), |_| Uuid::now_v7())?;
            let total = estimate_all(&estimator(settings).await, &commands).await;
            if as_json { to_json(&total) } else { format_total(&total) }
        }
    };
    screen.print(&output);
    Ok(())
}

async fn estimator(settings: &Settings) -> Estimator {
    let pool = ImagePool::new(settings.image, QualityCheck { min_sharpness: settings.min_sharpness });
    Estimator::new(settings, pool, Inputs::read(settings).await)
}

/// The sums of the estimates of many commands.
#[derive(Debug, Serialize)]
struct Total {
    commands: usize,
    images: u32,
    cached: Option<u32>,
    to_generate: Option<u32>,
    cost_usd: Option<f64>,
    budget: Budget,
    /// Each warning once, with the number of commands that it concerns.
    warnings: Vec<TotalWarning>,
    unknown: Vec<String>,
}

#[derive(Debug, Serialize)]
struct TotalWarning {
    commands: usize,
    #[serde(flatten)]
    warning: Warning,
}

async fn estimate_all(estimator: &Estimator, commands: &[Command]) -> Total {
    let budget = estimator.budget();
    let mut total = Total {
        commands: commands.len(),
        images: 0,
        cached: Some(0),
        to_generate: Some(0),
        cost_usd: None,
        budget,
        warnings: Vec::new(),
        unknown: Vec::new(),
    };
    let mut cost = Some(MicroUsd::default());
    for command in commands {
        let estimate = estimator.estimate(command).await;
        total.images += estimate.images;
        total.cached = add(total.cached, estimate.cached);
        total.to_generate = add(total.to_generate, estimate.to_generate);
        cost = cost.zip(estimate.cost_usd).map(|(sum, cost)| sum.plus(MicroUsd::from_usd(cost)));
        for warning in estimate.warnings {
            match total.warnings.iter_mut().find(|known| known.warning == warning) {
                Some(known) => known.commands += 1,
                None => total.warnings.push(TotalWarning { commands: 1, warning }),
            }
        }
        total.unknown.extend(estimate.unknown);
        total.unknown.sort();
        total.unknown.dedup();
    }
    total.cost_usd = cost.map(MicroUsd::usd);
    if let Some((cost, left)) = total.cost_usd.zip(budget.left_usd).filter(|(cost, left)| cost > left) {
        let message = format!(
            "USD {} of the daily budget is left, and the commands cost USD {}; the others wait until 00:00 UTC",
            format_usd(left),
            format_usd(cost)
        );
        total.warnings.retain(|known| known.warning.code != BUDGET_SHORTAGE);
        let warning = Warning { code: BUDGET_SHORTAGE, message };
        total.warnings.push(TotalWarning { commands: commands.len(), warning });
    }
    total
}

fn add(sum: Option<u32>, count: Option<u32>) -> Option<u32> {
    sum.zip(count).map(|(sum, count)| sum.saturating_add(count))
}

fn or_unknown<T>(value: Option<T>, format: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "unknown".to_owned(), format)
}

fn format_estimate(estimate: &Estimate) -> String {
    let Estimate { translation, duration, budget, .. } = estimate;
    let mut pairs = vec![("images", estimate.images.to_string())];
    pairs.extend(
        estimate.completed.filter(|completed| *completed > 0).map(|completed| ("completed", completed.to_string())),
    );
    pairs.extend([
        ("in the cache", or_unknown(estimate.cached, |cached| cached.to_string())),
        ("to generate", or_unknown(estimate.to_generate, |images| images.to_string())),
        (
            "price",
            format!(
                "USD {} an image ({}, {})",
                format_usd(estimate.price_per_image_usd),
                estimate.engine,
                estimate.upscaler.as_str()
            ),
        ),
        ("cost", or_unknown(estimate.cost_usd, |cost| format!("USD {}", format_usd(cost)))),
    ]);
    if translation.texts > 0 {
        let known = or_unknown(translation.known, |known| known.to_string());
        pairs.push(("translation", format!("{} texts, known: {known}", translation.texts)));
    }
    let seconds = |seconds: f64| {
        let duration = std::time::Duration::from_secs(std::time::Duration::from_secs_f64(seconds.max(0.0)).as_secs());
        humantime::format_duration(duration).to_string()
    };
    let measured = match duration.measured_jobs {
        0 => "assumed".to_owned(),
        jobs => format!("measured in {jobs} jobs"),
    };
    pairs.extend([
        ("waits", or_unknown(duration.waiting_seconds, seconds)),
        (
            "takes",
            or_unknown(duration.running_seconds, |running| {
                format!("{}, at {} s a request ({measured})", seconds(running), duration.seconds_per_request)
            }),
        ),
    ]);
    pairs.push(("daily budget", format_budget(budget)));
    let title = format!("job {} of project {}\n", estimate.job_id, estimate.project_id);
    let mut text = title + &tables::format_pairs(&pairs);
    for Warning { code, message } in &estimate.warnings {
        text += &format!("warning: {code}: {message}\n");
    }
    text + &format_unknown(&estimate.unknown)
}

fn format_budget(budget: &Budget) -> String {
    match (budget.limit_usd, budget.left_usd) {
        (None, _) => "no limit".to_owned(),
        (Some(limit), None) => format!("USD {}; how much is left is unknown", format_usd(limit)),
        (Some(limit), Some(left)) => format!("USD {} of {} left", format_usd(left), format_usd(limit)),
    }
}

fn format_unknown(unknown: &[String]) -> String {
    unknown.iter().fold(String::new(), |text, cause| text + "unknown: " + cause + "\n")
}

fn format_total(total: &Total) -> String {
    let pairs = [
        ("commands", total.commands.to_string()),
        ("images", total.images.to_string()),
        ("in the cache", or_unknown(total.cached, |cached| cached.to_string())),
        ("to generate", or_unknown(total.to_generate, |images| images.to_string())),
        ("cost", or_unknown(total.cost_usd, |cost| format!("USD {}", format_usd(cost)))),
        ("daily budget", format_budget(&total.budget)),
    ];
    let mut text = tables::format_pairs(&pairs);
    for TotalWarning { commands, warning } in total.warnings.iter().take(MAX_LISTED_WARNINGS) {
        text += &format!("warning: {}: {} ({commands} commands)\n", warning.code, warning.message);
    }
    let left_out = total.warnings.len().saturating_sub(MAX_LISTED_WARNINGS);
    if left_out > 0 {
        text += &format!("and {left_out} more warnings; --json lists all\n");
    }
    text + &format_unknown(&total.unknown)
}
