//! One consumer's pulls: at most one request out, its messages and its end told to the loop as facts.
//!
//! Requests are made by hand on one inbox: the client library's batches prefetch, and hang where the server does.

use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull::BatchConfig};
use async_nats::{StatusCode, Subscriber};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::sched::PullOutcome;
use crate::wire::subject;

use super::super::bus::{Bus, look};
use super::Fact;

/// How long the server keeps a pull open. Short, because a pull dies silently with its server, and because it says how busy
/// this worker was when it asked.
const EXPIRES: Duration = Duration::from_secs(1);
/// After so much more without a word the pull is taken for dead.
const SILENCE: Duration = Duration::from_secs(2);

/// A pull that is wished for.
#[derive(Clone, Copy, Debug)]
struct Ask {
    max: u32,
    preference: u8,
}

/// One consumer as it was when it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) handle: Handle,
    /// After so long without an extension the server hands its messages to somebody else.
    pub(super) ack_wait: Duration,
    /// From where in the stream on there are messages that nobody has yet, if there are any.
    pub(super) waiting_from: Option<u64>,
}

/// One consumer.
#[derive(Debug)]
pub(super) struct Handle {
    asks: mpsc::UnboundedSender<Ask>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Finds the consumer and starts its task.
pub(super) async fn start(
    bus: &Bus,
    consumer: &str,
    lane: usize,
    facts: mpsc::UnboundedSender<Fact>,
) -> Result<Found, Box<dyn std::error::Error + Send + Sync>> {
    let stream = bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await?;
    let found: PullConsumer = look(|| stream.get_consumer(consumer)).await?;
    let info = found.cached_info();
    let ack_wait = info.config.ack_wait;
    let waiting_from = (info.num_pending > 0).then_some(info.delivered.stream_sequence + 1);
    let inbox = bus.client.new_inbox();
    let messages = bus.client.subscribe(inbox.clone()).await?;
    let (asks, asked) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let lane = LaneTask { lane, consumer: found, inbox, messages, facts };
    let tasks = TaskTracker::new();
    tasks.spawn(lane.run(asked, stop.clone()));
    tasks.close();
    Ok(Found { handle: Handle { asks, stop, tasks }, ack_wait, waiting_from })
}

impl Handle {
    /// Asks for up to `max` messages, behind all workers that ask with a lower `preference`.
    pub(super) fn ask(&self, max: u32, preference: u8) {
        let _ = self.asks.send(Ask { max, preference });
    }

    /// Withdraws the pull, at once, and resolves when no message will come any more.
    pub(super) fn stop(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.stop.cancel();
        let tasks = self.tasks.clone();
        async move { tasks.wait().await }
    }
}

struct LaneTask {
    lane: usize,
    consumer: PullConsumer,
    inbox: String,
    messages: Subscriber,
    facts: mpsc::UnboundedSender<Fact>,
}

impl LaneTask {
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Ask>, stop: CancellationToken) {
        let mut wanted: u32 = 0;
        let mut dead_at = None;
        loop {
            let silence = async {
                match dead_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                ask = asked.recv() => {
                    let Some(Ask { max, preference }) = ask else { break };
                    wanted = max;
                    dead_at = Some(tokio::time::Instant::from_std(deadline(EXPIRES + SILENCE)));
                    let batch = BatchConfig {
                        batch: max as usize,
                        expires: Some(EXPIRES),
                        group: Some(subject::PULL_GROUP.to_owned()),
                        priority: Some(preference.into()),
                        ..BatchConfig::default()
                    };
                    if self.consumer.request_batch(batch, self.inbox.clone().into()).await.is_err() {
                        dead_at = None;
                        self.ended(PullOutcome::Failed);
                    }
                }
                message = self.messages.next() => {
                    let Some(message) = message else { break };
                    match message.status {
                        None | Some(StatusCode::OK) if message.reply.is_some() => {
                            wanted = wanted.saturating_sub(1);
                            if wanted == 0 {
                                dead_at = None;
                            }
                            let _ = self.facts.send(Fact::Delivered { lane: self.lane, message });
                        }
                        Some(StatusCode::IDLE_HEARTBEAT) => {}
                        // Words about a pull that was taken for dead are nobody's.
                        _ if dead_at.is_none() => {}
                        Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                            dead_at = None;
                            self.ended(PullOutcome::Expired);
                        }
                        status => {
                            tracing::warn!(?status, description = message.description, "bus.pull");
                            dead_at = None;
                            self.ended(PullOutcome::Failed);
                        }
                    }
                }
                () = silence => {
                    dead_at = None;
                    self.ended(PullOutcome::Failed);
                }
            }
        }
        // What is on its way still arrives and will be given back; then there is nothing.
        if self.messages.drain().await.is_ok() {
            let rest = async {
                while let Some(message) = self.messages.next().await {
                    if message.reply.is_some() && message.status.is_none() {
                        let _ = self.facts.send(Fact::Delivered { lane: self.lane, message });
                    }
                }
            };
            let _ = tokio::time::timeout(SILENCE, rest).await;
        }
    }

    fn ended(&self, outcome: PullOutcome) {
        let _ = self.facts.send(Fact::PullEnded { lane: self.lane, outcome });
    }
}

#[expect(clippy::disallowed_methods, reason = "a timeout of I/O, not policy")]
fn deadline(after: Duration) -> std::time::Instant {
    std::time::Instant::now() + after
}
