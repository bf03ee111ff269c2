//! `render`: the engine on one request, with no bus; the bytes are those that a worker stores.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use darkroom::engine::{self, DeviceChoice, LoadOptions, PictureFiles, Precision, Precisions, StartingPictures};
use darkroom::job::limits::PICTURE_BYTES_MAX;
use darkroom::job::{PictureSource, Priority};
use darkroom::shell::fetch::data_url;
use darkroom::wire::request::{Context, parse};
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct RenderOptions {
    /// The model: a diffusers directory
    #[arg(long, env = "DARKROOM_MODEL", value_name = "DIR")]
    model: PathBuf,
    /// The request, as it would be published
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Where the image goes; several images get -0, -1 … before the extension
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Also write the final latents, as tensor `latents` (1, c, h, w)
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Take the initial noise from a safetensors file instead of the seed: tensor `noise` or `latents` (1, c, h, w), unit variance
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// The folder with LoRAs, as NAME.safetensors
    #[arg(long, env = "DARKROOM_LORAS", value_name = "DIR")]
    loras: Option<PathBuf>,
    /// Number format of all parts: f32, f16 or bf16
    #[arg(long, env = "DARKROOM_DTYPE", value_name = "NAME")]
    dtype: Option<Precision>,
    /// Where to compute: auto, cpu or cuda
    #[arg(long, env = "DARKROOM_DEVICE", default_value = "auto")]
    device: DeviceChoice,
}

/// `image.png` for a single image, `image-2.png` for one of several.
pub(crate) fn numbered(path: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}-{index}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{index}"),
    };
    path.with_file_name(name)
}

pub(crate) fn render(options: &RenderOptions, output: &Output) -> Result<Exit, Failed> {
    let body = std::fs::read(&options.request)
        .with_context(|| format!("the request {} cannot be read", options.request.display()))?;
    let manifest = engine::read_manifest(&options.model)?;
    let tenant = "render".parse()?;
    let priority = priority_of(&body);
    let context = Context { manifest: &manifest, tenant: &tenant, priority, message_id: None, stream_sequence: 0 };
    let request = match parse(&body, &context) {
        Ok(request) => request,
        Err(refusal) => {
            let lines: Vec<String> = refusal.violations.iter().map(ToString::to_string).collect();
            let error = anyhow::anyhow!("the request is invalid:\n  {}", lines.join("\n  "));
            return Err(Failed::new(Exit::InvalidRequest, "invalid_request", error));
        }
    };
    let files = PictureFiles {
        init_image: picture("init_image", request.spec.init_image.as_ref())?,
        mask_image: picture("mask_image", request.spec.mask_image.as_ref())?,
    };
    let pictures = StartingPictures::prepare(&files, &request.spec.image)?;
    let load = LoadOptions {
        device: options.device,
        precisions: Precisions::all(options.dtype),
        loras: options.loras.clone(),
    };
    let mut model = engine::load(&options.model, &load)?;
    let count = request.spec.num_images as usize;
    for (index, path) in (0..request.spec.num_images).zip((0..count).map(|index| numbered(&options.out, index, count)))
    {
        let spec = request.spec.image(index);
        let mut bar = output.bar();
        let rendered = model.render(&spec, &pictures, options.noise.as_deref(), &mut |step, steps| {
            bar.step(*output, step.into(), steps.into(), std::time::Duration::ZERO);
        })?;
        bar.clear();
        for warning in &rendered.warnings {
            output.note(warning);
        }
        let bytes = engine::encode(&rendered.image, request.spec.output_format)?;
        std::fs::write(&path, bytes).with_context(|| format!("{} cannot be written", path.display()))?;
        if let Some(latents) = &options.latents {
            rendered.save_latents(&numbered(latents, index as usize, count))?;
        }
        output.line(
            path.display().to_string(),
            &json!({"path": path.display().to_string(), "seed": spec.seed, "steps": rendered.steps}),
        );
    }
    Ok(Exit::Success)
}

/// A picture of the request: a `data:` URL or, as there is no object store, the path of a file.
fn picture(field: &str, source: Option<&PictureSource>) -> anyhow::Result<Option<Bytes>> {
    match source {
        None => Ok(None),
        Some(PictureSource::Data(url)) => match data_url(url, PICTURE_BYTES_MAX) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => anyhow::bail!("{field} has more than {PICTURE_BYTES_MAX} bytes"),
            Err(reason) => anyhow::bail!("{field}: {reason}"),
        },
        Some(PictureSource::Key(path)) => {
            let bytes = std::fs::read(path).with_context(|| format!("{field}: {path} cannot be read"))?;
            Ok(Some(bytes.into()))
        }
        Some(PictureSource::Url(_)) => anyhow::bail!("{field}: render fetches nothing; name a file or a data: URL"),
    }
}

/// Without a subject the request's own priority is the right one.
fn priority_of(body: &[u8]) -> Priority {
    let fields: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    fields["priority"].as_str().and_then(|text| text.parse().ok()).unwrap_or(Priority::Normal)
}
