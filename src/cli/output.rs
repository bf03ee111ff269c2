//! What a user sees: text, or JSON lines. The only place that prints.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// A result: `text` for people, `value` for scripts. A reader that is gone ends the process quietly; what cannot be written
    /// for another reason is an error, as nobody has the result.
    pub(crate) fn line(self, text: impl AsRef<str>, value: &Value) {
        if let Err(error) = self.try_line(text, value) {
            if error.kind() == ErrorKind::BrokenPipe {
                std::process::exit(0);
            }
            self.error("failed", &anyhow::Error::new(error).context("the result cannot be written"));
            std::process::exit(1);
        }
    }

    /// The same, for a process that has more to do than to tell.
    pub(crate) fn try_line(self, text: impl AsRef<str>, value: &Value) -> std::io::Result<()> {
        let line = if self.json { value.to_string() } else { text.as_ref().to_owned() };
        writeln!(std::io::stdout().lock(), "{line}")
    }

    /// Something only people want to know.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        if !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
        }
    }

    /// Why it did not work.
    pub(crate) fn error(self, code: &str, error: &anyhow::Error) {
        let line = if self.json {
            json!({"error": {"code": code, "message": format!("{error:#}")}}).to_string()
        } else {
            format!("{} {error:#}", mark("error:", "31"))
        };
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }

    /// A bar on a terminal, nothing elsewhere.
    pub(crate) fn bar(self) -> Bar {
        let visible = !self.json && std::io::stderr().is_terminal();
        let bar = if visible { ProgressBar::new(1) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {msg}") {
            bar.set_style(style);
        }
        Bar { bar, visible, told: None }
    }
}

/// Progress of one job: a bar, or a line for every quarter.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    visible: bool,
    told: Option<u64>,
}

impl Bar {
    pub(crate) fn step(&mut self, output: Output, step: u64, steps: u64, remaining: Duration) {
        let seconds = remaining.as_secs_f64();
        if self.visible {
            self.bar.set_length(steps);
            self.bar.set_position(step);
            self.bar.set_message(format!("step {step}/{steps}  {seconds:.1} s left"));
            return;
        }
        let quarter = step * 4 / steps.max(1);
        if self.told != Some(quarter) {
            self.told = Some(quarter);
            output.note(format!("step {step}/{steps}, {seconds:.1} s left"));
        }
    }

    pub(crate) fn message(&self, text: &'static str) {
        self.bar.set_message(text);
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// A word in colour, on a terminal that wants colours.
pub(crate) fn mark(word: &str, colour: &str) -> String {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted && std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
        format!("\u{1b}[{colour}m{word}\u{1b}[0m")
    } else {
        word.to_owned()
    }
}
