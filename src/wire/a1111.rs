//! The interface of AUTOMATIC1111's web UI, `/sdapi/v1`, translated to and from submissions and jobs.
//!
//! What says nothing (null, false, empty, 0, -1) is what its clients send of fields they do not use, and means nothing here
//! either. What would change the picture, and cannot be done, is a broken rule.
//!
//! Source: the web UI's `modules/api/models.py` and `modules/sd_samplers_kdiffusion.py`.

use serde_json::{Map, Value, json};

use super::event::StoredImage;
use super::http::JobDocument;
use super::request::RequestDocument;
use crate::job::{ModelManifest, SamplerKind, Violation};

/// Samplers: their name, ours, and the spacing that theirs takes for `Automatic`.
const SAMPLERS: [(&str, &str, &str); 10] = [
    ("Euler", "euler", ""),
    ("Euler a", "euler_ancestral", ""),
    ("Heun", "heun", ""),
    ("DPM++ 2M", "dpmpp_2m", "karras"),
    ("DPM++ 2M SDE", "dpmpp_2m_sde", "exponential"),
    ("DPM++ SDE", "dpmpp_sde", "karras"),
    ("DDIM", "ddim", ""),
    ("PLMS", "pndm", ""),
    ("UniPC", "unipc", ""),
    ("LCM", "lcm", ""),
];
/// Spacings of noise levels: their name and label, and our ending.
const SCHEDULERS: [(&str, &str, &str); 4] = [
    ("uniform", "Uniform", ""),
    ("karras", "Karras", "karras"),
    ("exponential", "Exponential", "exponential"),
    ("beta", "Beta", "beta"),
];
/// Fields with the same meaning, under another name.
const RENAMED: [(&str, &str); 6] = [
    ("prompt", "prompt"),
    ("negative_prompt", "negative_prompt"),
    ("width", "width"),
    ("height", "height"),
    ("steps", "num_inference_steps"),
    ("cfg_scale", "guidance_scale"),
];
/// Fields that change no picture here, whatever they say: where it is kept, how the web UI shows it, and how much is
/// made anew around a mask.
const WITHOUT_MEANING: [&str; 22] = [
    "comments",
    "disable_extra_networks",
    "do_not_save_grid",
    "do_not_save_samples",
    "eta",
    "hr_scale",
    "hr_upscaler",
    "include_init_images",
    "infotext",
    "initial_noise_multiplier",
    "inpaint_full_res",
    "inpaint_full_res_padding",
    "inpainting_fill",
    "mask_blur",
    "override_settings_restore_afterwards",
    "resize_mode",
    "s_churn",
    "s_min_uncond",
    "s_noise",
    "s_tmax",
    "s_tmin",
    "save_images",
];
/// Where `img2img` begins when it does not say.
const DENOISING_STRENGTH: f64 = 0.75;

/// What a client of the web UI wants, besides the job.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The fields of a submission, without pictures.
    pub fields: Map<String, Value>,
    /// The picture to begin with, in Base64 or as a data URL.
    pub init_image: Option<String>,
    /// What is white in it is made anew; in the same forms.
    pub mask: Option<String>,
    /// What the client will ask for progress under.
    pub task: Option<String>,
    /// Whether the answer has the images.
    pub send_images: bool,
}

