//! What to repair where the queue, the records and the events of jobs disagree.
//!
//! Each answer is a function of what was seen and how old that is. It looks at nothing and changes nothing itself: whoever
//! acts on it does so by compare-and-set with what was seen.

use std::time::Duration;

use crate::job::{FaultCode, Status};

/// How long disagreement may last that heals by itself.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Nothing younger is touched: several leases, and the time in which clients publish what they made a record for.
    pub grace: Duration,
    /// A job that a worker has, and whose request is gone, is lost after so long.
    pub lost: Duration,
}

/// A record, as far as it decides.
#[derive(Clone, Copy, Debug)]
pub struct RecordSeen {
    /// Where the job stands.
    pub status: Status,
    /// The request that the record names.
    pub stream_sequence: Option<u64>,
    /// Time since it was written.
    pub age: Duration,
    /// Whether the server will remove it.
    pub is_limited: bool,
}

/// What has to be found out before a record can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing is wrong with it, or it is too young.
    Nothing,
    /// Whether its terminal event is stored.
    Event,
    /// Whether this request is stored.
    Request(u64),
    /// Which request of the job is stored.
    AnyRequest,
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Whether the terminal event is stored.
    Event(bool),
    /// The request that is stored.
    Request(Option<u64>),
}

/// What to do about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordRepair {
    /// Publish its terminal event.
    Announce,
    /// Write it again, so that the server removes it in time.
    Limit,
    /// Name this request in it.
    Name(u64),
    /// Fail the job.
    Fail(FaultCode),
    /// Say that its request is gone while a worker has it.
    Report,
}

/// What has to be known of a record.
pub fn need(record: &RecordSeen, patience: &Patience) -> Need {
    match (record.status, record.stream_sequence) {
        _ if record.age < patience.grace => Need::Nothing,
        (status, _) if status.is_terminal() => Need::Event,
        (_, Some(sequence)) => Need::Request(sequence),
        (_, None) => Need::AnyRequest,
    }
}

/// What to do about a record of which is known what [`need`] asks for.
pub fn judge_record(record: &RecordSeen, known: Known, patience: &Patience) -> Vec<RecordRepair> {
    if record.age < patience.grace {
        return Vec::new();
    }
    match known {
        Known::Event(is_stored) if record.status.is_terminal() => {
            // An old record without an end has outlived its event, which was read long ago.
            let may_announce = record.is_limited || record.age < patience.lost;
            let announce = (!is_stored && may_announce).then_some(RecordRepair::Announce);
            announce.into_iter().chain((!record.is_limited).then_some(RecordRepair::Limit)).collect()
        }
        Known::Request(found) if !record.status.is_terminal() => match (record.stream_sequence, found) {
            (Some(_), Some(_)) => Vec::new(),
            (None, Some(sequence)) => vec![RecordRepair::Name(sequence)],
            (None, None) if record.status == Status::Pending => vec![RecordRepair::Fail(FaultCode::NeverPublished)],
            (Some(_), None) if record.status == Status::Pending => vec![RecordRepair::Fail(FaultCode::RequestLost)],
            // A worker may be about to end it: then the record changes, and this is over.
            (_, None) if record.age < patience.lost => vec![RecordRepair::Report],
            (_, None) => vec![RecordRepair::Fail(FaultCode::RequestLost)],
        },
        Known::Event(_) | Known::Request(_) => Vec::new(),
    }
}

/// How a stored request stands to the record under its job's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// There is no record.
    Unrecorded,
    /// The job ended, and its record was removed.
    Gone,
    /// The record is of another request with this id.
    Foreign,
    /// The record is of this request, and names another message of it.
    Duplicate,
    /// The job ended so.
    Ended(Status),
    /// The job has not ended.
    Open(Status),
}

impl Relation {
    /// The relation of a request to a record of this `status`, which names the message `named`.
    pub fn of(status: Status, is_same_request: bool, named: Option<u64>, sequence: u64) -> Self {
        if !is_same_request {
            Self::Foreign
        } else if named.is_some_and(|named| named != sequence) {
            Self::Duplicate
        } else if status.is_terminal() {
            Self::Ended(status)
        } else {
            Self::Open(status)
        }
    }
}

/// A stored request, as far as it decides.
#[derive(Clone, Copy, Debug)]
pub struct RequestSeen {
    /// Time since it was published.
    pub age: Duration,
    /// What its job's record says.
    pub relation: Relation,
    /// Time since that was written; that of the request where there is no record.
    pub record_age: Duration,
    /// Whether its consumer will never deliver it again.
    pub is_exhausted: bool,
}

