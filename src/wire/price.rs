//! What machines cost: the file `infra/prices.toml`, which comes along, or one of the same form.
//!
//! Prices are of whole machines; a worker has one GPU, so what it costs is the machine's price divided by its GPUs. How often
//! spot machines are taken away is not in it.

use serde::Deserialize;

use crate::job::Capacity;

/// The prices that come along.
const COME_ALONG: &str = include_str!("../../infra/prices.toml");
/// More than any machine costs in an hour, so that a price by the month is noticed.
const DOLLARS_MAX: f64 = 1000.0;
const GPUS_MAX: u32 = 64;
const MEMORY_GIB_MAX: u32 = 10_000;

/// A price file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// It is not of the form of price files.
    #[error("the prices cannot be read")]
    Malformed(#[from] toml::de::Error),
    /// It has no machine at all.
    #[error("the prices have no [[instance]]; at least one must be there")]
    Empty,
    /// Two entries have one name.
    #[error("the prices have the instance {name} twice; names must differ")]
    Twice {
        /// The name.
        name: String,
    },
    /// A field holds what cannot be.
    #[error("the prices' instance {name:?}: {field} {must}")]
    Invalid {
        /// Of which machine.
        name: String,
        /// Where.
        field: &'static str,
        /// What would be right.
        must: String,
    },
    /// No machine has this name.
    #[error("the prices have no instance {name:?}; there are {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that are there.
        known: String,
    },
    /// The machine is there, but not as a spot machine.
    #[error("the prices have no spot_per_hour of the instance {name}")]
    NoSpot {
        /// The name.
        name: String,
    },
}

/// A machine and what it costs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstancePrice {
    /// Its type, as `g5.xlarge`.
    pub name: String,
    /// Whose it is: aws, gcp or another.
    pub provider: String,
    /// Where the prices hold.
    pub region: String,
    /// What is in it, as `A10G`.
    pub gpu: String,
    /// How many of them.
    pub gpus: u32,
    /// Memory of one.
    pub gpu_memory_gib: u32,
    /// Dollars for the machine at the list price.
    pub on_demand_per_hour: f64,
    /// Dollars for it as a spot machine; absent where none is to be had.
    pub spot_per_hour: Option<f64>,
    /// Where the prices are from: a URL.
    pub source: String,
    /// When they held: YYYY-MM-DD, or YYYY-MM where the day is not known.
    pub as_of: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    instance: Vec<InstancePrice>,
}

/// What machines cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    instances: Vec<InstancePrice>,
}

impl InstancePrice {
    /// Dollars an hour for the whole machine; none where it is not to be had so.
    pub fn per_hour(&self, capacity: Capacity) -> Option<f64> {
        match capacity {
            Capacity::Spot => self.spot_per_hour,
            Capacity::OnDemand => Some(self.on_demand_per_hour),
        }
    }

    /// The same for one GPU of it, which is what a worker has.
    pub fn per_gpu_hour(&self, capacity: Capacity) -> Option<f64> {
        self.per_hour(capacity).map(|dollars| dollars / f64::from(self.gpus.max(1)))
    }

    fn check(&self) -> Result<(), PriceError> {
        let invalid =
            |field, must: &str| Err(PriceError::Invalid { name: self.name.clone(), field, must: must.to_owned() });
        for (field, text) in
            [("name", &self.name), ("provider", &self.provider), ("region", &self.region), ("gpu", &self.gpu)]
        {
            if text.trim().is_empty() {
                return invalid(field, "must not be empty");
            }
        }
        if !(1..=GPUS_MAX).contains(&self.gpus) {
            return invalid("gpus", &format!("must be 1 to {GPUS_MAX}"));
        }
        if !(1..=MEMORY_GIB_MAX).contains(&self.gpu_memory_gib) {
            return invalid("gpu_memory_gib", &format!("must be 1 to {MEMORY_GIB_MAX}"));
        }
        let is_price = |dollars: f64| dollars > 0.0 && dollars <= DOLLARS_MAX;
        if !is_price(self.on_demand_per_hour) {
            return invalid("on_demand_per_hour", &format!("must be above 0 and at most {DOLLARS_MAX}"));
        }
        if !self.spot_per_hour.is_none_or(is_price) {
            return invalid("spot_per_hour", &format!("must be above 0 and at most {DOLLARS_MAX}, or be left out"));
        }
        if !self.source.starts_with("https://") {
            return invalid("source", "must be a URL that begins with https://");
        }
        if !is_date(&self.as_of) {
            return invalid("as_of", "must be YYYY-MM-DD or YYYY-MM");
        }
        Ok(())
    }
}

/// Whether it is a day or a month.
fn is_date(text: &str) -> bool {
    let day = match text.len() {
        7 => format!("{text}-01"),
        _ => text.to_owned(),
    };
    day.len() == 10 && day.parse::<jiff::civil::Date>().is_ok()
}

