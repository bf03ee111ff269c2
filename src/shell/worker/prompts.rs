//! Prompts of jobs that were just claimed, encoded on a thread of their own while the engine's thread steps others.
//!
//! It is never needed: a prompt that could not be encoded here is encoded, and complained about, when its image is admitted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::super::clock::Clock;
use crate::engine::PromptEncoder;
use crate::job::ImageSpec;

/// Encodes prompts ahead, one job at a time: more at once would only take from the steps.
#[derive(Clone, Debug)]
pub(super) struct Prompts {
    encoder: Arc<dyn PromptEncoder>,
    turn: Arc<Semaphore>,
    clock: Clock,
}

impl Prompts {
    pub(super) fn new(encoder: Arc<dyn PromptEncoder>, clock: Clock) -> Self {
        Self { encoder, turn: Arc::new(Semaphore::new(1)), clock }
    }

    /// Encodes the prompts of `spec`; how long the encoder took, without the wait for it.
    pub(super) async fn prepare(&self, spec: ImageSpec) -> Duration {
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return Duration::ZERO };
        let (encoder, clock) = (Arc::clone(&self.encoder), self.clock);
        let span = tracing::info_span!("job.encode_ahead");
        let encoding = tokio::task::spawn_blocking(move || {
            let (_turn, _span) = (turn, span.entered());
            let began = clock.now();
            let outcome = encoder.prepare(&spec);
            (outcome, clock.now().since(began))
        });
        match encoding.await {
            Ok((outcome, took)) => {
                if let Err(fault) = outcome {
                    tracing::warn!(%fault, "job.encode_ahead");
                }
                took
            }
            Err(error) => {
                tracing::warn!(panicked = error.is_panic(), "job.encode_ahead");
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::super::engine_thread::{self, Command};
    use super::*;
    use crate::engine::{self, KnownPieces, LoadOptions, StartingPictures};
    use crate::job::{Fault, FaultCode};
    use crate::sched::RowKey;

    const SHAPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/local/models/shapes");

    #[tokio::test]
    async fn an_image_whose_prompts_were_prepared_is_admitted_without_encoding() {
        let clock = Clock::start();
        let open = || engine::open(Path::new(SHAPES), &LoadOptions::default(), KnownPieces::default());
        let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
        let opening = engine_thread::start(open, clock, move |answer| answers.send(answer).unwrap()).await.unwrap();
        let (manifest, prompts) = (opening.manifest.clone(), Arc::clone(&opening.prompts));
        let ahead = Prompts::new(Arc::clone(&prompts), clock);
        let first = ImageSpec::with_defaults("a green heart", &manifest.defaults);
        ahead.prepare(first.clone()).await;
        let thread = opening.ready().await.unwrap();
        assert_eq!(prompts.encoded(), 2, "while the model was loading");
        let row = RowKey(7);
        thread.send(Command::Admit { row, spec: first.into(), pictures: StartingPictures::default(), saved: None });
        answered.recv().await.unwrap().outcome.unwrap();
        assert_eq!(prompts.encoded(), 2, "the loaded model knows them");
        let spec = |prompt: &str| ImageSpec {
            negative_prompt: "blurry".into(),
            ..ImageSpec::with_defaults(prompt, &manifest.defaults)
        };
        let admit = |row: u64, prompt: &str| Command::Admit {
            row: RowKey(row),
            spec: Box::new(spec(prompt)),
            pictures: StartingPictures::default(),
            saved: None,
        };
        thread.send(admit(0, "a red star"));
        answered.recv().await.unwrap().outcome.unwrap();
        assert_eq!(prompts.encoded(), 4, "prompt and negative prompt");

        // While a row steps.
        thread.send(Command::Step { rows: vec![RowKey(0)], previews: Vec::new() });
        assert!(ahead.prepare(spec("a blue ring")).await > Duration::ZERO);
        answered.recv().await.unwrap().outcome.unwrap();
        assert_eq!(prompts.encoded(), 5, "the negative prompt was known");
        thread.send(admit(1, "a blue ring"));
        answered.recv().await.unwrap().outcome.unwrap();
        assert_eq!(prompts.encoded(), 5, "there was nothing left to encode");
    }

    /// Fails for the prompt `fault`, panics for `panic`, and sees whether it is ever called twice at once.
    #[derive(Debug, Default)]
    struct Trouble {
        inside: AtomicU64,
        most_inside: AtomicU64,
        encoded: AtomicU64,
    }

    impl PromptEncoder for Trouble {
        fn prepare(&self, spec: &ImageSpec) -> Result<(), Fault> {
            let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_inside.fetch_max(inside, Ordering::SeqCst);
            let outcome = match spec.prompt.as_str() {
                "fault" => Err(Fault::retry(FaultCode::EngineFailed, "as it was asked")),
                _ => Ok(()),
            };
            self.inside.fetch_sub(1, Ordering::SeqCst);
            assert_ne!(spec.prompt, "panic");
            self.encoded.fetch_add(1, Ordering::SeqCst);
            outcome
        }

        fn encoded(&self) -> u64 {
            self.encoded.load(Ordering::SeqCst)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn neither_faults_nor_panics_keep_the_next_prompt_from_being_prepared() {
        let manifest = engine::read_manifest(Path::new(SHAPES)).unwrap();
        let trouble = Arc::new(Trouble::default());
        let prompts = Prompts::new(Arc::<Trouble>::clone(&trouble), Clock::start());
        let asked = ["a star", "fault", "panic", "a ring", "panic", "a heart"];
        let preparing = asked.map(|prompt| {
            let (prompts, spec) = (prompts.clone(), ImageSpec::with_defaults(prompt, &manifest.defaults));
            tokio::spawn(async move { prompts.prepare(spec).await })
        });
        for prepared in preparing {
            prepared.await.unwrap();
        }
        assert_eq!((trouble.encoded(), trouble.most_inside.load(Ordering::SeqCst)), (4, 1));
    }
}
