//! The one OS thread that owns the engine.
//!
//! Work goes in through a channel and answers come back through another; a panic in the engine becomes a `Fatal` fault,
//! and the thread ends. The event loop never waits for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::engine::{
    self, Admitted, Engine, LoadError, ModelDigest, OpenedModel, PictureFiles, Pipeline, PromptEncoder, ResumeError,
    RgbImage, RowId, StartingPictures,
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
        /// How far somebody else was with it; what does not fit is as good as nothing.
        saved: Option<Bytes>,
    },
    /// One step of several rows, then previews of some.
    Step {
        /// The rows.
        rows: Vec<RowKey>,
        /// Those to preview.
        previews: Vec<RowKey>,
    },
    /// Write down how far rows are.
    Save {
        /// The rows.
        rows: Vec<RowKey>,
    },
    /// Latents to pixels.
    Decode {
        /// The row.
        row: RowKey,
        /// Whether to write down the row before.
        save: bool,
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
    /// After `Save`, and after `Decode` where it was asked for: what goes on from here, by row.
    pub saved: Vec<(RowKey, Bytes)>,
    /// After `Admit`: what the requester should know.
    pub warnings: Vec<String>,
    /// How long the engine took.
    pub took: Duration,
}

/// The sending end of the thread.
#[derive(Debug)]
pub struct EngineThread {
    commands: mpsc::Sender<Command>,
    /// The identity of the model's files.
    pub digest: ModelDigest,
    /// Where it computes and in which number format.
    pub placement: String,
    /// Bytes that the device had left when the model was loaded, where the system tells.
    pub memory_left: Option<u64>,
}

/// The thread while it loads.
#[derive(Debug)]
pub struct Opening<E: std::error::Error + 'static> {
    /// What the model is called and can do.
    pub manifest: ModelManifest,
    /// Encodes prompts already, and later while the thread is at something else.
    pub prompts: Arc<dyn PromptEncoder>,
    loaded: oneshot::Receiver<Result<EngineThread, StartError<E>>>,
}

impl<E: std::error::Error + 'static> Opening<E> {
    /// Waits until the model is loaded, and warmed up if that pays.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn ready(self) -> Result<EngineThread, StartError<E>> {
        self.loaded.await.map_err(|_| StartError::Panicked)?
    }
}

/// Starts the thread, which loads the model on it that `open` opens, and returns when its prompts can be encoded.
///
/// # Errors
/// Whatever `open` says; `Panicked` when it does.
pub async fn start<E, O>(
    open: O,
    clock: Clock,
    answer: impl Fn(Answer) + Send + 'static,
) -> Result<Opening<E>, StartError<E>>
where
    E: std::error::Error + From<LoadError> + Send + 'static,
    O: FnOnce() -> Result<OpenedModel, E> + Send + 'static,
{
    let (commands, inbox) = mpsc::channel();
    let (opened, opening) = oneshot::channel();
    let (ready, loaded) = oneshot::channel();
    let body = move || {
        let model = match caught(|| open().map_err(StartError::Load)) {
            Ok(model) => model,
            Err(error) => return drop(opened.send(Err(error))),
        };
        // Every claim asks for it.
        model.digest().begin();
        let (manifest, prompts) = (model.manifest().clone(), model.prompt_encoder());
        if opened.send(Ok(Opening { manifest, prompts, loaded })).is_err() {
            return;
        }
        let mut engine = match caught(|| load(model)) {
            Ok(engine) => engine,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let loaded = EngineThread {
            commands,
            digest: engine.digest().clone(),
            placement: engine.placement(),
            memory_left: engine.memory().left(),
        };
        if ready.send(Ok(loaded)).is_err() {
            return;
        }
        serve(&mut engine, &inbox, clock, &answer);
    };
    let spawned = std::thread::Builder::new().name("engine".to_owned()).spawn(body);
    spawned.map_err(StartError::Thread)?;
    opening.await.map_err(|_| StartError::Panicked)?
}

/// What panics has failed.
fn caught<T, E: std::error::Error + 'static>(
    work: impl FnOnce() -> Result<T, StartError<E>>,
) -> Result<T, StartError<E>> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(StartError::Panicked))
}

