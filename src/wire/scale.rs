//! What the scaler answers over HTTP, and a model's plan by hour of week as the bucket `darkroom_scale` has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Hours of a week; the first begins on Monday at 00:00 UTC.
pub const HOURS: usize = 168;

/// What a model may have in one hour of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HourPlan {
    /// Workers that are kept though nothing waits.
    pub workers_min: u32,
    /// Workers at most.
    pub workers_max: u32,
}

/// A model's week.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScalePlan {
    /// Its name.
    pub model: String,
    /// 168 hours, from Monday 00:00 UTC.
    pub hours: Vec<HourPlan>,
}

/// How many workers there should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScaleAnswer {
    /// The model.
    pub model: String,
    /// `spot` or `on-demand`.
    pub capacity: String,
    /// So many, those that run included.
    pub workers: u32,
    /// Why.
    pub reason: String,
}

/// The hour of the week, from Monday 00:00 UTC.
pub fn hour_of_week(unix_ms: i64) -> usize {
    // The epoch began on a Thursday.
    let hours = unix_ms.div_euclid(3_600_000) + 72;
    usize::try_from(hours.rem_euclid(168)).unwrap_or_default()
}

/// A plan as it is kept.
pub fn encode<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_default()
}

/// Reads a plan.
///
/// # Errors
/// serde's, or that a week has 168 hours.
pub fn decode(bytes: &[u8]) -> Result<ScalePlan, serde_json::Error> {
    let plan: ScalePlan = serde_json::from_slice(bytes)?;
    if plan.hours.len() != HOURS {
        return Err(serde::de::Error::custom(format!("hours has {} entries, must have {HOURS}", plan.hours.len())));
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_begins_on_monday() {
        // 2026-11-23 was a Monday.
        let monday_ms = 1_795_392_000_000;
        assert_eq!(hour_of_week(monday_ms), 0);
        assert_eq!(hour_of_week(monday_ms - 1), 167);
        assert_eq!(hour_of_week(monday_ms + 25 * 3_600_000), 25);
        assert_eq!(hour_of_week(0), 72);
        assert_eq!(hour_of_week(-1), 71);
    }

    #[test]
    fn a_plan_has_a_whole_week() {
        let hours = vec![HourPlan { workers_min: 0, workers_max: 4 }; HOURS];
        let plan = ScalePlan { model: "shapes".into(), hours };
        assert_eq!(decode(&encode(&plan)).unwrap(), plan);
        let short = ScalePlan { hours: vec![HourPlan { workers_min: 0, workers_max: 4 }], ..plan };
        assert!(decode(&encode(&short)).unwrap_err().to_string().contains("must have 168"));
    }
}
