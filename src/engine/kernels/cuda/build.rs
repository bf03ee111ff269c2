//! Compiles the CUDA kernels for builds with the feature `cuda`; others need nothing.

#[cfg(feature = "cuda")]
fn main() -> cudaforge::Result<()> {
    cudaforge::KernelBuilder::new()
        .source_files(["src/engine/kernels/cuda/kernels.cu"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=src/engine/kernels/cuda/build.rs");
}
