//! The one OS thread that owns the engine.
//!
//! Work goes in through a channel and answers come back through another; a panic in the engine becomes a `Fatal` fault,
//! and the thread ends. The event loop never waits for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::engine::{
    self, Admitted, Engine, ModelDigest, PictureFiles, PromptEncoder, RgbImage, RowId, StartingPictures,
};
use crate::job::{Fault, FaultCode, ImageSpec, ModelManifest, OutputFormat, Start, Task};
use crate::sched::{EngineReport, RowKey};

use super::clock::Clock;

/// What the thread is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Begin an image.
    Admit {
        /// Its row.
        row: RowKey,
        /// What it shall be.
        spec: Box<ImageSpec>,
        /// What it starts from.
        pictures: StartingPictures,
    },
    /// One step of several rows, then previews of some.
    Step {
        /// The rows.
        rows: Vec<RowKey>,
        /// Those to preview.
        previews: Vec<RowKey>,
    },
    /// Latents to pixels.
    Decode {
        /// The row.
        row: RowKey,
    },
    /// Forget a row; not answered.
    Release {
        /// The row.
        row: RowKey,
    },
}

/// What came of a command.
#[derive(Debug)]
pub struct Answer {
    /// For the scheduler.
    pub outcome: Result<EngineReport, Fault>,
    /// After `Decode`.
    pub image: Option<RgbImage>,
    /// After `Step`: JPEG bytes by row.
    pub previews: Vec<(RowKey, Vec<u8>)>,
    /// After `Admit`: what the requester should know.
    pub warnings: Vec<String>,
    /// How long the engine took.
    pub took: Duration,
}

/// The sending end of the thread.
#[derive(Debug)]
pub struct EngineThread {
    commands: mpsc::Sender<Command>,
    /// What the model is called and can do.
    pub manifest: ModelManifest,
    /// The identity of the model's files.
    pub digest: ModelDigest,
    /// Where it computes and in which number format.
    pub placement: String,
    /// Bytes that the device had left when the model was loaded, where the system tells.
    pub memory_left: Option<u64>,
    /// Encodes prompts while the thread is at something else.
    pub prompts: Arc<dyn PromptEncoder>,
}

