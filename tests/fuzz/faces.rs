//! What clients of other services send to the gateway.

use darkroom::wire::{a1111, kserve, openai, replicate};
use serde_json::{Map, Value};

/// The first byte chooses the interface, of KServe's the second one how much of the rest is JSON, in sixteenths of it.
pub(crate) fn face(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else { return };
    if which % 4 == 3 {
        let Some((share, body)) = body.split_first() else { return };
        let length = (*share < 16).then(|| body.len() * usize::from(*share) / 15);
        match kserve::parse(body, length) {
            Ok(inference) => {
                assert!(!inference.outputs.is_empty());
                assert_known(&inference.fields);
            }
            Err(violations) => assert!(!violations.is_empty()),
        }
        return;
    }
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return };
    let fields = match which % 4 {
        0 => openai::wanted(body).map(|wanted| wanted.fields),
        1 => replicate::fields(body, Some("shapes")),
        _ => a1111::wanted(body).map(|wanted| wanted.fields),
    };
    match fields {
        Ok(fields) if which % 4 != 1 => assert_known(&fields),
        // Replicate's inputs are ours by name: the check of requests refuses the others.
        Ok(fields) => assert_eq!(fields["model"], "shapes"),
        Err(violations) => assert!(!violations.is_empty()),
    }
}

/// No field gets through that requests do not have.
fn assert_known(fields: &Map<String, Value>) {
    const KNOWN: [&str; 22] = [
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "guidance_rescale",
        "seed",
        "num_images",
        "scheduler",
        "output_format",
        "priority",
        "pool",
        "model",
        "deadline",
        "on_late",
        "init_image",
        "mask_image",
        "strength",
        "rng",
        "long_prompt",
        "prompt_weighting",
    ];
    for name in fields.keys() {
        assert!(KNOWN.contains(&name.as_str()) || name == "loras", "{name}");
    }
}
