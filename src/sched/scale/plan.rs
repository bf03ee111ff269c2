//! How many workers there should be at least and at most, for every hour of a week, from how busy the weeks before were.
//!
//! A floor costs money whenever the hour turns out quieter than it was, so it is only what was busy in every week of the
//! history: that many engines' worth of work were there anyway, and keeping their workers through gaps of minutes saves their
//! starts. Where the history has less than one engine's worth, nothing is kept warm. A ceiling is a brake on bills, not on
//! jobs, so it leaves room above the busiest such hour and its neighbours.
//!
//! It knows neither calendars nor clocks: hours are counted from wherever the history begins.

/// Hours of a week.
pub const HOURS: usize = 168;
/// No fleet is that busy; the history is in another unit.
const LOAD_MAX: f64 = 100_000.0;

/// How careful it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Care {
    /// The ceiling is so many times the busiest hour; at least 1.
    pub headroom: f64,
    /// Workers that every hour may have, however quiet it was; at least 1, so that the first job is served.
    pub ceiling_min: u32,
    /// Workers that no hour may have more of.
    pub workers_max: u32,
}

impl Default for Care {
    fn default() -> Self {
        Self { headroom: 2.0, ceiling_min: 1, workers_max: u32::MAX }
    }
}

/// One hour of the week.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hour {
    /// Workers at least: [`super::Target::workers_min`].
    pub floor: u32,
    /// Workers at most: [`super::Target::workers_max`].
    pub ceiling: u32,
}

/// A plan that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The history is not whole weeks.
    #[error("the history has {hours} hours; it must have 168, or a multiple of them")]
    Hours {
        /// What it has.
        hours: usize,
    },
    /// A load cannot be.
    #[error("the history's hour {hour} has a load of {load}; it must be 0 to 100000 engines")]
    Load {
        /// Which, from 0.
        hour: usize,
        /// What it has.
        load: f64,
    },
    /// The care cannot be.
    #[error("{field} must be {must}")]
    Care {
        /// Which of its fields.
        field: &'static str,
        /// What would be right.
        must: &'static str,
    },
}

/// A week's plan from the mean number of busy engines in each hour of one or more weeks.
///
/// # Errors
/// When the history is not whole weeks or holds what no load can be, or the care makes no sense.
pub fn plan(history: &[f64], care: &Care) -> Result<[Hour; HOURS], PlanError> {
    if history.is_empty() || !history.len().is_multiple_of(HOURS) {
        return Err(PlanError::Hours { hours: history.len() });
    }
    if let Some((hour, load)) = history.iter().enumerate().find(|(_, load)| !(0.0..=LOAD_MAX).contains(*load)) {
        return Err(PlanError::Load { hour, load: *load });
    }
    if !(care.headroom >= 1.0 && care.headroom <= LOAD_MAX) {
        return Err(PlanError::Care { field: "headroom", must: "1 to 100000" });
    }
    if care.ceiling_min == 0 || care.workers_max < care.ceiling_min {
        return Err(PlanError::Care { field: "ceiling_min", must: "1 to workers_max" });
    }
    let of_hour = |hour: usize| history.iter().skip(hour % HOURS).step_by(HOURS).copied();
    let busiest = |hour: usize| of_hour(hour).fold(0.0, f64::max);
    Ok(std::array::from_fn(|hour| {
        let floor = of_hour(hour).fold(f64::INFINITY, f64::min).floor() as u32;
        // What came at the end of an hour may come at the beginning of the next this week.
        let around = busiest(hour + HOURS - 1).max(busiest(hour)).max(busiest(hour + 1));
        let room = (around * care.headroom).ceil() as u32;
        let ceiling = room.max(care.ceiling_min).min(care.workers_max);
        Hour { floor: floor.min(ceiling), ceiling }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn week(load: impl Fn(usize) -> f64) -> Vec<f64> {
        (0..HOURS).map(load).collect()
    }

    #[test]
    fn nothing_is_kept_warm_that_was_not_busy_anyway() {
        let quiet = plan(&week(|_| 0.95), &Care::default()).unwrap();
        assert!(quiet.iter().all(|hour| *hour == Hour { floor: 0, ceiling: 2 }));
        let empty = plan(&week(|_| 0.0), &Care::default()).unwrap();
        assert!(empty.iter().all(|hour| *hour == Hour { floor: 0, ceiling: 1 }), "the first job is served");
        let busy = plan(&week(|hour| if hour == 10 { 3.7 } else { 0.2 }), &Care::default()).unwrap();
        assert_eq!(busy[10], Hour { floor: 3, ceiling: 8 });
        assert_eq!((busy[9], busy[11]), (Hour { floor: 0, ceiling: 8 }, Hour { floor: 0, ceiling: 8 }));
        assert_eq!(busy[12], Hour { floor: 0, ceiling: 1 });
    }

    #[test]
    fn a_week_that_was_quieter_lowers_the_floor_and_a_busier_one_raises_the_ceiling() {
        let mut weeks = week(|_| 4.0);
        weeks.extend(week(|hour| if hour == 0 { 1.2 } else { 6.0 }));
        let plan = plan(&weeks, &Care::default()).unwrap();
        assert_eq!(plan[0], Hour { floor: 1, ceiling: 12 }, "the week is a ring");
        assert_eq!(plan[80], Hour { floor: 4, ceiling: 12 });
    }

    #[test]
    fn the_floor_is_never_above_the_ceiling_and_that_never_above_the_most() {
        let care = Care { headroom: 1.0, ceiling_min: 2, workers_max: 5 };
        for seed in 0..50_u32 {
            let load = |hour: usize| f64::from((seed * 31 + hour as u32 * 17) % 97) / 7.0;
            for Hour { floor, ceiling } in plan(&week(load), &care).unwrap() {
                assert!(floor <= ceiling && (2..=5).contains(&ceiling), "{floor} {ceiling}");
            }
            let generous = plan(&week(load), &Care::default()).unwrap();
            assert!((0..HOURS).all(|hour| f64::from(generous[hour].floor) <= load(hour)));
        }
    }

    #[test]
    fn what_no_history_can_be_is_named() {
        assert_eq!(plan(&[1.0; 167], &Care::default()), Err(PlanError::Hours { hours: 167 }));
        assert_eq!(plan(&[], &Care::default()), Err(PlanError::Hours { hours: 0 }));
        for load in [-1.0, f64::INFINITY, 1e9] {
            let history = week(|hour| if hour == 7 { load } else { 1.0 });
            assert_eq!(plan(&history, &Care::default()), Err(PlanError::Load { hour: 7, load }));
        }
        assert!(matches!(plan(&week(|_| f64::NAN), &Care::default()), Err(PlanError::Load { hour: 0, .. })));
        let history = week(|_| 1.0);
        for (care, named) in [
            (Care { headroom: 0.5, ..Care::default() }, "headroom"),
            (Care { ceiling_min: 0, ..Care::default() }, "ceiling_min"),
            (Care { workers_max: 0, ..Care::default() }, "ceiling_min"),
        ] {
            assert!(plan(&history, &care).unwrap_err().to_string().contains(named));
        }
    }
}
