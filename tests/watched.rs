//! Dashboards and alerts name metrics and labels that the programs have, and leave none out that somebody should see.
//!
//! Names are found by reading text, not by running anything: whether queries return data is for `infra/check-scrape`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Where instruments are made; nowhere else.
const INSTRUMENTS: &str = "src/shell/metrics.rs";
const RULES: &str = "infra/alerts/darkroom.yaml";
const DASHBOARDS: [&str; 3] =
    ["infra/dashboards/service.json", "infra/dashboards/fleet.json", "infra/dashboards/cost.json"];
/// What names of our metrics begin with.
const PREFIXES: [&str; 4] = ["diffusion_", "darkroom_", "gpu_", "http_server_"];
/// What Prometheus makes of a histogram.
const PARTS_OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_sum", "_count"];
/// Labels that Prometheus puts there: by scraping, in histograms, in its own series of alerts.
const LABELS_OF_PROMETHEUS: [&str; 6] = ["job", "instance", "le", "alertname", "alertstate", "__name__"];
/// Metrics that no dashboard shows, each with its reason.
const NOT_SHOWN: [(&str, &str); 0] = [];

type Names = BTreeSet<String>;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The string literals of Rust code with what stands before each on its line; no comments, nothing after the unit tests begin.
fn literals(code: &str) -> Vec<(String, String)> {
    let program = code.split("#[cfg(test)]").next().unwrap_or_default();
    let lines: Vec<&str> = program.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let program = lines.join("\n");
    let mut found = Vec::new();
    let (mut before, mut literal, mut is_inside) = (String::new(), String::new(), false);
    let mut characters = program.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' if is_inside => {
                found.push((before.clone(), std::mem::take(&mut literal)));
                is_inside = false;
            }
            '"' => is_inside = true,
            // The character after it ends nothing.
            '\\' if is_inside => literal.extend(characters.next()),
            other if is_inside => literal.push(other),
            '\n' => before.clear(),
            other => before.push(other),
        }
    }
    found
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn is_metric(name: &str) -> bool {
    is_name(name) && PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The metrics that code makes instruments for, and the words that may be labels.
fn instruments(code: &str) -> (Names, Names) {
    let (mut metrics, mut labels) = (Names::new(), Names::new());
    for (before, literal) in literals(code).into_iter().filter(|(_, literal)| is_name(literal)) {
        if is_metric(&literal) && !before.trim_end().ends_with("KeyValue::new(") {
            metrics.insert(literal);
        } else {
            labels.insert(literal);
        }
    }
    (metrics, labels)
}

/// A query without its quoted parts: what is left are names of metrics, labels and functions.
fn unquoted(query: &str) -> String {
    query.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// Words as PromQL has them, with the colons of recorded rules.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').filter(|word| !word.is_empty())
}

/// Labels by which a query chooses, adds up and joins.
fn labels(query: &str) -> Names {
    let query = unquoted(query);
    let mut found = Names::new();
    for group in query.split('{').skip(1) {
        let chosen = group.split('}').next().unwrap_or_default();
        found.extend(chosen.split(',').filter_map(|one| words(one).next()).map(str::to_owned));
    }
    for clause in ["by (", "on (", "without (", "ignoring (", "group_left (", "group_right ("] {
        for listed in query.split(clause).skip(1) {
            found.extend(words(listed.split(')').next().unwrap_or_default()).map(str::to_owned));
        }
    }
    found
}

/// Metrics and recorded rules of a query, by what they are called there.
fn series(query: &str) -> Names {
    let of_labels = labels(query);
    let unquoted = unquoted(query);
    words(&unquoted)
        .filter(|word| is_metric(word) || word.contains(':'))
        .filter(|word| !of_labels.contains(*word) && word.starts_with(|c: char| c.is_ascii_alphabetic()))
        .map(str::to_owned)
        .collect()
}

/// Every text that stands under `key`, however deep.
fn texts_under<'a>(key: &str, value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_str() {
                    Some(text) if name == key => found.push(text),
                    _ => texts_under(key, member, found),
                }
            }
        }
        Value::Array(members) => members.iter().for_each(|member| texts_under(key, member, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The queries of a dashboard.
fn queries(dashboard: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(&read(dashboard)).unwrap();
    let mut found = Vec::new();
    texts_under("expr", &value, &mut found);
    assert!(found.len() > 10, "{dashboard} has {} queries", found.len());
    found.into_iter().map(str::to_owned).collect()
}

/// The expression of each rule: of recorded ones by their name, of alerts by theirs.
fn rules() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let text = read(RULES);
    let without_comments: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    for rule in without_comments.join("\n").split("\n      - ").skip(1) {
        let (kind, rest) = rule.split_once(": ").unwrap();
        assert!(["record", "alert"].contains(&kind), "a rule begins with {kind:?}");
        let (name, rest) = rest.split_once('\n').unwrap();
        let expression = rest.split_once("expr: ").unwrap().1;
        let expression = expression.split("\n        for:").next().unwrap_or_default();
        // What follows an expression that no `for` does: labels, the next group.
        let expression = expression.split("\n        labels:").next().unwrap_or_default();
        let expression = expression.split("\n  - name:").next().unwrap_or_default();
        found.insert(name.to_owned(), expression.trim_start_matches("|\n").to_owned());
    }
    assert!(found.len() > 20, "{RULES} has {} rules", found.len());
    found
}

/// The metric that a series belongs to.
fn metric_of(series: &str, metrics: &Names) -> Option<String> {
    let base = PARTS_OF_HISTOGRAMS.iter().filter_map(|part| series.strip_suffix(*part));
    std::iter::once(series).chain(base).find(|name| metrics.contains(*name)).map(str::to_owned)
}

/// All queries with where they stand.
fn all_queries() -> Vec<(String, String)> {
    let shown =
        DASHBOARDS.iter().flat_map(|path| queries(path).into_iter().map(move |query| ((*path).to_owned(), query)));
    let asked = rules().into_iter().map(|(name, expression)| (format!("{RULES}, {name}"), expression));
    shown.chain(asked).collect()
}

/// A graph of a metric that was renamed is empty, and an alert on it is silent.
#[test]
fn every_metric_of_dashboards_and_alerts_is_in_the_code() {
    let (metrics, _) = instruments(&read(INSTRUMENTS));
    let recorded = rules();
    let mut missing = Vec::new();
    for (place, query) in all_queries() {
        for name in series(&query) {
            if metric_of(&name, &metrics).is_none() && !recorded.contains_key(&name) {
                missing.push(format!("{place}: {name}"));
            }
        }
    }
    missing.dedup();
    assert!(missing.is_empty(), "{INSTRUMENTS} makes no such metrics:\n{}", missing.join("\n"));
}

/// A query by a label that no metric has adds up what it should tell apart.
#[test]
fn every_label_of_dashboards_and_alerts_is_in_the_code() {
    let (_, known) = instruments(&read(INSTRUMENTS));
    let mut missing = Vec::new();
    for (place, query) in all_queries() {
        for label in labels(&query) {
            if !known.contains(&label) && !LABELS_OF_PROMETHEUS.contains(&label.as_str()) {
                missing.push(format!("{place}: {label}"));
            }
        }
    }
    missing.dedup();
    assert!(missing.is_empty(), "{INSTRUMENTS} has no such labels:\n{}", missing.join("\n"));
}

/// What nobody sees need not be counted.
#[test]
fn every_metric_of_the_code_is_on_a_dashboard() {
    let (metrics, _) = instruments(&read(INSTRUMENTS));
    let recorded = rules();
    let mut open: Vec<String> = DASHBOARDS.iter().flat_map(|path| queries(path)).collect();
    let (mut shown, mut followed) = (Names::new(), Names::new());
    while let Some(query) = open.pop() {
        for name in series(&query) {
            shown.extend(metric_of(&name, &metrics));
            if let Some(expression) = recorded.get(&name)
                && followed.insert(name)
            {
                open.push(expression.clone());
            }
        }
    }
    let excused: Names = NOT_SHOWN.iter().map(|(name, _)| (*name).to_owned()).collect();
    let hidden: Vec<_> = metrics.difference(&shown).filter(|name| !excused.contains(*name)).collect();
    assert!(hidden.is_empty(), "no dashboard shows {hidden:?}");
    let needless: Vec<_> = excused.iter().filter(|name| shown.contains(*name) || !metrics.contains(*name)).collect();
    assert!(needless.is_empty(), "shown, or not in the code, and excused all the same: {needless:?}");
}

/// Models are listed by metrics that are there, too.
#[test]
fn the_variables_of_dashboards_ask_for_metrics_that_are_in_the_code() {
    let (metrics, _) = instruments(&read(INSTRUMENTS));
    for path in DASHBOARDS {
        let value: Value = serde_json::from_str(&read(path)).unwrap();
        let mut asked = Vec::new();
        texts_under("query", &value["templating"], &mut asked);
        let named: Vec<&str> = asked.iter().flat_map(|query| words(query)).filter(|word| is_metric(word)).collect();
        assert!(!named.is_empty(), "{path} lists no models");
        for name in named {
            assert!(metrics.contains(name), "{path} lists models of {name}, which {INSTRUMENTS} does not make");
        }
    }
}

/// The rest of this file is worth nothing when names are not found.
#[test]
fn names_are_found_in_code_and_in_queries() {
    let names = |text: &str| -> Names { text.split_whitespace().map(str::to_owned).collect() };
    let code = r#"
        // meter.u64_counter("diffusion_commented_total")
        meter.u64_counter("diffusion_requests_total").with_description("Of a \"kind\" that darkroom_is_not").build();
        gauge.record(1, &[KeyValue::new("gpu_id", id), KeyValue::new("model", "sd15")]);
        gauge.with_description("Text over \
            two lines").with_separator('\n').with_name("darkroom_workers");
        #[cfg(test)] "darkroom_tested_total"
    "#;
    let (metrics, labels_of_code) = instruments(code);
    assert_eq!(metrics, names("darkroom_workers diffusion_requests_total"));
    assert_eq!(labels_of_code, names("gpu_id model sd15"));

    let query = r#"sum by (gpu_id, le) (rate(gpu_memory_used_bytes{model=~"darkroom_x", status!="b"}[5m]))
        * on (instance) group_left (model) model:darkroom_y:sum / label_replace(diffusion_z_count, "of", "darkroom_w", "", "")"#;
    assert_eq!(series(query), names("gpu_memory_used_bytes model:darkroom_y:sum diffusion_z_count"));
    assert_eq!(labels(query), names("gpu_id le model status instance"));
    assert_eq!(metric_of("diffusion_z_count", &names("diffusion_z")).as_deref(), Some("diffusion_z"));
    assert_eq!(metric_of("diffusion_z_quantile", &names("diffusion_z")), None);
}
