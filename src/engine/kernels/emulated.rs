//! The GPU's kernels, run on the CPU by `tests/emulated/`, compared with the CPU's own. The compiler's sanitizers watch their
//! indices, and the types of their arguments are checked, which on a GPU nobody would do.
//!
//! With `DARKROOM_SANITIZERS=thread` the compiler looks for threads that do not wait for each other instead. That is for whoever
//! changes a kernel: not every system lets such programs start.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use candle_core::{DType, Device, Tensor};

use super::launch::{self, Argument, Plan};
use super::twins::{CASES, Case, is_close};

/// Builds the program that runs kernels.
fn build(directory: &std::path::Path) -> PathBuf {
    let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/emulated");
    let program = directory.join("emulated");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let sanitizers = std::env::var("DARKROOM_SANITIZERS").unwrap_or_else(|_| "address,undefined".into());
    let status = Command::new(&compiler)
        .args(["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"])
        .args([&format!("-fsanitize={sanitizers}"), "-fno-sanitize-recover=all"])
        .arg("-I")
        .arg(&sources)
        .arg("-o")
        .args([&program, &sources.join("main.cpp")])
        .status();
    match status {
        Ok(status) => assert!(status.success(), "{compiler:?}: {status}"),
        Err(error) => panic!("{compiler:?}, a C++ compiler, which CXX may name: {error}"),
    }
    program
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.flatten_all().unwrap();
    if tensor.dtype() == DType::F32 {
        tensor.to_vec1::<f32>().unwrap().into_iter().flat_map(f32::to_le_bytes).collect()
    } else if tensor.dtype() == DType::F16 {
        tensor.to_vec1::<half::f16>().unwrap().into_iter().flat_map(half::f16::to_le_bytes).collect()
    } else {
        tensor.to_vec1::<half::bf16>().unwrap().into_iter().flat_map(half::bf16::to_le_bytes).collect()
    }
}

fn values(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let tensor = Tensor::from_raw_buffer(bytes, dtype, &[bytes.len() / dtype.size_in_bytes()], &Device::Cpu);
    tensor.unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// What the program reads: buffers, then calls.
fn input(plan: &Plan, dtype: DType, tensors: &[Tensor], buffers: &[Vec<u8>]) -> Vec<u8> {
    let mut input = Vec::new();
    let count = |input: &mut Vec<u8>, count: usize| input.extend(u32::try_from(count).unwrap().to_le_bytes());
    count(&mut input, buffers.len());
    for buffer in buffers {
        input.extend((buffer.len() as u64).to_le_bytes());
        input.extend(buffer);
    }
    count(&mut input, plan.calls.len());
    for call in &plan.calls {
        let name = format!("{}_{}", call.kernel, dtype.as_str());
        count(&mut input, name.len());
        input.extend(name.bytes());
        input.extend(call.grid.iter().chain(&call.block).flat_map(|side| side.to_le_bytes()));
        count(&mut input, call.arguments.len());
        let buffer = |number: usize, first: usize| {
            let [number, first] = [number, first].map(|value| u32::try_from(value).unwrap().to_le_bytes());
            [number, first].concat()
        };
        for argument in &call.arguments {
            let (kind, mut payload) = match *argument {
                Argument::Tensor { number, first } => {
                    (b'b', buffer(number, first * tensors[number].dtype().size_in_bytes()))
                }
                Argument::Wide { number } => (b'b', buffer(number, 0)),
                Argument::Output => (b'b', buffer(tensors.len(), 0)),
                Argument::Scratch => (b'b', buffer(tensors.len() + 1, 0)),
                Argument::Absent => (b'n', Vec::new()),
                Argument::Int(value) => (b'i', value.to_le_bytes().to_vec()),
                Argument::Long(value) => (b'l', value.to_le_bytes().to_vec()),
                Argument::Float(value) => (b'f', value.to_le_bytes().to_vec()),
            };
            payload.resize(8, 0);
            input.push(kind);
            input.extend(payload);
        }
    }
    input
}

fn check(program: &PathBuf, case: &Case, dtype: DType, digits: i32) {
    let tensors: Vec<Tensor> = (0..case.shapes.len()).map(|number| case.tensor(number, dtype).unwrap()).collect();
    let wide: Vec<Tensor> = tensors.iter().map(|tensor| tensor.to_dtype(DType::F32).unwrap()).collect();
    let expected = (case.run)(&wide).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();

    let plan = (case.plan)().unwrap();
    let mut buffers: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
    // No number: what a kernel leaves out, or reads before it was written, shows.
    buffers.push(vec![0xff; plan.output_values * dtype.size_in_bytes()]);
    buffers.push(vec![0xff; plan.scratch_values * size_of::<f32>()]);
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&input(&plan, dtype, &tensors, &buffers)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{} in {dtype:?}: {}", case.name, output.status);

    assert_eq!(output.stdout.len(), buffers.iter().map(Vec::len).sum::<usize>(), "{}", case.name);
    let mut rest = &output.stdout[..];
    let mut after = Vec::new();
    for buffer in &buffers {
        let (bytes, behind) = rest.split_at(buffer.len());
        after.push(bytes);
        rest = behind;
    }
    let changed = if plan.output_values == 0 { 0 } else { tensors.len() };
    for (number, (before, after)) in buffers[..tensors.len()].iter().zip(&after).enumerate() {
        assert!(number == changed || before == after, "{} changes tensor {number}", case.name);
    }
    let found = values(after[changed], dtype);
    assert_eq!(found.len(), expected.len(), "{}", case.name);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(
            is_close(*found, *expected, digits),
            "{} in {dtype:?}: value {index} is {found}, not {expected}",
            case.name
        );
    }
}

#[test]
fn kernels_of_the_gpu_compute_what_those_of_the_cpu_do() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path());
    for case in CASES {
        for (dtype, digits) in case.formats() {
            check(&program, case, *dtype, *digits);
        }
    }
}

#[test]
fn there_is_a_plan_for_every_head_that_is_said_to_have_one() {
    for width in 1..200 {
        let plan = launch::attention([2, width, 8], 8, 1.0);
        assert_eq!(launch::attends(2, width), plan.is_ok(), "{width} channels");
    }
    assert!(!launch::attends(70_000, 64) && launch::attention([70_000, 64, 8], 8, 1.0).is_err());
    assert!(launch::accumulate(6, 10, 4).is_err(), "4 values for 6 channels");
}
