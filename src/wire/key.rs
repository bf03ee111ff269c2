//! Where the images of a job are stored, and what they start from.
//!
//! The same job always gets the same keys, so a repeated upload changes nothing.

use crate::job::{JobId, LoraName, OutputFormat, Tenant};

/// `<tenant>/<job>/<index>.<extension>`.
pub fn image(tenant: &Tenant, job: &JobId, index: u32, format: OutputFormat) -> String {
    format!("{tenant}/{job}/{index}.{}", format.extension())
}

/// `<tenant>/inputs/<name>`: where the command line puts starting pictures.
pub fn input(tenant: &Tenant, name: &str) -> String {
    format!("{tenant}/inputs/{name}")
}

/// `loras/<name>.safetensors`: where workers look for LoRAs that they do not have.
pub fn lora(name: &LoraName) -> String {
    format!("loras/{name}.safetensors")
}
