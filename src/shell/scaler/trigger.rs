//! What a trigger of KEDA asks about, read from its metadata, and the answer.
//!
//! How KEDA asks is the function's business.

use std::collections::HashMap;
use std::time::Duration;

use crate::job::{Capacity, Fault, ModelName};
use crate::shell::bus::Bus;
use crate::shell::config::parse_duration;

use super::{Scaler, Wish, lag};

/// How often those who want to be told are answered anew, at the least.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum TriggerError {
    /// The model has no consumers.
    #[error("the model {0} is not served; run `darkroom setup`")]
    UnknownModel(ModelName),
    /// The server does not answer, or has no such consumer.
    #[error("{stream}/{consumer}: {source}")]
    Unanswered {
        /// Which stream.
        stream: String,
        /// And which of its consumers.
        consumer: String,
        /// Why.
        source: Fault,
    },
}

/// What a trigger asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Workers of a model.
    Workers {
        /// Which model.
        model: ModelName,
        /// On what they run.
        capacity: Capacity,
        /// What the trigger wishes for.
        wish: Wish,
    },
    /// Copies of a function that takes the messages of a consumer.
    Consumer {
        /// Which stream.
        stream: String,
        /// And which of its consumers.
        consumer: String,
        /// By what its messages are divided.
        messages_per_replica: u32,
    },
}

impl Trigger {
    /// Reads the metadata of a trigger.
    ///
    /// # Errors
    /// What is wrong, naming the entry and what it must be.
    pub fn read(metadata: &HashMap<String, String>) -> Result<Self, String> {
        let entry = |name: &str| metadata.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let number = |name: &str| {
            let read =
                |text: &str| text.parse::<u32>().map_err(|_| format!("{name} is {text:?}, must be a whole number"));
            entry(name).map(read).transpose()
        };
        match (entry("model"), entry("stream"), entry("consumer")) {
            (Some(model), None, None) => {
                let capacity = entry("capacity").ok_or("capacity is missing, must be spot or on-demand")?;
                let wait = |text: &str| {
                    parse_duration(text).map_err(|_| format!("targetWait is {text:?}, must be a duration such as 10s"))
                };
                Ok(Self::Workers {
                    model: model.parse().map_err(|error| format!("model is {model:?}: {error}"))?,
                    capacity: capacity.parse().map_err(|error| format!("capacity is {capacity:?}, {error}"))?,
                    wish: Wish {
                        workers_min: number("workersMin")?,
                        workers_max: number("workersMax")?,
                        target_wait: entry("targetWait").map(wait).transpose()?,
                        starting: 0,
                    },
                })
            }
            (None, Some(stream), Some(consumer)) => Ok(Self::Consumer {
                stream: stream.to_owned(),
                consumer: consumer.to_owned(),
                messages_per_replica: number("messagesPerReplica")?.unwrap_or(100).max(1),
            }),
            _ => Err("either model and capacity, or stream and consumer must be there".to_owned()),
        }
    }

    /// By what the metric is divided.
    pub fn target(&self) -> u32 {
        match self {
            Self::Workers { .. } => 1,
            Self::Consumer { messages_per_replica, .. } => *messages_per_replica,
        }
    }

    /// The metric: workers that there should be, or messages that are still to be settled.
    ///
    /// # Errors
    /// [`TriggerError`].
    pub async fn metric(&self, bus: &Bus, scaler: &Scaler) -> Result<u64, TriggerError> {
        match self {
            Self::Workers { model, capacity, wish } => {
                let wanted = scaler.wanted(model, *capacity, Some(*wish));
                Ok(u64::from(wanted.ok_or_else(|| TriggerError::UnknownModel(model.clone()))?.on(*capacity)))
            }
            Self::Consumer { stream, consumer, .. } => {
                let unanswered =
                    |source| TriggerError::Unanswered { stream: stream.clone(), consumer: consumer.clone(), source };
                lag(bus, stream, consumer).await.map_err(unanswered)
            }
        }
    }

    /// Waits until the metric may be another one.
    pub async fn may_have_changed(&self, scaler: &Scaler) {
        let mut looks = scaler.looks();
        looks.mark_unchanged();
        match self {
            Self::Workers { .. } => {
                let _ = tokio::time::timeout(LOOK_EVERY, looks.changed()).await;
            }
            Self::Consumer { .. } => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entries: &[(&str, &str)]) -> Result<Trigger, String> {
        Trigger::read(&entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_trigger_asks_about_workers_or_about_a_consumer() {
        let workers = read(&[
            ("scalerAddress", "x:6000"),
            ("model", "shapes"),
            ("capacity", "spot"),
            ("workersMax", "4"),
            ("targetWait", "5s"),
        ]);
        let wish =
            Wish { workers_min: None, workers_max: Some(4), target_wait: Some(Duration::from_secs(5)), starting: 0 };
        let expected = Trigger::Workers { model: "shapes".parse().unwrap(), capacity: Capacity::Spot, wish };
        assert_eq!(workers, Ok(expected));
        let (stream, consumer) = ("DARKROOM_HOOK".to_owned(), "webhook".to_owned());
        let expected = Trigger::Consumer { stream, consumer, messages_per_replica: 20 };
        let entries = [("stream", "DARKROOM_HOOK"), ("consumer", "webhook"), ("messagesPerReplica", "20")];
        assert_eq!(read(&entries), Ok(expected));
    }

    #[test]
    fn mistakes_name_their_entry() {
        let wrong: [(&[(&str, &str)], &str); 7] = [
            (&[], "either model and capacity"),
            (&[("model", "shapes")], "capacity is missing"),
            (&[("model", "shapes"), ("capacity", "cheap")], "must be spot or on-demand"),
            (&[("model", "a b"), ("capacity", "spot")], "model is"),
            (&[("model", "shapes"), ("capacity", "spot"), ("workersMax", "-1")], "workersMax is"),
            (&[("model", "shapes"), ("capacity", "spot"), ("targetWait", "soon")], "targetWait is"),
            (&[("stream", "DARKROOM_HOOK")], "either model and capacity"),
        ];
        for (entries, expected) in wrong {
            let error = read(entries).unwrap_err();
            assert!(error.contains(expected), "{entries:?}: {error}");
        }
    }
}
