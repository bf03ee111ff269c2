//! Makes the server's half of KEDA's protocol.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "externalscaler.proto";
    println!("cargo:rerun-if-changed={file}");
    let files = protox::compile([file], ["."])?;
    tonic_prost_build::configure().build_client(false).compile_fds(files)?;
    Ok(())
}