/// What to do about a stored request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestRepair {
    /// Nothing.
    Leave,
    /// Remove it, after what its record says of its end was told.
    Settle,
    /// Fail its job, keep it as a dead letter and remove it.
    GiveUp,
}

/// What to do about a stored request.
pub fn judge_request(request: &RequestSeen, patience: &Patience) -> RequestRepair {
    if request.age.min(request.record_age) < patience.grace {
        return RequestRepair::Leave;
    }
    match request.relation {
        Relation::Ended(_) | Relation::Gone | Relation::Duplicate => RequestRepair::Settle,
        Relation::Unrecorded | Relation::Foreign | Relation::Open(_) if request.is_exhausted => RequestRepair::GiveUp,
        Relation::Unrecorded | Relation::Foreign | Relation::Open(_) => RequestRepair::Leave,
    }
}

/// A consumer of requests, as its server counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumerSeen {
    /// Requests in the stream that it filters.
    pub stored: u64,
    /// Those that it has not delivered.
    pub pending: u64,
    /// Those that workers have, or that wait for another delivery.
    pub in_flight: u64,
    /// The last sequence that it delivered.
    pub delivered: u64,
}

impl ConsumerSeen {
    /// Requests that it will never deliver again.
    pub fn surplus(&self) -> u64 {
        self.stored.saturating_sub(self.pending).saturating_sub(self.in_flight)
    }

