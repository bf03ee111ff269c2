//! Gives a GPU all kernels of a pass at once: a pass that was seen before is recorded as a CUDA graph and launched again with
//! other inputs. One by one, a small model's hundreds of kernels take longer to be asked for than to run.
//!
//! What a graph computes is compared with what the same pass computed without it, and where it differs, or cannot be recorded,
//! the pass goes on without. Nothing here knows what a pass computes.
//!
//! See NVIDIA's "CUDA Driver API", graph management and stream capture.

use std::thread::{self, ThreadId};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::{CudaDevice, DType, Result, Tensor, TensorId, bail};

use super::denoiser::Inputs;
use super::memory;

/// How often a pass of one shape is run before it is recorded, which takes as long as two more: batches whose rows come and go
/// have some shapes for a few steps only.
const RUNS_BEFORE: u32 = 2;
/// Shapes that are remembered: those of the batches of one worker, twice.
const SHAPES_MAX: usize = 16;
/// Latent pixels of all rows, above which a pass keeps a GPU busy longer than asking for it takes. What graphs hold in memory
/// grows with it.
const PIXELS_MAX: usize = 1 << 15;

/// The passes of one model.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    /// The most recently used last.
    known: Vec<(Shape, State)>,
}

/// What two passes have in common that launch the same kernels, on the same weights.
#[derive(Clone, Debug, PartialEq)]
struct Shape {
    tensors: [Option<Vec<usize>>; 5],
    /// It stays where it is, and so is not copied.
    places: Option<TensorId>,
}

impl Shape {
    fn of(Inputs { x, time, context, vector, kept, places }: &Inputs) -> Self {
        let tensors = [Some(x), Some(time), Some(context), vector.as_ref(), kept.as_ref()];
        Self {
            tensors: tensors.map(|tensor| tensor.map(|tensor| tensor.dims().to_vec())),
            places: places.as_ref().map(Tensor::id),
        }
    }
}

#[derive(Debug)]
enum State {
    /// So many passes have been run.
    Seen(u32),
    Recorded(Box<Recorded>),
    /// It cannot be recorded.
    Refused,
}

/// A pass that can be launched again.
struct Recorded {
    graph: CudaGraph,
    /// What the graph reads and writes, at addresses that stay.
    inputs: Inputs,
    outputs: (Tensor, Tensor),
    /// As long as it lives, candle keeps what the pass uploaded.
    thread: ThreadId,
}

#[expect(unsafe_code, reason = "the handles of a graph are pointers")]
// SAFETY: the driver takes graphs from any thread, one at a time, and `&mut` is needed for all that is done with one.
unsafe impl Send for Recorded {}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Recorded").field("inputs", &Shape::of(&self.inputs)).finish_non_exhaustive()
    }
}

impl Graphs {
    /// What `pass` makes of `inputs`. It must do the same for all inputs of one shape, and compute in tensors alone.
    pub(super) fn run(
        &mut self,
        inputs: &Inputs,
        pass: impl Fn(&Inputs) -> Result<(Tensor, Tensor)>,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, _, height, width) = inputs.x.dims4()?;
        if rows * height * width > PIXELS_MAX {
            return pass(inputs);
        }
        let shape = Shape::of(inputs);
        let known = self.known.iter().position(|(known, _)| *known == shape);
        let state = match known.map(|index| self.known.remove(index).1) {
            None => State::Seen(0),
            Some(State::Recorded(recorded)) if recorded.thread != thread::current().id() => State::Seen(RUNS_BEFORE),
            Some(state) => state,
        };
        let (state, result) = match state {
            State::Seen(runs) if runs < RUNS_BEFORE => (State::Seen(runs + 1), pass(inputs)),
            State::Seen(_) => match Recorded::new(inputs, &pass) {
                Ok(recorded) => {
                    let result = recorded.outputs();
                    (State::Recorded(Box::new(recorded)), result)
                }
                Err(error) => {
                    tracing::warn!(%error, ?shape, "steps of this shape are not recorded: they are as right, only slower");
                    (State::Refused, pass(inputs))
                }
            },
            State::Recorded(mut recorded) => {
                let result = recorded.launch(inputs);
                (State::Recorded(recorded), result)
            }
            State::Refused => (State::Refused, pass(inputs)),
        };
        self.known.push((shape, state));
        if self.known.len() > SHAPES_MAX {
            self.known.remove(0);
        }
        result
    }
}

