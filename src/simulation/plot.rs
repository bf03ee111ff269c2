//! Plots as SVG: lines over a logarithmic axis of seconds, over loads or over hours. Nothing moves, and there are no fonts to load.

use std::fmt::Write;

use super::report::Report;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Distinct in print and for most eyes.
const COLOURS: &[&str] = &["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// A line of so few points shows them.
const POINTS_SHOWN: usize = 40;

/// A named line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(super) fn new(name: String, points: Vec<(f64, f64)>) -> Self {
        Self { name, points }
    }
}

struct Axis {
    label: &'static str,
    /// Where, and what stands there.
    ticks: Vec<(f64, String)>,
    from: f64,
    to: f64,
}

/// The distribution of total times by policy, of the runs of one load.
pub fn total_times(title: &str, reports: &[&Report]) -> String {
    let lines: Vec<Line> = reports
        .iter()
        .map(|report| {
            let all = report.total_cdf_ms.len().max(1) as f64;
            let points = (1..).zip(&report.total_cdf_ms);
            let points = points.map(|(nth, ms)| (log_seconds(*ms), f64::from(nth) / all)).collect();
            Line { name: report.policy.clone(), points }
        })
        .collect();
    let tenth = |nth: u32| (f64::from(nth) / 5.0, format!("{} %", nth * 20));
    let y = Axis { label: "share of jobs", ticks: (0..=5).map(tenth).collect(), from: 0.0, to: 1.0 };
    draw(title, &lines, &logarithmic("seconds from arrival to end", lines.iter().flat_map(xs)), &y)
}

/// The 95th percentile of total times by policy over loads, in the order in which loads come.
pub fn p95_by_load(title: &str, reports: &[&Report]) -> String {
    let mut loads: Vec<&str> = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    for report in reports {
        let place = loads.iter().position(|load| *load == report.load).unwrap_or_else(|| {
            loads.push(&report.load);
            loads.len() - 1
        });
        let point = (place as f64, log_seconds(report.overall.total.p95_ms));
        match lines.iter_mut().find(|line| line.name == report.policy) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: report.policy.clone(), points: vec![point] }),
        }
    }
    let ticks = loads.iter().enumerate().map(|(place, load)| (place as f64, (*load).to_owned())).collect();
    let to = loads.len().saturating_sub(1).max(1) as f64;
    let x = Axis { label: "load", ticks, from: 0.0, to };
    draw(title, &lines, &x, &logarithmic("p95 of total time, seconds", lines.iter().flat_map(ys)))
}

/// Lines whose points are a wait in milliseconds and an amount.
pub(super) fn over_waits(title: &str, amount: &'static str, lines: &[Line]) -> String {
    let logarithms = |line: &Line| {
        let points = line.points.iter().map(|(ms, amount)| (log_seconds(*ms), *amount));
        Line::new(line.name.clone(), points.collect())
    };
    let lines: Vec<Line> = lines.iter().map(logarithms).collect();
    let x = logarithmic("p95 of the wait, seconds", lines.iter().flat_map(xs));
    draw(title, &lines, &x, &from_zero(amount, lines.iter().flat_map(ys)))
}

/// Lines whose points are hours since the beginning and an amount.
pub(super) fn over_hours(title: &str, amount: &'static str, lines: &[Line]) -> String {
    let x = from_zero("hours", lines.iter().flat_map(xs));
    draw(title, lines, &x, &from_zero(amount, lines.iter().flat_map(ys)))
}

fn xs(line: &Line) -> impl Iterator<Item = f64> {
    line.points.iter().map(|(x, _)| *x)
}

fn ys(line: &Line) -> impl Iterator<Item = f64> {
    line.points.iter().map(|(_, y)| *y)
}

fn log_seconds(ms: f64) -> f64 {
    (ms / 1e3).max(1e-3).log10()
}

/// An axis of whole powers of ten around the values, which are logarithms already.
fn logarithmic(label: &'static str, values: impl Iterator<Item = f64>) -> Axis {
    let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values {
        (from, to) = (from.min(value), to.max(value));
    }
    let (from, to) = if from.is_finite() { (from.floor(), to.ceil().max(from.floor() + 1.0)) } else { (0.0, 1.0) };
    let ticks = (from as i32..=to as i32).map(|power| (f64::from(power), format!("{}", 10_f64.powi(power)))).collect();
    Axis { label, ticks, from, to }
}

/// An axis from zero to the largest value, with a handful of round ticks.
fn from_zero(label: &'static str, values: impl Iterator<Item = f64>) -> Axis {
    let largest = values.filter(|value| value.is_finite()).fold(0.0, f64::max).max(1e-9);
    let power = 10_f64.powf((largest / 6.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| largest / step <= 7.0);
    let step = step.unwrap_or(largest);
    let steps = (largest / step).ceil() as u32;
    let ticks =
        (0..=steps).map(|nth| (f64::from(nth) * step, format!("{}", (f64::from(nth) * step * 1e6).round() / 1e6)));
    Axis { label, ticks: ticks.collect(), from: 0.0, to: f64::from(steps) * step }
}

fn draw(title: &str, lines: &[Line], x_axis: &Axis, y_axis: &Axis) -> String {
    let scale = |value: f64, axis: &Axis| (value - axis.from) / (axis.to - axis.from);
    let x_at = |x: f64| LEFT + scale(x, x_axis) * (WIDTH - LEFT - RIGHT);
    let y_at = |y: f64| HEIGHT - BOTTOM - scale(y, y_axis) * (HEIGHT - TOP - BOTTOM);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    for (value, text) in &x_axis.ticks {
        let (x, below) = (x_at(*value), bottom + 18.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
            escaped(text)
        );
    }
    for (value, text) in &y_axis.ticks {
        let y = y_at(*value);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            escaped(text)
        );
    }
    for ((line, colour), nth) in lines.iter().zip(COLOURS.iter().cycle()).zip(0_u32..) {
        let points: Vec<String> = line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        let y = TOP + 14.0 + f64::from(nth) * 18.0;
        if line.points.len() <= POINTS_SHOWN {
            for (x, y) in &line.points {
                let _ =
                    write!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x_at(*x), y_at(*y));
            }
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <path d=\"M{:.1} {:.1}h18\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
            points.join(" "),
            right + 12.0,
            y - 4.0,
            right + 36.0,
            escaped(&line.name)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</svg>",
        (LEFT + right) / 2.0,
        HEIGHT - 10.0,
        escaped(x_axis.label),
        (TOP + bottom) / 2.0,
        escaped(y_axis.label)
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