impl Prices {
    /// Reads a file of prices.
    ///
    /// # Errors
    /// When it is none, or an entry holds what cannot be; the field is named.
    pub fn parse(text: &str) -> Result<Self, PriceError> {
        let File { instance: instances } = toml::from_str(text)?;
        if instances.is_empty() {
            return Err(PriceError::Empty);
        }
        for (nth, instance) in instances.iter().enumerate() {
            instance.check()?;
            if instances.iter().take(nth).any(|other| other.name == instance.name) {
                return Err(PriceError::Twice { name: instance.name.clone() });
            }
        }
        Ok(Self { instances })
    }

    /// The prices that come along.
    ///
    /// # Errors
    /// None: a test reads them.
    pub fn come_along() -> Result<Self, PriceError> {
        Self::parse(COME_ALONG)
    }

    /// Every machine, in the order of the file.
    pub fn instances(&self) -> &[InstancePrice] {
        &self.instances
    }

    /// A machine.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn instance(&self, name: &str) -> Result<&InstancePrice, PriceError> {
        let known = || self.instances.iter().map(|instance| instance.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.instances.iter().find(|instance| instance.name == name);
        found.ok_or_else(|| PriceError::Unknown { name: name.to_owned(), known: known() })
    }

    /// Dollars an hour for a worker, which has one GPU, on such a machine.
    ///
    /// # Errors
    /// When there is no such machine, or none as a spot machine.
    pub fn per_worker_hour(&self, name: &str, capacity: Capacity) -> Result<f64, PriceError> {
        let found = self.instance(name)?.per_gpu_hour(capacity);
        found.ok_or_else(|| PriceError::NoSpot { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[instance]]\nname = \"x.large\"\nprovider = \"aws\"\nregion = \"here\"\ngpu = \"T4\"\ngpus = 4\n\
                       gpu_memory_gib = 16\non_demand_per_hour = 2.0\nspot_per_hour = 0.8\nsource = \"https://a.example/\"\n\
                       as_of = \"2025-09\"\n";

    #[test]
    fn the_prices_that_come_along_are_prices_with_sources() {
        let prices = Prices::come_along().unwrap();
        assert!(prices.instances().len() >= 5);
        for instance in prices.instances() {
            if let Some(spot) = instance.spot_per_hour {
                assert!(spot < instance.on_demand_per_hour, "{}", instance.name);
            }
        }
    }

    #[test]
    fn a_worker_pays_for_one_gpu() {
        let prices = Prices::parse(ONE).unwrap();
        let per_hour = |capacity| prices.per_worker_hour("x.large", capacity).unwrap();
        assert!((per_hour(Capacity::OnDemand) - 0.5).abs() < 1e-9);
        assert!((per_hour(Capacity::Spot) - 0.2).abs() < 1e-9);
        assert_eq!(prices.instance("x.large").unwrap().per_hour(Capacity::OnDemand), Some(2.0));
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let prices = Prices::parse(&ONE.replace("spot_per_hour = 0.8\n", "")).unwrap();
        let error = prices.per_worker_hour("y.large", Capacity::Spot).unwrap_err().to_string();
        assert!(error.contains("y.large") && error.contains("x.large"), "{error}");
        let error = prices.per_worker_hour("x.large", Capacity::Spot).unwrap_err().to_string();
        assert!(error.contains("spot_per_hour"), "{error}");
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (right, wrong, field) in [
            ("\"x.large\"", "\" \"", "name"),
            ("\"aws\"", "\"\"", "provider"),
            ("gpus = 4", "gpus = 0", "gpus"),
            ("gpu_memory_gib = 16", "gpu_memory_gib = 0", "gpu_memory_gib"),
            ("= 2.0", "= 0.0", "on_demand_per_hour"),
            ("= 2.0", "= nan", "on_demand_per_hour"),
            ("= 0.8", "= -1.0", "spot_per_hour"),
            ("= 0.8", "= 5000.0", "spot_per_hour"),
            ("https://a.example/", "hearsay", "source"),
            ("2025-09", "2025-13", "as_of"),
            ("2025-09", "lately", "as_of"),
        ] {
            let error = Prices::parse(&ONE.replace(right, wrong)).unwrap_err();
            assert!(error.to_string().contains(field), "{wrong}: {error}");
        }
        assert!(matches!(Prices::parse(""), Err(PriceError::Empty)));
        assert!(matches!(Prices::parse(&format!("{ONE}{ONE}")), Err(PriceError::Twice { .. })));
        let error = Prices::parse(&ONE.replace("gpus = 4", "gpuss = 4")).unwrap_err();
        let PriceError::Malformed(cause) = error else { panic!("{error:?}") };
        assert!(cause.to_string().contains("gpuss"), "{cause}");
        let PriceError::Malformed(cause) = Prices::parse(&ONE.replace("gpus = 4\n", "")).unwrap_err() else { panic!() };
        assert!(cause.to_string().contains("gpus"), "{cause}");
    }
}