fn load<E: std::error::Error + From<LoadError> + 'static>(model: OpenedModel) -> Result<Pipeline, StartError<E>> {
    let mut engine = model.load().map_err(|error| StartError::Load(error.into()))?;
    if engine.warm_up_steps() > 0 {
        warm_up(&mut engine).map_err(StartError::WarmUp)?;
    }
    Ok(engine)
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

/// A few steps and one decode at the default size, so that the first job does not pay for what is only done once.
fn warm_up(engine: &mut dyn Engine) -> Result<(), Fault> {
    let ModelManifest { defaults, tasks, .. } = engine.manifest().clone();
    let (width, height) = (defaults.width, defaults.height);
    let (start, files) = if tasks.contains(&Task::TextToImage) {
        (Start::Noise, PictureFiles::default())
    } else {
        let white = RgbImage { width, height, pixels: vec![u8::MAX; 3 * width as usize * height as usize] };
        let file = Bytes::from(engine::encode(&white, OutputFormat::Png)?);
        (Start::Inpaint { strength: 1.0 }, PictureFiles { init_image: Some(file.clone()), mask_image: Some(file) })
    };
    let spec = ImageSpec {
        num_inference_steps: engine.warm_up_steps(),
        start,
        ..ImageSpec::with_defaults("warm-up", &defaults)
    };
    let pictures = StartingPictures::prepare(&files, &spec)?;
    let row = RowId(u64::MAX);
    for _ in 0..engine.admit(row, &spec, &pictures)?.steps {
        engine.step(&[row])?;
    }
    engine.decode(row)?;
    engine.release(row);
    Ok(())
}

/// `fault`, unless the device is lost: every further job would fail at once.
fn of_device(engine: &dyn Engine, fault: Fault) -> Fault {
    if fault.code != FaultCode::EngineFailed {
        return fault;
    }
    match engine.wait() {
        Ok(()) => fault,
        Err(lost) => Fault { message: format!("{}; first: {}", lost.message, fault.message), ..lost },
    }
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
            saved: Vec::new(),
            warnings: Vec::new(),
            took: Duration::ZERO,
        };
        let done = catch_unwind(AssertUnwindSafe(|| match &command {
            Command::Admit { row, spec, pictures, saved } => {
                let resumed = match saved.as_ref().map(|saved| engine.resume(row_id(row), spec, pictures, saved)) {
                    Some(Ok(resumed)) => Some(resumed),
                    Some(Err(ResumeError::Engine(fault))) => return Err(fault),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "checkpoint.unfit");
                        None
                    }
                    None => None,
                };
                let Admitted { steps, step: made, warnings } = match resumed {
                    Some(resumed) => resumed,
                    None => engine.admit(row_id(row), spec, pictures)?,
                };
                Ok(Answer { warnings, ..answered(EngineReport::Admitted { steps, made }) })
            }
            Command::Step { rows, previews } => {
                let ids: Vec<RowId> = rows.iter().map(row_id).collect();
                engine.step(&ids)?;
                // A preview that fails is left out: it is worth less than the image.
                let made = previews.iter().filter_map(|row| engine.preview(row_id(row)).ok().map(|jpeg| (*row, jpeg)));
                Ok(Answer { previews: made.collect(), ..answered(EngineReport::Stepped) })
            }
            Command::Save { rows } => {
                let saved = rows.iter().map(|row| Ok((*row, Bytes::from(engine.save(row_id(row))?))));
                Ok(Answer { saved: saved.collect::<Result<_, Fault>>()?, ..answered(EngineReport::Saved) })
            }
            Command::Decode { row, save } => {
                // A picture is worth more than its checkpoint.
                let saved = save.then(|| engine.save(row_id(row)).ok()).flatten();
                let image = engine.decode(row_id(row))?;
                let saved = saved.into_iter().map(|bytes| (*row, Bytes::from(bytes))).collect();
                Ok(Answer { image: Some(image), saved, ..answered(EngineReport::Decoded) })
            }
            Command::Release { .. } => Ok(answered(EngineReport::Decoded)),
        }));
        let took = clock.now().since(began);
        let failed = |fault: Fault| Answer { outcome: Err(fault), took, ..answered(EngineReport::Stepped) };
        match done {
            Ok(Ok(done)) => answer(Answer { took, ..done }),
            Ok(Err(fault)) => answer(failed(of_device(engine, fault))),
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
