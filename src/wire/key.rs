//! Where the images of a job are stored, and what they start from.
//!
//! The same job always gets the same keys, so a repeated upload changes nothing.

use crate::job::{JobId, LoraName, OutputFormat, Tenant};

/// `<tenant>/<job>/<index>.<extension>`.
pub fn image(tenant: &Tenant, job: &JobId, index: u32, format: OutputFormat) -> String {
    format!("{tenant}/{job}/{index}.{}", format.extension())
}

/// `<tenant>/<job>/checkpoints/<index>-<step>.safetensors`: how far an image was. The same state always has the same key, so
/// that a worker that lost the job writes nothing that another would not.
pub fn checkpoint(tenant: &Tenant, job: &JobId, index: u32, step: u32) -> String {
    format!("{}{index}-{step}.safetensors", checkpoints(tenant, job))
}

/// What all checkpoints of a job begin with.
pub fn checkpoints(tenant: &Tenant, job: &JobId) -> String {
    format!("{tenant}/{job}/checkpoints/")
}

/// `<tenant>/inputs/<name>`: where the command line and the gateway put starting pictures.
pub fn input(tenant: &Tenant, name: &str) -> String {
    format!("{tenant}/inputs/{name}")
}

/// `loras/<name>.safetensors`: where workers look for LoRAs that they do not have.
pub fn lora(name: &LoraName) -> String {
    format!("loras/{name}.safetensors")
}