    /// Whether it will never deliver the request `sequence` again, going by this look and the one before: requests come and
    /// go between the two counts of one look.
    ///
    /// While it has requests in flight, nobody can tell which ones are not.
    pub fn has_exhausted(&self, before: &Self, sequence: u64) -> bool {
        let is_still = |seen: &Self| seen.surplus() > 0 && seen.in_flight == 0;
        is_still(self) && is_still(before) && sequence <= self.delivered.min(before.delivered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { grace: Duration::from_secs(300), lost: Duration::from_secs(3600) };
    const YOUNG: u64 = 299;
    const OLD: u64 = 300;
    const VERY_OLD: u64 = 3600;

    fn record(status: Status, stream_sequence: Option<u64>, age_s: u64) -> RecordSeen {
        RecordSeen { status, stream_sequence, age: Duration::from_secs(age_s), is_limited: status.is_terminal() }
    }

    #[test]
    fn only_what_decides_is_looked_up_and_nothing_of_what_is_young() {
        use Status::{Cancelled, Completed, Failed, Pending, Processing};
        for (status, sequence, old) in [
            (Pending, None, Need::AnyRequest),
            (Pending, Some(7), Need::Request(7)),
            (Processing, Some(7), Need::Request(7)),
            (Processing, None, Need::AnyRequest),
            (Completed, Some(7), Need::Event),
            (Failed, None, Need::Event),
            (Cancelled, None, Need::Event),
        ] {
            assert_eq!(need(&record(status, sequence, OLD), &PATIENCE), old, "{status:?} {sequence:?}");
            assert_eq!(need(&record(status, sequence, YOUNG), &PATIENCE), Need::Nothing, "{status:?} {sequence:?}");
        }
    }

    #[test]
    fn records_are_repaired_as_the_table_says() {
        use RecordRepair::{Announce, Fail, Name, Report};
        use Status::{Cancelled, Completed, Failed, Pending, Processing};
        let gone = Known::Request(None);
        let there = |sequence| Known::Request(Some(sequence));
        type Row = (Status, Option<u64>, Known, u64, &'static [RecordRepair]);
        let table: [Row; 17] = [
            (Completed, Some(7), Known::Event(false), OLD, &[Announce]),
            (Failed, Some(7), Known::Event(false), VERY_OLD, &[Announce]),
            (Cancelled, None, Known::Event(false), OLD, &[Announce]),
            (Completed, Some(7), Known::Event(true), OLD, &[]),
            (Completed, Some(7), Known::Event(false), YOUNG, &[]),
            (Pending, Some(7), gone, OLD, &[Fail(FaultCode::RequestLost)]),
            (Pending, Some(7), gone, YOUNG, &[]),
            (Pending, Some(7), there(7), VERY_OLD, &[]),
            (Pending, None, gone, OLD, &[Fail(FaultCode::NeverPublished)]),
            (Pending, None, gone, YOUNG, &[]),
            (Pending, None, there(9), OLD, &[Name(9)]),
            (Processing, Some(7), gone, OLD, &[Report]),
            (Processing, Some(7), gone, VERY_OLD, &[Fail(FaultCode::RequestLost)]),
            (Processing, Some(7), gone, YOUNG, &[]),
            (Processing, Some(7), there(7), VERY_OLD, &[]),
            // What was found out does not fit: another look will.
            (Completed, Some(7), gone, VERY_OLD, &[]),
            (Pending, Some(7), Known::Event(false), VERY_OLD, &[]),
        ];
        for (status, sequence, known, age, expected) in table {
            let repairs = judge_record(&record(status, sequence, age), known, &PATIENCE);
            assert_eq!(repairs, expected, "{status:?} {sequence:?} {known:?} {age}");
        }
    }

    #[test]
    fn records_without_an_end_get_one_and_old_ones_are_not_announced_again() {
        use RecordRepair::{Announce, Limit};
        let endless = |age| RecordSeen { is_limited: false, ..record(Status::Completed, Some(7), age) };
        let table: [(bool, u64, &[RecordRepair]); 5] = [
            (true, YOUNG, &[]),
            (true, OLD, &[Limit]),
            (false, OLD, &[Announce, Limit]),
            (false, VERY_OLD, &[Limit]),
            (true, VERY_OLD, &[Limit]),
        ];
        for (is_stored, age, expected) in table {
            assert_eq!(judge_record(&endless(age), Known::Event(is_stored), &PATIENCE), expected, "{is_stored} {age}");
        }
    }

    #[test]
    fn the_relation_is_the_digest_then_the_message_then_the_status() {
        use Status::{Completed, Failed, Pending, Processing};
        for (status, same, named, expected) in [
            (Pending, false, Some(7), Relation::Foreign),
            (Completed, false, None, Relation::Foreign),
            (Pending, true, Some(8), Relation::Duplicate),
            (Completed, true, Some(8), Relation::Duplicate),
            (Completed, true, Some(7), Relation::Ended(Completed)),
            (Failed, true, None, Relation::Ended(Failed)),
            (Processing, true, Some(7), Relation::Open(Processing)),
            (Pending, true, None, Relation::Open(Pending)),
        ] {
            assert_eq!(Relation::of(status, same, named, 7), expected, "{status:?} {same} {named:?}");
        }
    }

    #[test]
    fn requests_are_repaired_as_the_table_says() {
        use RequestRepair::{GiveUp, Leave, Settle};
        let table = [
            (Relation::Unrecorded, Leave, GiveUp),
            (Relation::Foreign, Leave, GiveUp),
            (Relation::Open(Status::Pending), Leave, GiveUp),
            (Relation::Open(Status::Processing), Leave, GiveUp),
            (Relation::Gone, Settle, Settle),
            (Relation::Duplicate, Settle, Settle),
            (Relation::Ended(Status::Completed), Settle, Settle),
            (Relation::Ended(Status::Failed), Settle, Settle),
            (Relation::Ended(Status::Cancelled), Settle, Settle),
        ];
        for (relation, usually, exhausted) in table {
            let judge = |age_s, record_age_s, is_exhausted| {
                let (age, record_age) = (Duration::from_secs(age_s), Duration::from_secs(record_age_s));
                judge_request(&RequestSeen { age, relation, record_age, is_exhausted }, &PATIENCE)
            };
            assert_eq!(judge(OLD, OLD, false), usually, "{relation:?}");
            assert_eq!(judge(OLD, OLD, true), exhausted, "{relation:?}");
            for (age, record_age) in [(YOUNG, OLD), (OLD, YOUNG), (0, 0)] {
                assert_eq!(judge(age, record_age, true), Leave, "{relation:?} {age} {record_age}");
            }
        }
    }

    #[test]
    fn a_request_is_exhausted_where_two_looks_find_nothing_in_flight_and_too_much_stored() {
        let seen = |stored, pending, in_flight, delivered| ConsumerSeen { stored, pending, in_flight, delivered };
        let still = seen(3, 2, 0, 10);
        assert_eq!(still.surplus(), 1);
        assert!(still.has_exhausted(&still, 10));
        assert!(!still.has_exhausted(&still, 11), "it waits");
        assert!(!still.has_exhausted(&ConsumerSeen::default(), 10), "seen once");
        assert!(!still.has_exhausted(&seen(3, 2, 0, 9), 10), "delivered in between");
        assert!(!seen(4, 2, 1, 10).has_exhausted(&still, 10), "it may be the one in flight");
        assert!(!seen(2, 2, 0, 10).has_exhausted(&still, 10), "nothing too much");
        assert_eq!(seen(1, 2, 3, 10).surplus(), 0);
    }
}
