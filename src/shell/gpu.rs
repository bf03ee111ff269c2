//! Memory and utilisation of this machine's NVIDIA GPUs, by NVIDIA's management library, where it is installed.
//!
//! Only the GPUs that this process may see by `NVIDIA_VISIBLE_DEVICES` are there in a container; CUDA's own choice among them
//! is not asked for.

use std::sync::Arc;

use nvml_wrapper::Nvml;
use opentelemetry::metrics::Meter;

use super::metrics::{self, Gpu};

/// Lets metrics have them for as long as the process lives; none where there is no library or no GPU.
pub fn watch(meter: &Meter) {
    match Nvml::init() {
        Ok(nvml) => {
            let nvml = Arc::new(nvml);
            metrics::gpus(meter, move || look(&nvml));
        }
        Err(error) => tracing::debug!(%error, "gpu.unknown"),
    }
}

fn look(nvml: &Nvml) -> Vec<Gpu> {
    let of = |id: u32| {
        let gpu = nvml.device_by_index(id).ok()?;
        let memory = gpu.memory_info().ok();
        Some(Gpu {
            id,
            used_bytes: memory.as_ref().map(|memory| memory.used),
            total_bytes: memory.as_ref().map(|memory| memory.total),
            utilization_percent: gpu.utilization_rates().ok().map(|rates| u64::from(rates.gpu)),
        })
    };
    (0..nvml.device_count().unwrap_or_default()).filter_map(of).collect()
}
