//! What `darkroom profile` measured of a model on one kind of device, as the file in which it is kept.

use serde::{Deserialize, Serialize};

/// Milliseconds of every stage of an image, and bytes where the system tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostTable {
    /// The model's name.
    pub model: String,
    /// Where it was measured, and in which number format.
    pub placement: String,
    /// Steps by size and number of images.
    pub steps: Vec<StepCost>,
    /// Decodes by size.
    pub decode: Vec<DecodeCost>,
}

/// What a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepCost {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Images that step together.
    pub images: u32,
    /// Milliseconds.
    pub ms: f64,
    /// Memory of the device at the most, on top of the loaded model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What decoding an image takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeCost {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Milliseconds.
    pub ms: f64,
    /// Memory of the device at the most, on top of the loaded model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// The table in a file.
///
/// # Errors
/// serde's, when it is none.
pub fn decode(bytes: &[u8]) -> Result<CostTable, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// A table as it is kept.
///
/// # Errors
/// serde's; no table has what JSON lacks.
pub fn encode(table: &CostTable) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec_pretty(table)
}
