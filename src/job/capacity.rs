//! What a worker runs on. What a request may run on is its [`super::Pool`].

use std::fmt;
use std::str::FromStr;

use super::Pool;

/// How a machine is bought: Karpenter's and the clouds' word is capacity type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capacity {
    /// Cheap, and taken away with a short notice.
    Spot,
    /// At the list price, for as long as it is wanted.
    OnDemand,
}

/// A word that is no capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be spot or on-demand")]
pub struct UnknownCapacity;

impl Capacity {
    /// Both, the cheaper one first.
    pub const ALL: [Self; 2] = [Self::Spot, Self::OnDemand];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::OnDemand => "on-demand",
        }
    }

    /// The requests that its workers take: one that asks not to be interrupted never meets a machine that may be taken away.
    pub fn pools(self) -> &'static [Pool] {
        match self {
            Self::Spot => &[Pool::Any],
            Self::OnDemand => &[Pool::Any, Pool::OnDemand],
        }
    }
}

impl FromStr for Capacity {
    type Err = UnknownCapacity;

    fn from_str(text: &str) -> Result<Self, UnknownCapacity> {
        Self::ALL.into_iter().find(|capacity| capacity.as_str() == text).ok_or(UnknownCapacity)
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_only_on_demand_takes_all_requests() {
        for capacity in Capacity::ALL {
            assert_eq!(capacity.as_str().parse(), Ok(capacity));
        }
        assert_eq!("ondemand".parse::<Capacity>(), Err(UnknownCapacity));
        assert!(!Capacity::Spot.pools().contains(&Pool::OnDemand));
        assert_eq!(Capacity::OnDemand.pools().len(), 2);
    }
}
