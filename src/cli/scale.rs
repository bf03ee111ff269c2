//! `scale`: how many workers a model keeps and may have in each hour of the week, made of what was used before.

use std::time::Duration;

use darkroom::job::ModelName;
use darkroom::sched::scale::plan::{self, Care};
use darkroom::shell::bus::{self, Bus};
use darkroom::shell::clock::Clock;
use darkroom::shell::config::BusOptions;
use darkroom::shell::{scaler, usage};
use darkroom::wire::scale::{HOURS, HourPlan, ScalePlan, hour_of_week};
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ScaleCommand {
    /// Make a model's plan from what its workers did: a floor of what would be busy anyway, a ceiling against bills
    #[command(after_help = "Example:\n  darkroom scale plan sdxl --weeks 4 --apply")]
    Plan {
        /// Which model
        model: ModelName,
        /// How many weeks back, at the most; fewer where less is known, but one at least
        #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=12))]
        weeks: u32,
        /// Workers that no hour may have more of
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        workers_max: Option<u32>,
        /// Let the scaler go by it
        #[arg(long)]
        apply: bool,
    },
    /// Show the plan that the scaler goes by
    Show {
        /// Which model
        model: ModelName,
    },
    /// Let the scaler go by what waits alone
    Clear {
        /// Which model
        model: ModelName,
    },
}

pub(crate) async fn scale(options: &BusOptions, command: ScaleCommand, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-scale").await?;
    match command {
        ScaleCommand::Plan { model, weeks, workers_max, apply } => {
            let plan = make(&bus, &model, weeks, workers_max).await?;
            show(&plan, output);
            if apply {
                scaler::keep_plan(&bus, &model, Some(&plan)).await?;
                output.note("The scaler goes by it within a minute.");
            } else {
                output.note("Nothing was changed; --apply lets the scaler go by it.");
            }
        }
        ScaleCommand::Show { model } => match scaler::plan(&bus, &model).await? {
            Some(plan) => show(&plan, output),
            None => output.note(format!("{model} has no plan: the scaler goes by what waits alone.")),
        },
        ScaleCommand::Clear { model } => scaler::keep_plan(&bus, &model, None).await?,
    }
    Ok(Exit::Success)
}

async fn make(bus: &Bus, model: &ModelName, weeks: u32, workers_max: Option<u32>) -> Result<ScalePlan, Failed> {
    let end_unix_s = usage::hour_before(Clock::start().unix_ms(), Duration::ZERO);
    let since_unix_s = usage::hour_before(end_unix_s * 1000, HOUR * 168 * weeks);
    let reports = usage::since(bus, Some(model), since_unix_s).await?;
    let known_s = reports.iter().map(|report| report.hour_unix_s).min().map_or(0, |first| end_unix_s - first);
    let weeks = usize::try_from(known_s / (168 * 3600)).unwrap_or_default().min(weeks as usize);
    if weeks == 0 {
        let hours = known_s / 3600;
        return Err(anyhow::anyhow!("of {model} {hours} hours are known; a plan needs a whole week of them").into());
    }
    let begin_unix_s = end_unix_s - i64::try_from(weeks * HOURS).unwrap_or_default() * 3600;
    let history = usage::engines_by_hour(&reports, begin_unix_s, weeks * HOURS);
    let care = Care { workers_max: workers_max.unwrap_or(u32::MAX), ..Care::default() };
    let planned = plan::plan(&history, &care).map_err(anyhow::Error::from)?;
    // The history begins at some hour of the week, the plan on Monday.
    let first = hour_of_week(begin_unix_s * 1000);
    let hours = (0..HOURS).map(|hour| planned[(hour + HOURS - first) % HOURS]);
    let hours = hours.map(|hour| HourPlan { workers_min: hour.floor, workers_max: hour.ceiling }).collect();
    Ok(ScalePlan { model: model.to_string(), hours })
}

/// A line for every stretch of hours that are alike.
fn show(plan: &ScalePlan, output: &Output) {
    let at = |hour: usize| format!("{} {:02}:00", DAYS[(hour / 24) % 7], hour % 24);
    let mut from = 0;
    for hour in 1..=plan.hours.len() {
        if plan.hours.get(hour) == plan.hours.get(from) {
            continue;
        }
        let HourPlan { workers_min, workers_max } = plan.hours[from];
        output.line(
            format!("{} to {} UTC  {workers_min:>4} to {workers_max}", at(from), at(hour)),
            &json!({"from_hour": from, "to_hour": hour, "workers_min": workers_min, "workers_max": workers_max}),
        );
        from = hour;
    }
}
