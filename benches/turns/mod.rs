//! What benchmarks that take turns have in common: a stopwatch, the middle of its times, and something to compute with.

use std::time::{Duration, Instant};

use candle_core::{Device, Result, Shape, Tensor};

/// How long `run` takes, and what it gives; what that takes to be dropped is not counted.
pub(crate) fn timed<T, E>(run: impl FnOnce() -> std::result::Result<T, E>) -> std::result::Result<(T, Duration), E> {
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let result = run()?;
    Ok((result, start.elapsed()))
}

/// The median.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

pub(crate) fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
pub(crate) fn print(line: &str) {
    println!("{line}");
}

/// Values between -1.5 and 1.5 that look like nothing in particular.
pub(crate) fn wave(shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count()).map(|index| (index as f32 * 0.7).sin() * 1.5).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}
