//! What a history must be like, whatever was killed, held up or lost: the promises, as a function of what was seen.
//!
//! It knows no fault and no schedule. What it does not find is no proof; what it finds is a defect, told with all that was
//! seen of the job.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use darkroom::job::Status;
use darkroom::wire::event::EventKind;
use darkroom::wire::record::Record;
use serde_json::Value;

use super::history::{History, Observation, What};

/// In what way a history is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// An accepted job has no end.
    Lost,
    /// A record changed after it was terminal.
    TwoEnds,
    /// A record changed in a way that only its holder may change it, by somebody else.
    Unfenced,
    /// A job that should have images failed.
    FailedInstead,
    /// A job ended of which somebody was told that it is cancelled.
    CancelIgnored,
    /// Somebody was told that there is no such job after it had been accepted.
    Denied,
    /// A job is cancelled, and nobody wanted that.
    CancelledUnasked,
    /// A terminal record has no event.
    EventMissing,
    /// A job has two terminal events.
    EventTwice,
    /// An event came after `completed`.
    EventAfterEnd,
    /// A terminal event was published before its record, or without one.
    EventBeforeRecord,
    /// A terminal event says something else than its record.
    EventDiffers,
    /// An image that is announced was not stored when the record said so.
    PutAfterRecord,
    /// An image that is announced is not there, or not with those bytes.
    ObjectDiffers,
    /// A job has objects that nobody announced, beside those that were.
    TwoResults,
    /// An image is not the one that the request means.
    ImageDiffers,
    /// A request was settled before its record was terminal, its event published, and its dead letter stored if it has one.
    SettledEarly,
    /// A failed job has no dead letter.
    LetterMissing,
    /// A request has two dead letters, or one although its job has images.
    LetterTooMany,
    /// Requests are left in the queue.
    QueueNotEmpty,
    /// Jobs were begun more often than the faults explain.
    TooMuchWork,
}

/// One defect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) wrong: Wrong,
    /// `<tenant>/<job>`; empty when it is about all.
    pub(crate) job: String,
    pub(crate) details: String,
}

/// How often jobs may be begun once more, all together: what the faults of a run may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) attempts_wasted_max: u32,
}

/// Everything that is wrong with a history of which no more will come.
pub(crate) fn check(history: &History, bounds: &Bounds) -> Vec<Violation> {
    let mut found = Vec::new();
    let (letters, settled) = (letters(history), settled(history));
    for (job, seen) in history.by_job() {
        let mut job = Job::read(job, &seen, &mut found);
        job.check_end();
        job.check_events();
        job.check_images();
        job.check_settlement(&settled, &letters);
        job.check_letters(&letters);
    }
    let records = history.last_records();
    let wasted = records.iter().map(|(job, record)| (job, record.state.attempts.saturating_sub(1)));
    let wasted: BTreeMap<_, _> = wasted.filter(|(_, attempts)| *attempts > 0).collect();
    let mut about_all = |wrong, details| found.push(Violation { wrong, job: String::new(), details });
    if wasted.values().sum::<u32>() > bounds.attempts_wasted_max {
        let slices: String = wasted.keys().map(|job| format!("  {job}\n{}", history.slice(job))).collect();
        let explained = bounds.attempts_wasted_max;
        about_all(Wrong::TooMuchWork, format!("{explained} more attempts are explained, not {wasted:?}\n{slices}"));
    }
    for seen in &history.0 {
        if let What::Left { requests: 1.. } = seen.what {
            about_all(Wrong::QueueNotEmpty, seen.to_string());
        }
    }
    found
}

/// Violations as text, each job's with all that was seen of it.
pub(crate) fn report(history: &History, violations: &[Violation]) -> String {
    let mut text = String::new();
    let jobs: BTreeSet<&str> = violations.iter().map(|violation| violation.job.as_str()).collect();
    for job in jobs {
        for Violation { wrong, details, .. } in violations.iter().filter(|violation| violation.job == job) {
            let _ = writeln!(text, "{wrong:?} {job}: {details}");
        }
        text += &history.slice(job);
    }
    text
}

/// When the dead letters of each request were stored.
fn letters(history: &History) -> BTreeMap<u64, Vec<i128>> {
    let mut letters = BTreeMap::<u64, Vec<i128>>::new();
    for seen in &history.0 {
        if let What::Letter { request, .. } = &seen.what {
            letters.entry(*request).or_default().push(seen.at_ns);
        }
    }
    letters
}

/// When each request was first acknowledged or terminated, as far as somebody heard it.
fn settled(history: &History) -> BTreeMap<u64, i128> {
    let mut settled = BTreeMap::new();
    for seen in &history.0 {
        if let What::Settled { request, words } = &seen.what
            && !words.starts_with("-NAK")
        {
            settled.entry(*request).or_insert(seen.at_ns);
        }
    }
    settled
}

