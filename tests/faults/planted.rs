//! The checker can fail: a history as it was recorded is clean, and each bug that is planted in it is found as what it is.

use std::collections::BTreeSet;
use std::time::Duration;

use darkroom::job::Status;
use darkroom::wire::event::EventKind;
use serde_json::json;

use crate::checker::{Bounds, Wrong, check, report};
use crate::history::{History, Observation, What};
use crate::laboratory::Laboratory;

const JOB: &str = "t/planted-0";

/// What was seen of the job, for a bug to change.
fn of_job(history: &mut History) -> impl Iterator<Item = &mut Observation> {
    history.0.iter_mut().filter(|seen| seen.job == JOB)
}

fn terminal_record(history: &History) -> Observation {
    let is_end = |seen: &&Observation| {
        seen.job == JOB && seen.record().is_some_and(|(_, record)| record.state.status.is_terminal())
    };
    history.0.iter().find(is_end).unwrap().clone()
}

fn terminal_event(history: &History) -> Observation {
    let is_end =
        |seen: &&Observation| seen.job == JOB && matches!(&seen.what, What::Event { kind, .. } if kind.is_terminal());
    history.0.iter().find(is_end).unwrap().clone()
}

/// A worker that acknowledges first and stores afterwards.
fn acknowledge_before_storing(history: &mut History) {
    let (_, record) = terminal_record(history).record().map(|(at, record)| (at, record.clone())).unwrap();
    let claimed = history.0.iter().find(|seen| seen.job == JOB && seen.record().is_some()).unwrap().at_ns;
    let what = What::Settled { request: record.stream_sequence.unwrap(), words: "+ACK".to_owned() };
    history.0.insert(0, Observation { at_ns: claimed, job: String::new(), what });
}

/// A worker that was stopped wakes up and writes the record of its successor.
fn write_without_a_fence(history: &mut History) {
    let end = terminal_record(history);
    let worker = "successor".parse().unwrap();
    let (revision, record) = end.record().unwrap();
    let mut taken_over = record.clone();
    taken_over.terminal = None;
    taken_over.state.status = Status::Processing;
    taken_over.state.worker = Some(worker);
    // The other's claim came just before the end that the first one wrote.
    for seen in of_job(history) {
        if let What::Record { revision: found, .. } = &mut seen.what
            && *found == revision
        {
            *found += 1;
        }
    }
    let mut earlier = 0;
    for (found, before) in history.0.iter().filter(|seen| seen.job == JOB).filter_map(Observation::record) {
        if found < revision {
            earlier = before.state.attempts;
        }
    }
    taken_over.state.attempts = earlier + 1;
    history.0.push(Observation { what: What::Record { revision, record: Box::new(taken_over) }, ..end });
}

/// A worker that tells the world first and writes it down afterwards.
fn publish_before_recording(history: &mut History) {
    let recorded = terminal_record(history).at_ns;
    for seen in of_job(history) {
        if matches!(&seen.what, What::Event { kind, .. } if kind.is_terminal()) {
            seen.at_ns = recorded - 1;
        }
    }
}

/// Somebody was told that the job is cancelled, and it went on.
fn ignore_the_cancellation(history: &mut History) {
    let at_ns = terminal_record(history).at_ns - 1;
    history.0.extend([What::CancelWanted, What::Cancelled].map(|what| Observation {
        at_ns,
        job: JOB.to_owned(),
        what,
    }));
}

/// A gateway that does not find what a worker has just done.
fn deny_the_job(history: &mut History) {
    let at_ns = terminal_record(history).at_ns;
    history.0.push(Observation { at_ns, job: JOB.to_owned(), what: What::Denied });
}

/// Somebody's job is taken for another's that is to be cancelled.
fn cancel_unasked(history: &mut History) {
    for seen in of_job(history) {
        if let What::Record { record, .. } = &mut seen.what
            && record.terminal.is_some()
        {
            record.state.status = Status::Cancelled;
        }
        if let What::Event { kind: kind @ EventKind::Completed, .. } = &mut seen.what {
            *kind = EventKind::Cancelled;
        }
    }
}

/// A worker that dies between the record and the event, and a successor that only acknowledges.
fn lose_the_terminal_event(history: &mut History) {
    history.0.retain(|seen| seen.job != JOB || !matches!(&seen.what, What::Event { kind, .. } if kind.is_terminal()));
}

/// A second attempt that announces what it made once more.
fn announce_twice(history: &mut History) {
    let again = terminal_event(history);
    let What::Event { sequence, kind, data } = again.what.clone() else { panic!("an event") };
    history.0.push(Observation { what: What::Event { sequence: sequence + 1000, kind, data }, ..again });
}