impl Recorded {
    /// Records `pass`, and launches it with `inputs`.
    fn new(inputs: &Inputs, pass: &impl Fn(&Inputs) -> Result<(Tensor, Tensor)>) -> Result<Self> {
        let device = inputs.x.device().as_cuda_device()?;
        // Sizes that kernels are told in memory, and the little else that is uploaded, stay there after the first pass, for good, and
        // are found by the second. What it would find none of fails.
        let _cache = device.enable_cuda_graph_htod_cache();
        let inputs = inputs.map(Tensor::force_contiguous)?;
        let expected = pass(&inputs)?;
        let outputs = (like(&expected.0)?, like(&expected.1)?);
        let set = |output: &Tensor, deep: &Tensor| {
            outputs.0.slice_set(&output.contiguous()?, 0, 0)?;
            outputs.1.slice_set(&deep.contiguous()?, 0, 0)
        };
        // Nothing is loaded while a graph is recorded; and zeros show what it does not write.
        set(&like(&expected.0)?, &like(&expected.1)?)?;
        // What was allocated since the beginning is freed before the end.
        let graph = capture(device, || pass(&inputs).and_then(|(output, deep)| set(&output, &deep)))?;
        // Other tensors than the graph's need little of what the passes before have left.
        memory::cuda::give_back_tensors(device);
        graph.launch().w()?;
        for (found, expected) in [(&outputs.0, &expected.0), (&outputs.1, &expected.1)] {
            if bits(found)? != bits(expected)? {
                bail!("launched as a graph, the same pass computes something else");
            }
        }
        Ok(Self { graph, inputs, outputs, thread: thread::current().id() })
    }

    fn launch(&mut self, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        let set = |ours: &Tensor, theirs: &Tensor| ours.slice_set(&theirs.contiguous()?, 0, 0);
        set(&self.inputs.x, &inputs.x)?;
        set(&self.inputs.time, &inputs.time)?;
        set(&self.inputs.context, &inputs.context)?;
        for (ours, theirs) in [(&self.inputs.vector, &inputs.vector), (&self.inputs.kept, &inputs.kept)] {
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                set(ours, theirs)?;
            }
        }
        self.graph.launch().w()?;
        self.outputs()
    }

    /// Copies, for the next launch writes over them.
    fn outputs(&self) -> Result<(Tensor, Tensor)> {
        Ok((self.outputs.0.copy()?, self.outputs.1.copy()?))
    }
}