/// Starts the thread, loads the model on it with `load`, warms it up if that pays, and returns when it is ready for work.
///
/// # Errors
/// Whatever `load` says; a `Fatal` fault when it panics or the warm-up fails.
pub async fn start<E, L>(
    load: L,
    clock: Clock,
    answer: impl Fn(Answer) + Send + 'static,
) -> Result<EngineThread, StartError<E>>
where
    E: std::error::Error + Send + 'static,
    L: FnOnce() -> Result<Box<dyn Engine>, E> + Send + 'static,
{
    let (commands, inbox) = mpsc::channel();
    let (ready, loaded) = tokio::sync::oneshot::channel();
    let body = move || {
        let mut engine = match catch_unwind(AssertUnwindSafe(load)) {
            Ok(Ok(engine)) => engine,
            Ok(Err(error)) => return drop(ready.send(Err(StartError::Load(error)))),
            Err(_) => return drop(ready.send(Err(StartError::Panicked))),
        };
        if engine.warm_up_pays() {
            match catch_unwind(AssertUnwindSafe(|| warm_up(engine.as_mut()))) {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => return drop(ready.send(Err(StartError::WarmUp(fault)))),
                Err(_) => return drop(ready.send(Err(StartError::Panicked))),
            }
        }
        let loaded = EngineThread {
            commands,
            manifest: engine.manifest().clone(),
            digest: engine.digest().clone(),
            placement: engine.placement(),
            memory_left: engine.memory().left(),
            prompts: engine.prompt_encoder(),
        };
        if ready.send(Ok(loaded)).is_err() {
            return;
        }
        serve(engine.as_mut(), &inbox, clock, &answer);
    };
    let spawned = std::thread::Builder::new().name("engine".to_owned()).spawn(body);
    spawned.map_err(StartError::Thread)?;
    loaded.await.map_err(|_| StartError::Panicked)?
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum StartError<E: std::error::Error + 'static> {
    /// The model could not be loaded.
    #[error("the model cannot be loaded")]
    Load(#[source] E),
    /// Its first image failed.
    #[error("the model cannot make an image")]
    WarmUp(#[source] Fault),
    /// Loading panicked; the message is on standard error.
    #[error("loading the model panicked")]
    Panicked,
    /// The system refused a thread.
    #[error("the engine's thread cannot be started")]
    Thread(#[source] std::io::Error),
}

impl EngineThread {
    /// Hands over a command. When the thread is gone nothing happens: its last answer said so.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// One step and one decode at the default size, so that the first job does not pay for what is only done once.
fn warm_up(engine: &mut dyn Engine) -> Result<(), Fault> {
    let ModelManifest { defaults, tasks, .. } = engine.manifest().clone();
    let (width, height) = (defaults.width, defaults.height);
    let (start, files) = if tasks.contains(&Task::TextToImage) {
        (Start::Noise, PictureFiles::default())
    } else {
        let white = RgbImage { width, height, pixels: vec![u8::MAX; 3 * width as usize * height as usize] };
        let file = bytes::Bytes::from(engine::encode(&white, OutputFormat::Png)?);
        (Start::Inpaint { strength: 1.0 }, PictureFiles { init_image: Some(file.clone()), mask_image: Some(file) })
    };
    let spec = ImageSpec { num_inference_steps: 1, start, ..ImageSpec::with_defaults("warm-up", &defaults) };
    let pictures = StartingPictures::prepare(&files, &spec)?;
    let row = RowId(u64::MAX);
    for _ in 0..engine.admit(row, &spec, &pictures)?.steps {
        engine.step(&[row])?;
    }
    engine.decode(row)?;
    engine.release(row);
    Ok(())
}

fn serve(engine: &mut dyn Engine, inbox: &mpsc::Receiver<Command>, clock: Clock, answer: &dyn Fn(Answer)) {
    let row_id = |row: &RowKey| RowId(row.0);
    while let Ok(command) = inbox.recv() {
        if let Command::Release { row } = &command {
            engine.release(row_id(row));
            continue;
        }
        let began = clock.now();
        let answered = |report| Answer {
            outcome: Ok(report),
            image: None,
            previews: Vec::new(),
            warnings: Vec::new(),
            took: Duration::ZERO,
        };
        let done = catch_unwind(AssertUnwindSafe(|| match &command {
            Command::Admit { row, spec, pictures } => {
                let Admitted { steps, warnings, .. } = engine.admit(row_id(row), spec, pictures)?;
                Ok(Answer { warnings, ..answered(EngineReport::Admitted { steps }) })
            }
            Command::Step { rows, previews } => {
                let ids: Vec<RowId> = rows.iter().map(row_id).collect();
                engine.step(&ids)?;
                // A preview that fails is left out: it is worth less than the image.
                let made = previews.iter().filter_map(|row| engine.preview(row_id(row)).ok().map(|jpeg| (*row, jpeg)));
                Ok(Answer { previews: made.collect(), ..answered(EngineReport::Stepped) })
            }
            Command::Decode { row } => {
                let image = engine.decode(row_id(row))?;
                Ok(Answer { image: Some(image), ..answered(EngineReport::Decoded) })
            }
            Command::Release { .. } => Ok(answered(EngineReport::Decoded)),
        }));
        let took = clock.now().since(began);
        let failed = |fault: Fault| Answer { outcome: Err(fault), took, ..answered(EngineReport::Stepped) };
        match done {
            Ok(Ok(done)) => answer(Answer { took, ..done }),
            Ok(Err(fault)) => answer(failed(fault)),
            Err(panic) => {
                let message = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("without a message");
                answer(failed(Fault::fatal(FaultCode::EngineLost, format!("the engine panicked: {message}"))));
                return;
            }
        }
    }
}