/// A second attempt that stores under names of its own.
fn store_twice(history: &mut History) {
    let key = format!("{JOB}/0-again.png");
    let at_ns = terminal_event(history).at_ns;
    let what = What::Object { key, sha256: "0".repeat(64) };
    history.0.push(Observation { at_ns, job: JOB.to_owned(), what });
}

/// A worker that goes on from the state of another job: everything agrees, and the image is another one.
fn go_on_from_another_job(history: &mut History) {
    let other = "f".repeat(64);
    for seen in of_job(history) {
        match &mut seen.what {
            What::Put { sha256, .. } | What::Object { sha256, .. } => sha256.clone_from(&other),
            What::Event { kind: EventKind::Completed, data, .. } => data["images"][0]["sha256"] = json!(other),
            What::Record { record, .. } => {
                if let Some(terminal) = &mut record.terminal {
                    terminal["images"][0]["sha256"] = json!(other);
                }
            }
            What::Submitted { .. }
            | What::Acknowledged { .. }
            | What::Refused { .. }
            | What::CancelWanted
            | What::Cancelled
            | What::Denied
            | What::Event { .. }
            | What::Letter { .. }
            | What::Settled { .. }
            | What::Left { .. } => {}
        }
    }
}

type Bug = (fn(&mut History), Wrong);

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_history_is_clean_and_every_planted_bug_is_found_as_what_it_is() {
    let laboratory = Laboratory::start(Duration::from_secs(10)).await;
    let _worker = laboratory.worker("only").await;
    for picture in 0..3 {
        laboratory.submit("t", &format!("planted-{picture}"), picture).await;
    }
    laboratory.submit_to_fail("t", "malformed", &json!({"no_prompt": true})).await;
    let clean = laboratory.verdict(0).await;
    // A settlement whose confirmation was slow is sent again.
    let heard: BTreeSet<u64> = clean
        .0
        .iter()
        .filter_map(|seen| if let What::Settled { request, .. } = &seen.what { Some(*request) } else { None })
        .collect();
    assert_eq!(heard.len(), 4, "every settlement is heard while the server lives");
    assert_eq!(clean.last_records().len(), 4);

    let bugs: [Bug; 10] = [
        (acknowledge_before_storing, Wrong::SettledEarly),
        (write_without_a_fence, Wrong::Unfenced),
        (publish_before_recording, Wrong::EventBeforeRecord),
        (ignore_the_cancellation, Wrong::CancelIgnored),
        (deny_the_job, Wrong::Denied),
        (cancel_unasked, Wrong::CancelledUnasked),
        (lose_the_terminal_event, Wrong::EventMissing),
        (announce_twice, Wrong::EventTwice),
        (store_twice, Wrong::TwoResults),
        (go_on_from_another_job, Wrong::ImageDiffers),
    ];
    // The takeover by the successor is an attempt that no fault explains, where it is planted.
    let bounds = Bounds { attempts_wasted_max: 1 };
    for (plant, expected) in bugs {
        let mut history = clean.clone();
        plant(&mut history);
        let violations = check(&history, &bounds);
        let text = report(&history, &violations);
        assert!(
            violations.iter().any(|found| (found.wrong, found.job.as_str()) == (expected, JOB)),
            "{expected:?}: {text}"
        );
        assert!(violations.iter().all(|found| found.job == JOB), "one job has the bug, and no other is blamed: {text}");
        assert!(text.contains("record"), "the report shows what was seen of the job: {text}");
    }

    // What is wrong with no job, and with all.
    let mut history = clean.clone();
    history.0.push(Observation { at_ns: i128::MAX, job: String::new(), what: What::Left { requests: 1 } });
    assert_eq!(check(&history, &bounds).iter().map(|found| found.wrong).collect::<Vec<_>>(), [Wrong::QueueNotEmpty]);
    let mut history = clean.clone();
    history.0.retain(|seen| seen.job != JOB || matches!(seen.what, What::Submitted { .. } | What::Acknowledged { .. }));
    assert_eq!(check(&history, &bounds).iter().map(|found| found.wrong).collect::<Vec<_>>(), [Wrong::Lost]);
    let mut history = clean;
    for seen in of_job(&mut history) {
        if let What::Record { record, .. } = &mut seen.what {
            record.state.attempts += 2;
        }
    }
    assert!(check(&history, &bounds).iter().any(|found| found.wrong == Wrong::TooMuchWork));
}