fn like(tensor: &Tensor) -> Result<Tensor> {
    Tensor::zeros(tensor.shape(), tensor.dtype(), tensor.device())
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// What `work` asks of the device, instead of doing it.
fn capture(device: &CudaDevice, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    // Other threads go on with queues of their own.
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let worked = work();
    // What tensors could not be freed after a failure would be the failure of the next call, which has to end the capture; and of
    // the one after that.
    let kept = stream.context().check_err();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    let kept_after = stream.context().check_err();
    worked?;
    kept.and(kept_after).w()?;
    match graph.w()? {
        Some(graph) => Ok(graph),
        None => bail!("nothing was captured"),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use candle_core::Device;

    use super::super::DeviceChoice;
    use super::*;

    /// A GPU, or what `local/emulated-gpu` makes of a CPU.
    fn device() -> Device {
        DeviceChoice::Cuda { ordinal: 0 }.open().unwrap()
    }

    fn inputs(device: &Device, side: usize, value: f32) -> Inputs {
        let filled = |shape: &[usize], value: f32| {
            (Tensor::ones(shape, DType::F32, device).unwrap() * f64::from(value)).unwrap()
        };
        Inputs {
            x: filled(&[2, 3, side, side], value),
            time: filled(&[2, 1], 10.0 * value),
            context: filled(&[2, 4, 5], 100.0 * value),
            vector: None,
            kept: (value > 2.0).then(|| filled(&[2, 1], 1000.0 * value)),
            places: None,
        }
    }

    fn pass(inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        let told = (inputs.time.sum_keepdim(1)? + inputs.context.flatten_from(1)?.max_keepdim(1)?)?;
        let told = match &inputs.kept {
            Some(kept) => (told + kept)?,
            None => told,
        };
        let x = inputs.x.broadcast_add(&told.reshape((2, 1, 1, 1))?)?;
        Ok((x, told))
    }

    fn values((output, deep): &(Tensor, Tensor)) -> Vec<f32> {
        [output, deep].iter().flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
    }

    #[test]
    fn a_pass_is_launched_again_with_the_inputs_of_its_time() {
        let device = device();
        let (mut graphs, passes) = (Graphs::default(), Cell::new(0));
        let mut counted = |inputs: &Inputs| {
            passes.set(0);
            let result = graphs.run(inputs, |inputs| {
                passes.set(passes.get() + 1);
                pass(inputs)
            });
            (values(&result.unwrap()), passes.get())
        };
        // As it is, twice; with what it is compared with and as a graph; the graph alone.
        for (run, expected_passes) in [1, 1, 2, 0, 0, 0].into_iter().enumerate() {
            for (side, values_from) in [(4, 1.0), (5, 1.0), (4, 3.0)] {
                let inputs = inputs(&device, side, values_from + run as f32 / 8.0);
                let (found, passes) = counted(&inputs);
                assert_eq!(found, values(&pass(&inputs).unwrap()), "run {run} of {side}");
                assert_eq!(passes, expected_passes, "run {run} of {side}");
            }
        }
    }

    #[test]
    fn a_result_outlives_the_next_launch() {
        let device = device();
        let mut graphs = Graphs::default();
        let results: Vec<_> =
            (0..6).map(|run| graphs.run(&inputs(&device, 4, run as f32 / 4.0), pass).unwrap()).collect();
        for (run, result) in results.iter().enumerate() {
            assert_eq!(values(result), values(&pass(&inputs(&device, 4, run as f32 / 4.0)).unwrap()), "run {run}");
        }
    }

    #[test]
    fn what_cannot_be_recorded_goes_on_without() {
        type Pass = fn(&Inputs, f32) -> Result<(Tensor, Tensor)>;
        let uploads: Pass = |inputs, number| {
            let number = Tensor::from_vec(vec![number; 4], (4, 1), inputs.x.device())?.narrow(0, 0, 2)?;
            Ok((
                (pass(inputs)?.0 + number.to_dtype(DType::F32)?.reshape((2, 1, 1, 1))?.broadcast_as((2, 3, 4, 4))?)?,
                number,
            ))
        };
        let large: Pass = |inputs, number| {
            let numbers = Tensor::from_vec(vec![number; 2 * 3 * 16 * 64], (2, 3, 16, 64), inputs.x.device())?;
            Ok((inputs.x.broadcast_add(&numbers.max_keepdim(3)?.narrow(2, 0, 1)?)?, numbers))
        };
        let reads: Pass = |inputs, number| {
            let value = f64::from(inputs.time.flatten_all()?.to_vec1::<f32>()?[0]);
            Ok(((&inputs.x + (value + f64::from(number)))?, inputs.time.clone()))
        };
        let device = device();
        let waits: Pass = |inputs, number| {
            // It cannot be freed after that.
            let x = (&inputs.x + f64::from(number))?;
            x.device().synchronize()?;
            Ok((x, inputs.time.clone()))
        };
        for (name, pass) in [("a small upload", uploads), ("a large one", large), ("a read", reads), ("a wait", waits)]
        {
            let (mut graphs, number) = (Graphs::default(), Cell::new(0.0));
            for run in 0..5 {
                let inputs = inputs(&device, 4, run as f32 / 4.0);
                // Another number for each time that it runs, also within one call.
                let found = graphs.run(&inputs, |inputs| {
                    number.set(number.get() + 1.0);
                    pass(inputs, number.get())
                });
                assert_eq!(values(&found.unwrap()), values(&pass(&inputs, number.get()).unwrap()), "{name}, run {run}");
            }
            assert!(matches!(graphs.known[..], [(_, State::Refused)]), "{name}: {graphs:?}");
        }
    }

    #[test]
    fn passes_that_keep_a_gpu_busy_are_not_recorded() {
        let device = device();
        let mut graphs = Graphs::default();
        let inputs = inputs(&device, 129, 1.0);
        for _ in 0..5 {
            assert_eq!(values(&graphs.run(&inputs, pass).unwrap()), values(&pass(&inputs).unwrap()));
        }
        assert!(graphs.known.is_empty(), "{graphs:?}");
    }
}
