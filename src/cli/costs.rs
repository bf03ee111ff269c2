//! `costs`: what images cost, from what workers said of each hour.

use std::collections::BTreeMap;
use std::time::Duration;

use darkroom::job::ModelName;
use darkroom::sched::bill::{self, Entry, Line};
use darkroom::shell::clock::Clock;
use darkroom::shell::config::{BusOptions, parse_duration};
use darkroom::shell::{bus, usage};
use darkroom::wire::time::rfc3339;
use darkroom::wire::usage::UsageReport;
use serde_json::{Value, json};

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct CostsOptions {
    /// How far back: whole hours are counted, for at most 90 days
    #[arg(long, default_value = "24h", value_parser = parse_duration, value_name = "DURATION")]
    since: Duration,
    /// Only this model
    #[arg(long, value_name = "NAME")]
    model: Option<ModelName>,
}

fn entry(report: &UsageReport) -> Entry {
    Entry {
        model: report.model.clone(),
        capacity: report.capacity.clone(),
        ran_ms: report.ran_ms,
        gpu_ms: report.gpu_ms,
        price_per_hour: report.price_per_hour,
        tenants: report.tenants.iter().map(|of| (of.tenant.clone(), of.images, of.gpu_ms)).collect(),
    }
}

fn value(kind: &str, names: [(&str, &str); 2], line: &Line) -> Value {
    let mut value = json!({
        "kind": kind, "images": line.images, "ran_hours": line.ran_hours, "gpu_hours": line.gpu_hours, "usd": line.usd,
        "unpriced_hours": line.unpriced_hours, "idle_share": line.idle_share(),
        "usd_per_1000_images": line.usd_per_1000_images(),
    });
    for (name, text) in names.into_iter().filter(|(name, _)| !name.is_empty()) {
        value[name] = json!(text);
    }
    value
}

fn text(name: &str, of: &str, line: &Line) -> String {
    let or_unknown = |known: Option<String>| known.unwrap_or_else(|| "–".to_owned());
    format!(
        "{name:24} {of:16} {:>9} {:>9.3} {:>9.3} {:>6} {:>10.4} {:>10}",
        line.images,
        line.ran_hours,
        line.gpu_hours,
        or_unknown(line.idle_share().map(|share| format!("{:.0} %", share * 100.0))),
        line.usd,
        or_unknown(line.usd_per_1000_images().map(|usd| format!("{usd:.4}"))),
    )
}

pub(crate) async fn costs(options: &BusOptions, costs: &CostsOptions, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-costs").await?;
    let since_unix_s = usage::hour_before(Clock::start().unix_ms(), costs.since);
    let reports = usage::since(&bus, costs.model.as_ref(), since_unix_s).await?;
    let entries: Vec<Entry> = reports.iter().map(entry).collect();
    let bill = bill::bill(&entries);
    output.note(format!("Since {}, of {} hours of workers:", rfc3339(since_unix_s * 1000), entries.len()));
    let head = |name: &str, of: &str| {
        output.note(format!(
            "{name:24} {of:16} {:>9} {:>9} {:>9} {:>6} {:>10} {:>10}",
            "images", "hours", "GPU hours", "idle", "USD", "USD/1000"
        ));
    };
    let show = |kind: &str, [first, second]: [&str; 2], lines: &BTreeMap<(String, String), Line>| {
        head(first, second);
        for ((name, of), line) in lines {
            let shown = if name.is_empty() { "(nobody)" } else { name };
            output.line(text(shown, of, line), &value(kind, [(first, name), (second, of)], line));
        }
    };
    show("pool", ["model", "capacity"], &bill.pools);
    show("tenant", ["tenant", "model"], &bill.tenants);
    head("all", "");
    output.line(text("all", "", &bill.all), &value("all", [("", ""), ("", "")], &bill.all));
    if bill.all.unpriced_hours > 0.0 {
        output.note(format!(
            "{:.3} hours have no price: start workers with --instance-type or --price-per-hour.",
            bill.all.unpriced_hours
        ));
    }
    Ok(Exit::Success)
}