struct Job<'a> {
    name: &'a str,
    /// The images that its request means, if it was submitted by who knows.
    wanted: Option<&'a Option<Vec<String>>>,
    may_fail: bool,
    accepted: bool,
    cancel_wanted: bool,
    cancelled: bool,
    /// By revision.
    records: Vec<(i128, &'a Record)>,
    /// By sequence.
    events: Vec<(i128, EventKind, &'a Value)>,
    puts: Vec<(i128, &'a str, &'a str)>,
    objects: BTreeMap<&'a str, &'a str>,
    found: &'a mut Vec<Violation>,
}

impl<'a> Job<'a> {
    fn read(name: &'a str, seen: &[&'a Observation], found: &'a mut Vec<Violation>) -> Self {
        let mut job = Self {
            name,
            wanted: None,
            may_fail: false,
            accepted: false,
            cancel_wanted: false,
            cancelled: false,
            records: Vec::new(),
            events: Vec::new(),
            puts: Vec::new(),
            objects: BTreeMap::new(),
            found,
        };
        let (mut records, mut events) = (BTreeMap::new(), BTreeMap::new());
        for Observation { at_ns, what, .. } in seen {
            match what {
                What::Submitted { images, may_fail } => (job.wanted, job.may_fail) = (Some(images), *may_fail),
                What::Acknowledged { .. } => job.accepted = true,
                What::CancelWanted => job.cancel_wanted = true,
                What::Cancelled => job.cancelled = true,
                What::Denied if job.accepted => job.is(Wrong::Denied, ""),
                What::Record { revision, record } => {
                    records.insert(*revision, (*at_ns, &**record));
                }
                What::Event { sequence, kind, data } => {
                    events.insert(*sequence, (*at_ns, *kind, data));
                }
                What::Put { key, sha256 } => job.puts.push((*at_ns, key, sha256)),
                What::Object { key, sha256 } => {
                    job.objects.insert(key, sha256);
                }
                What::Denied
                | What::Refused { .. }
                | What::Letter { .. }
                | What::Settled { .. }
                | What::Left { .. } => {}
            }
        }
        job.records = records.into_values().collect();
        job.events = events.into_values().collect();
        job
    }

    fn is(&mut self, wrong: Wrong, details: impl Into<String>) {
        self.found.push(Violation { wrong, job: self.name.to_owned(), details: details.into() });
    }

    /// The first terminal record, with its time.
    fn end(&self) -> Option<(i128, &'a Record)> {
        self.records.iter().copied().find(|(_, record)| record.state.status.is_terminal())
    }

    fn terminal_events(&self) -> Vec<(i128, EventKind, &'a Value)> {
        self.events.iter().copied().filter(|(_, kind, _)| kind.is_terminal()).collect()
    }

    /// Exactly one end, reached by steps that their takers were entitled to.
    fn check_end(&mut self) {
        let Some((_, end)) = self.end() else {
            if self.accepted {
                self.is(Wrong::Lost, "no terminal record");
            }
            return;
        };
        for pair in self.records.clone().windows(2) {
            let (before, after) = (pair[0].1, pair[1].1);
            let (was, is) = (&before.state, &after.state);
            let step = format!(
                "{} of attempt {} after {} of attempt {}",
                is.status.as_str(),
                is.attempts,
                was.status.as_str(),
                was.attempts
            );
            if was.status.is_terminal() {
                if before != after {
                    self.is(Wrong::TwoEnds, step);
                }
                continue;
            }
            let claims = is.status == Status::Processing && is.attempts == was.attempts + 1;
            // What is given back unharmed was no attempt.
            let given_back = is.status == Status::Pending && is.attempts + 1 == was.attempts;
            let repeats = is.attempts == was.attempts && (is.status != was.status || is.worker == was.worker);
            // Who completes a job says so himself, in the record.
            let worker = after.terminal.as_ref().and_then(|terminal| terminal["worker"].as_str());
            let by_holder = worker.is_none() || worker == was.worker.as_ref().map(|worker| worker.as_str());
            if !(claims || repeats || given_back) || !by_holder {
                self.is(Wrong::Unfenced, format!("{step}, by {worker:?}, held by {:?}", was.worker));
            }
        }
        if end.state.status == Status::Failed && !self.may_fail && self.wanted.is_some_and(Option::is_some) {
            self.is(
                Wrong::FailedInstead,
                end.terminal.as_ref().map_or(String::new(), |data| data["error"].to_string()),
            );
        }
        if self.cancelled && end.state.status != Status::Cancelled {
            self.is(Wrong::CancelIgnored, format!("it is {}", end.state.status.as_str()));
        }
        if !self.cancel_wanted && end.state.status == Status::Cancelled {
            self.is(Wrong::CancelledUnasked, "");
        }
    }

    /// One terminal event, after its record, as that has it, and nothing after it.
    fn check_events(&mut self) {
        let ends = self.terminal_events();
        if ends.len() > 1 {
            self.is(Wrong::EventTwice, ends.iter().map(|(_, kind, _)| kind.as_str()).collect::<Vec<_>>().join(", "));
        }
        // Whoever ends a job that a worker is just beginning cannot call back what that one is saying. A stream can refuse
        // one kind of event after one other, so `completed` is what nothing may follow.
        let is_completed = ends.first().is_some_and(|(_, kind, _)| *kind == EventKind::Completed);
        if is_completed && self.events.last().is_some_and(|(_, kind, _)| !kind.is_terminal()) {
            self.is(Wrong::EventAfterEnd, self.events.last().map_or("", |(_, kind, _)| kind.as_str()));
        }
        match (self.end(), ends.first()) {
            (None, None) => {}
            (Some(_), None) => self.is(Wrong::EventMissing, "a terminal record without its event"),
            (None, Some(_)) => self.is(Wrong::EventBeforeRecord, "there is no terminal record"),
            (Some((recorded, record)), Some((published, kind, data))) => {
                if recorded > *published {
                    let early = (recorded - published) / 1_000;
                    self.is(Wrong::EventBeforeRecord, format!("{early} µs before"));
                }
                if EventKind::of_terminal(record.state.status) != Some(*kind) || record.terminal.as_ref() != Some(*data)
                {
                    self.is(
                        Wrong::EventDiffers,
                        format!("{} and {data}, recorded {:?}", kind.as_str(), record.terminal),
                    );
                }
            }
        }
    }

    /// What is announced was stored before, is there, is what was asked for, and is all there is.
    fn check_images(&mut self) {
        let Some((recorded, Record { terminal: Some(terminal), state, .. })) = self.end() else { return };
        if state.status != Status::Completed {
            return;
        }
        let text = |image: &'a Value, field: &str| image[field].as_str().unwrap_or_default();
        let images: Vec<(&str, &str)> = terminal["images"]
            .as_array()
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .map(|image| (text(image, "key"), text(image, "sha256")))
            .collect();
        for (key, sha256) in &images {
            if !self.puts.iter().any(|put| put.0 <= recorded && (put.1, put.2) == (*key, *sha256)) {
                self.is(Wrong::PutAfterRecord, *key);
            }
            match self.objects.get(key).copied() {
                Some(found) if found == *sha256 => {}
                found => self.is(Wrong::ObjectDiffers, format!("{key} is {found:?}, announced {sha256}")),
            }
        }
        let more: Vec<&str> = self
            .objects
            .keys()
            .copied()
            .filter(|key| !is_checkpoint(key) && !images.iter().any(|(of, _)| of == key))
            .collect();
        if !more.is_empty() {
            self.is(Wrong::TwoResults, more.join(", "));
        }
        if let Some(Some(wanted)) = self.wanted
            && !wanted.iter().map(String::as_str).eq(images.iter().map(|(_, sha256)| *sha256))
        {
            self.is(Wrong::ImageDiffers, format!("{images:?}, wanted {wanted:?}"));
        }
    }

    /// Acknowledged or terminated only when nothing is left to do. Who listens hears it later than it is said.
    fn check_settlement(&mut self, settled: &BTreeMap<u64, i128>, letters: &BTreeMap<u64, Vec<i128>>) {
        let Some(request) = self.records.last().and_then(|(_, record)| record.stream_sequence) else { return };
        let Some(settled) = settled.get(&request).copied() else { return };
        let recorded = self.end().is_some_and(|(at, _)| at <= settled);
        let published = self.terminal_events().first().is_some_and(|(at, ..)| *at <= settled);
        let is_late = |letters: &Vec<i128>| letters.iter().all(|at| *at > settled);
        let letter_is_late = letters.get(&request).is_some_and(is_late);
        if !recorded || !published || letter_is_late {
            self.is(
                Wrong::SettledEarly,
                format!(
                    "before it: recorded {recorded}, published {published}; its dead letter after it {letter_is_late}"
                ),
            );
        }
    }

    /// One dead letter of a job that failed, none of one that did not.
    fn check_letters(&mut self, letters: &BTreeMap<u64, Vec<i128>>) {
        let Some((_, end)) = self.end() else { return };
        let of_request = end.stream_sequence.and_then(|sequence| letters.get(&sequence)).map_or(0, Vec::len);
        match (end.state.status, of_request) {
            (Status::Failed, 0) => self.is(Wrong::LetterMissing, "none"),
            (Status::Failed, 1) | (_, 0) => {}
            (_, letters) => self.is(Wrong::LetterTooMany, letters.to_string()),
        }
    }
}

/// A checkpoint is no result; what a killed worker left of one may stay.
fn is_checkpoint(key: &str) -> bool {
    key.contains("/checkpoints/")
}