/// Reads the body of `txt2img` or `img2img`.
///
/// # Errors
/// Every broken rule that the check of requests would not find.
pub fn wanted(mut body: Map<String, Value>) -> Result<Wanted, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut fields = Map::new();
    body.retain(|name, value| !says_nothing(value) && !WITHOUT_MEANING.contains(&name.as_str()));
    for (theirs, ours) in RENAMED {
        if let Some(value) = body.remove(theirs) {
            fields.insert(ours.to_owned(), value);
        }
    }
    if let Some(seed) = body.remove("seed") {
        fields.insert("seed".to_owned(), seed);
    }
    let mut count = |name: &str| match body.remove(name) {
        None => 1,
        Some(value) => value.as_u64().unwrap_or_else(|| {
            violations.push(Violation::new(name, value, "a whole number from 1"));
            1
        }),
    };
    let images = count("batch_size").saturating_mul(count("n_iter"));
    if images != 1 {
        fields.insert("num_images".to_owned(), images.into());
    }
    let (by_name, by_index) = (body.remove("sampler_name"), body.remove("sampler_index"));
    let spacing = body.remove("scheduler");
    if let Some(name) = by_name.or(by_index) {
        match sampler(name.as_str().unwrap_or_default(), spacing.as_ref().and_then(Value::as_str)) {
            Ok(sampler) => drop(fields.insert("scheduler".to_owned(), sampler.as_str().into())),
            Err(violation) => violations.push(violation),
        }
    } else if let Some(spacing) = spacing.filter(|spacing| spacing != "Automatic") {
        violations.push(Violation::new("scheduler", spacing, "Automatic, or together with sampler_name"));
    }
    let init_image = match body.remove("init_images") {
        None => None,
        Some(Value::Array(mut images)) if images.len() == 1 && images[0].is_string() => {
            images.remove(0).as_str().map(str::to_owned)
        }
        Some(_) => {
            violations.push(Violation::new("init_images", "(a list)", "one picture, in Base64"));
            None
        }
    };
    let strength = body.remove("denoising_strength");
    if init_image.is_some() {
        fields.insert("strength".to_owned(), strength.unwrap_or_else(|| DENOISING_STRENGTH.into()));
    }
    let mut text = |name: &str| match body.remove(name) {
        None => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => {
            violations.push(Violation::new(name, other, "a text"));
            None
        }
    };
    let (mask, task) = (text("mask"), text("force_task_id"));
    let send_images = body.remove("send_images").is_none_or(|value| value != "false");
    if let Some(Value::Object(settings)) = body.remove("override_settings") {
        for (name, value) in settings.into_iter().filter(|(_, value)| !says_nothing(value)) {
            match name.as_str() {
                "sd_model_checkpoint" => drop(fields.insert("model".to_owned(), model_name(&value).into())),
                _ => violations.push(Violation::new(
                    format!("override_settings.{name}"),
                    value,
                    "only sd_model_checkpoint",
                )),
            }
        }
    }
    for (name, value) in body {
        violations.push(Violation::new(name, value, "nothing: it cannot be done here"));
    }
    if violations.is_empty() { Ok(Wanted { fields, init_image, mask, task, send_images }) } else { Err(violations) }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64().is_some_and(|number| number == 0.0 || number == -1.0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

/// The web UI shows models as `name.safetensors [digest]`; here names have no such ends.
fn model_name(title: &Value) -> &str {
    let title = title.as_str().unwrap_or_default();
    let name = title.split(" [").next().unwrap_or(title);
    name.strip_suffix(".safetensors").unwrap_or(name)
}

/// Our sampler for a name of theirs, which may have the spacing at its end as it had before they were two.
fn sampler(name: &str, spacing: Option<&str>) -> Result<SamplerKind, Violation> {
    if let Ok(own) = name.parse() {
        return Ok(own);
    }
    let known = |name: &str| SAMPLERS.iter().find(|(theirs, ..)| theirs.eq_ignore_ascii_case(name));
    let ending = |name: &str| {
        let same = |(theirs, label, _): &&(&str, &str, &str)| {
            theirs.eq_ignore_ascii_case(name) || label.eq_ignore_ascii_case(name)
        };
        SCHEDULERS.iter().find(same).map(|(_, _, ours)| *ours)
    };
    let in_name = || {
        let (solver, spacing) = name.rsplit_once(' ')?;
        Some((known(solver)?, Some(ending(spacing)?)))
    };
    let unknown = || {
        let names: Vec<&str> = SAMPLERS.iter().map(|(theirs, ..)| *theirs).collect();
        Violation::new("sampler_name", name, names.join(", "))
    };
    let ((_, solver, automatic), of_name) =
        known(name).map(|found| (found, None)).or_else(in_name).ok_or_else(unknown)?;
    let spacing = match (of_name, spacing) {
        (Some(ending), _) => ending,
        (None, None) => automatic,
        (None, Some(word)) if word.eq_ignore_ascii_case("automatic") => automatic,
        (None, Some(word)) => ending(word).ok_or_else(|| {
            let names: Vec<&str> = SCHEDULERS.iter().map(|(theirs, ..)| *theirs).collect();
            Violation::new("scheduler", word, format!("Automatic, {}", names.join(", ")))
        })?,
    };
    let whole = if spacing.is_empty() { (*solver).to_owned() } else { format!("{solver}_{spacing}") };
    whole.parse().map_err(|_| Violation::new("scheduler", spacing, format!("Automatic, with {name}")))
}

/// Their name of our sampler, where they have one.
fn sampler_name(ours: &str) -> &str {
    let solver = |(_, own, _): &&(&'static str, &str, &str)| {
        ours == *own
            || ours
                .strip_prefix(*own)
                .is_some_and(|rest| SCHEDULERS.iter().any(|(_, _, ending)| rest == format!("_{ending}")))
    };
    SAMPLERS.iter().find(solver).map_or(ours, |(theirs, ..)| theirs)
}

/// The answer to `txt2img` and `img2img`: `pictures` in Base64, `asked` as the client asked it.
pub fn images(
    pictures: &[String],
    stored: &[StoredImage],
    asked: &Map<String, Value>,
    request: &RequestDocument,
    model: &ModelManifest,
) -> Value {
    let defaults = &model.defaults;
    let steps = request.num_inference_steps.unwrap_or(defaults.num_inference_steps);
    let guidance = request.guidance_scale.unwrap_or(defaults.guidance_scale);
    let (width, height) = (request.width.unwrap_or(defaults.width), request.height.unwrap_or(defaults.height));
    let scheduler = request.scheduler.clone().unwrap_or_else(|| defaults.scheduler.to_string());
    let sampler = sampler_name(&scheduler);
    let negative = request.negative_prompt.as_deref().unwrap_or_default();
    let seeds: Vec<u64> = stored.iter().map(|image| image.seed).collect();
    let infotext = |seed: &u64| {
        let negative = if negative.is_empty() { String::new() } else { format!("Negative prompt: {negative}\n") };
        format!(
            "{}\n{negative}Steps: {steps}, Sampler: {sampler}, CFG scale: {guidance}, Seed: {seed}, Size: {width}x{height}, Model: {}",
            request.prompt, model.name
        )
    };
    let info = json!({
        "prompt": request.prompt, "all_prompts": vec![&request.prompt; stored.len()], "negative_prompt": negative,
        "seed": seeds.first(), "all_seeds": seeds, "width": width, "height": height, "sampler_name": sampler,
        "cfg_scale": guidance, "steps": steps, "batch_size": stored.len(), "sd_model_name": model.name.as_str(),
        "infotexts": seeds.iter().map(infotext).collect::<Vec<_>>(), "clip_skip": 1,
    });
    json!({ "images": pictures, "parameters": asked, "info": info.to_string() })
}

/// The answer to `progress`: of a job, or of none.
pub fn progress(job: Option<&JobDocument>, with_picture: bool) -> Value {
    let progress = job.and_then(|job| job.progress.as_ref());
    let (step, steps) = progress.map_or((0, 0), |progress| (progress.step, progress.steps));
    let share = match job {
        Some(job) if job.has_ended() => 1.0,
        _ => f64::from(step) / f64::from(steps.max(1)),
    };
    let picture = progress.and_then(|progress| progress.preview.as_ref()).filter(|_| with_picture);
    json!({
        "progress": share, "eta_relative": job.and_then(|job| job.estimated_time).unwrap_or(0.0),
        "state": {
            "skipped": false, "interrupted": job.is_some_and(|job| job.status == "cancelled"),
            "job": job.map_or("", |job| &job.id), "job_count": i32::from(job.is_some_and(|job| !job.has_ended())),
            "job_timestamp": job.map_or("", |job| &job.created), "job_no": 0, "sampling_step": step,
            "sampling_steps": steps,
        },
        "current_image": picture, "textinfo": job.map(|job| &job.status),
    })
}

/// The answer to `samplers`, of a model that has these.
pub fn samplers(of_model: &[SamplerKind]) -> Value {
    let has = |(_, ours, _): &&(&str, &str, &str)| of_model.iter().any(|kind| kind.as_str() == *ours);
    let one = |(theirs, ours, _): &(&str, &str, &str)| json!({ "name": theirs, "aliases": [ours], "options": {} });
    SAMPLERS.iter().filter(has).map(one).collect()
}

/// The answer to `schedulers`.
pub fn schedulers() -> Value {
    let automatic = ("automatic", "Automatic", "");
    let one = |(name, label, _): &(&str, &str, &str)| json!({ "name": name, "label": label, "aliases": null });
    std::iter::once(&automatic).chain(&SCHEDULERS).map(one).collect()
}

/// The answer to `sd-models`.
pub fn models(names: &[String]) -> Value {
    let one = |name: &String| json!({ "title": name, "model_name": name, "hash": null, "sha256": null, "filename": name, "config": null });
    names.iter().map(one).collect()
}

/// The answer to `GET options`: `model` is the one that is taken when none is named.
pub fn options(model: Option<&str>) -> Value {
    json!({ "sd_model_checkpoint": model, "samples_format": "png", "CLIP_stop_at_last_layers": 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn a_request_of_the_web_ui_is_a_submission() {
        let body = json!({
            "prompt": "a ring", "negative_prompt": "", "seed": -1, "subseed": -1, "steps": 20, "cfg_scale": 7.5, "width": 512,
            "batch_size": 2, "n_iter": 2, "sampler_name": "DPM++ 2M", "scheduler": "Automatic", "enable_hr": false,
            "alwayson_scripts": {}, "styles": [], "s_noise": 1.0, "override_settings": {"sd_model_checkpoint": "shapes.safetensors [0f3a]"},
            "force_task_id": "task(x)", "denoising_strength": 0.4, "send_images": true, "restore_faces": null,
        });
        let wanted = wanted(object(body)).unwrap();
        let fields = json!({
            "prompt": "a ring", "num_inference_steps": 20, "guidance_scale": 7.5, "width": 512, "num_images": 4,
            "scheduler": "dpmpp_2m_karras", "model": "shapes",
        });
        assert_eq!(Value::Object(wanted.fields), fields);
        assert_eq!((wanted.task.as_deref(), wanted.send_images, wanted.init_image), (Some("task(x)"), true, None));
    }

    #[test]
    fn a_picture_to_begin_with_has_a_strength() {
        let strength = |body: Value| wanted(object(body)).unwrap().fields.remove("strength");
        assert_eq!(strength(json!({"init_images": ["AA=="]})), Some(json!(0.75)));
        assert_eq!(strength(json!({"init_images": ["AA=="], "denoising_strength": 0.3})), Some(json!(0.3)));
        assert_eq!(strength(json!({"denoising_strength": 0.3})), None);
    }

    #[test]
    fn samplers_are_named_as_there_before_and_since_spacings_have_names() {
        for (name, spacing, ours) in [
            ("Euler", None, "euler"),
            ("euler A", None, "euler_ancestral"),
            ("Euler", Some("Beta"), "euler_beta"),
            ("DPM++ 2M", None, "dpmpp_2m_karras"),
            ("DPM++ 2M", Some("uniform"), "dpmpp_2m"),
            ("DPM++ 2M Karras", None, "dpmpp_2m_karras"),
            ("DPM++ 2M SDE Exponential", Some("Automatic"), "dpmpp_2m_sde_exponential"),
            ("dpmpp_sde_karras", Some("karras"), "dpmpp_sde_karras"),
        ] {
            assert_eq!(sampler(name, spacing).unwrap().as_str(), ours, "{name} {spacing:?}");
        }
        for (name, spacing, field) in [
            ("Restart", None, "sampler_name"),
            ("Euler", Some("polyexponential"), "scheduler"),
            ("DDIM", Some("karras"), "scheduler"),
        ] {
            assert_eq!(sampler(name, spacing).unwrap_err().field, field, "{name} {spacing:?}");
        }
        assert_eq!((sampler_name("dpmpp_2m_sde_karras"), sampler_name("ddpm")), ("DPM++ 2M SDE", "ddpm"));
    }

    #[test]
    fn what_would_change_the_picture_and_cannot_be_done_is_said() {
        for (body, field) in [
            (json!({"enable_hr": true}), "enable_hr"),
            (json!({"tiling": true}), "tiling"),
            (json!({"script_name": "x/y/z plot"}), "script_name"),
            (json!({"alwayson_scripts": {"ControlNet": {"args": []}}}), "alwayson_scripts"),
            (
                json!({"override_settings": {"CLIP_stop_at_last_layers": 2}}),
                "override_settings.CLIP_stop_at_last_layers",
            ),
            (json!({"init_images": ["a", "b"]}), "init_images"),
            (json!({"batch_size": "two"}), "batch_size"),
            (json!({"scheduler": "karras"}), "scheduler"),
            (json!({"mask": 7}), "mask"),
        ] {
            let fields: Vec<String> =
                wanted(object(body.clone())).unwrap_err().into_iter().map(|violation| violation.field).collect();
            assert_eq!(fields, [field], "{body}");
        }
    }
}
