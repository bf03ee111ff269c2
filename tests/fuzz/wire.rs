//! The bus's messages: requests, records, events, subjects, manifests, reports.

use darkroom::job::limits::{
    GUIDANCE_MAX, IMAGES_MAX, LORA_WEIGHT_MAX, LORAS_MAX, METADATA_BYTES_MAX, PROMPT_CHARACTERS_MAX, REQUEST_BYTES_MAX,
    SEED_MAX, STEPS_MAX, TOKEN_LENGTH_MAX,
};
use darkroom::job::{
    Capacity, Defaults, JobId, LoraName, ModelLimits, ModelManifest, ModelName, PictureSource, Priority, SamplerKind,
    Start, Task, Tenant, WebhookUrl, WorkerId,
};
use darkroom::sched::bill::{Entry, bill};
use darkroom::wire::price::Prices;
use darkroom::wire::request::{Context, RequestDocument, canonical_digest, id_in_body, parse, webhook_in_body};
use darkroom::wire::signature::Secrets;
use darkroom::wire::subject::RequestSubject;
use darkroom::wire::{
    cost, event as events, header, manifest as manifests, model_files, record as records, scale, time, usage,
    webhook as webhooks, worker,
};

fn model() -> ModelManifest {
    ModelManifest {
        name: "shapes".parse().unwrap(),
        family: "StableDiffusionPipeline".into(),
        limits: ModelLimits { side_min: 64, side_max: 512, side_multiple: 32, images_in_batch_max: 8 },
        defaults: Defaults {
            width: 256,
            height: 256,
            num_inference_steps: 20,
            guidance_scale: 5.0,
            scheduler: SamplerKind::Ddim,
        },
        tasks: Task::ALL.to_vec(),
        schedulers: SamplerKind::ALL.to_vec(),
    }
}

/// The first line, and what follows it.
fn first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 1..).unwrap_or_default())
}

/// The first line is the message's id, unless it is empty; the rest is the body.
pub(crate) fn request(bytes: &[u8]) {
    let (message_id, body) = first_line(bytes);
    let message_id = String::from_utf8_lossy(message_id);
    let (model, tenant) = (model(), "t".parse::<Tenant>().unwrap());
    let context = Context {
        manifest: &model,
        tenant: &tenant,
        priority: Priority::Normal,
        message_id: (!message_id.is_empty()).then_some(&message_id),
        stream_sequence: 7,
    };
    id_in_body(body);
    let digest = canonical_digest(body);
    assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let request = match parse(body, &context) {
        Ok(request) => request,
        Err(refusal) => {
            assert!(!refusal.violations.is_empty());
            for violation in &refusal.violations {
                assert!(!violation.field.is_empty() && !violation.allowed.is_empty(), "{violation:?}");
                assert!(violation.value.chars().count() <= 65 && violation.field.len() <= 256, "{violation:?}");
            }
            assert_eq!(refusal.digest, digest);
            return;
        }
    };
    assert!(body.len() <= REQUEST_BYTES_MAX);
    assert_eq!(request.digest, digest);
    let spec = &request.spec;
    let image = &spec.image;
    assert!((1..=PROMPT_CHARACTERS_MAX).contains(&image.prompt.chars().count()) && !image.prompt.trim().is_empty());
    assert!(image.negative_prompt.chars().count() <= PROMPT_CHARACTERS_MAX);
    for side in [image.width, image.height] {
        assert!((64..=512).contains(&side) && side.is_multiple_of(32));
    }
    assert!((1..=STEPS_MAX).contains(&image.num_inference_steps) && (1..=IMAGES_MAX).contains(&spec.num_images));
    assert!((1.0..=GUIDANCE_MAX).contains(&image.guidance_scale) && (0.0..=1.0).contains(&image.guidance_rescale));
    assert!(image.seed <= SEED_MAX && image.seed + u64::from(spec.num_images) - 1 <= SEED_MAX);
    assert!(spec.previews.is_none_or(|previews| (1..=STEPS_MAX).contains(&previews)));
    assert!(image.loras.len() <= LORAS_MAX);
    assert!(image.loras.iter().all(|lora| lora.weight.abs() <= LORA_WEIGHT_MAX));
    match image.start {
        Start::Noise => assert!(spec.init_image.is_none() && spec.mask_image.is_none()),
        Start::Picture { strength } => {
            assert!(strength > 0.0 && strength <= 1.0 && spec.init_image.is_some() && spec.mask_image.is_none());
        }
        Start::Inpaint { strength } => {
            assert!(strength > 0.0 && strength <= 1.0 && spec.init_image.is_some() && spec.mask_image.is_some());
        }
    }
    for picture in [&spec.init_image, &spec.mask_image].into_iter().flatten() {
        if let PictureSource::Key(key) = picture {
            assert!(!key.split('/').any(|part| part.is_empty() || part == ".."), "{key:?}");
        }
    }
    if let Some(metadata) = &request.metadata {
        assert!(serde_json::to_vec(metadata).unwrap().len() <= METADATA_BYTES_MAX);
    }
    // The document that clients send is read as the same.
    if let Ok(document) = serde_json::from_slice::<RequestDocument>(body) {
        let again = parse(&serde_json::to_vec(&document).unwrap(), &context).unwrap();
        assert_eq!((&again.job, &again.spec), (&request.job, spec));
    }
}

pub(crate) fn record(bytes: &[u8]) {
    if let Ok(record) = records::decode(bytes) {
        let again = records::decode(&records::encode(&record)).unwrap();
        assert_eq!(again, record);
    }
}

pub(crate) fn event(bytes: &[u8]) {
    if let Ok(event) = events::decode(bytes) {
        assert_eq!(events::decode(&events::encode(&event)).unwrap(), event);
        events::EventKind::from_type(&event.r#type);
    }
}

pub(crate) fn subject(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(RequestSubject { model, priority, pool, tenant }) = RequestSubject::parse(&text) {
        assert_eq!(darkroom::wire::subject::request(&model, priority, pool, &tenant), text);
    }
    let (model, tenant) = darkroom::wire::subject::model_and_tenant_tokens(&text);
    assert!(!model.contains('.') && !tenant.contains('.') && !model.is_empty());
}

pub(crate) fn manifest(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(manifest) = manifests::decode(&text) {
        assert_eq!(manifests::decode(&manifests::encode(&manifest)).unwrap(), manifest);
        // Clients check requests against whatever stands there.
        let tenant = "t".parse::<Tenant>().unwrap();
        let context = Context {
            manifest: &manifest,
            tenant: &tenant,
            priority: Priority::Normal,
            message_id: None,
            stream_sequence: 1,
        };
        let _ = parse(br#"{"prompt":"a star","width":64}"#, &context);
    }
}

/// Its paths become files of the machine that believes it.
pub(crate) fn model_manifest(bytes: &[u8]) {
    if let Ok(manifest) = model_files::decode(bytes) {
        assert_eq!(model_files::decode(&model_files::encode(&manifest).unwrap()).unwrap(), manifest);
        for file in &manifest.files {
            let is_below = |part| matches!(part, std::path::Component::Normal(_));
            assert!(std::path::Path::new(&file.path).components().all(is_below), "{}", file.path);
        }
    }
}

pub(crate) fn report(bytes: &[u8]) {
    if let Ok(report) = worker::decode(bytes) {
        assert_eq!(worker::decode(&worker::encode(&report)).unwrap(), report);
    }
    if let Ok(report) = worker::decode_model(bytes) {
        assert_eq!(worker::decode_model(&worker::encode(&report)).unwrap(), report);
    }
    if let Ok(table) = cost::decode(bytes) {
        assert_eq!(cost::decode(&cost::encode(&table).unwrap()).unwrap(), table);
    }
}

/// What webhooks carry, where they go, what signs them, and what receivers answer.
pub(crate) fn webhook(bytes: &[u8]) {
    for bytes_max in [64, 200, 20_000] {
        if let Some(body) = webhooks::body(bytes, bytes_max) {
            assert!(body.len() <= bytes_max);
            assert_eq!(webhooks::id_of(&body), webhooks::id_of(bytes));
        }
    }
    if let Some(webhook) = webhook_in_body(bytes) {
        assert!(!webhook.events.is_empty());
    }
    if let Ok(secrets) = Secrets::decode(bytes) {
        assert_eq!(Secrets::decode(&secrets.encode()), Ok(secrets));
    }
    webhooks::Progress::decode(bytes).wait(0);
    if let Some(endpoint) = webhooks::DisabledEndpoint::decode(bytes) {
        assert_eq!(webhooks::DisabledEndpoint::decode(&endpoint.encode()), Some(endpoint));
    }
    let text = String::from_utf8_lossy(bytes);
    for unix_ms in [0, 1_795_000_000_000, i64::MAX, i64::MIN] {
        webhooks::retry_after(&text, unix_ms);
    }
    if let Ok(url) = text.parse::<WebhookUrl>() {
        assert!(url.as_str() == text && !text.contains(['\r', '\n', ' ', '\\']), "{text:?}");
    }
}

/// Ids, names, times and headers.
pub(crate) fn text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let token = |found: Option<String>| {
        if let Some(found) = found {
            assert!((1..=TOKEN_LENGTH_MAX).contains(&found.len()) && found == text, "{found:?}");
            assert!(
                found.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'),
                "{found:?}"
            );
        }
    };
    token(text.parse::<JobId>().ok().map(|id| id.to_string()));
    token(text.parse::<Tenant>().ok().map(|id| id.to_string()));
    token(text.parse::<ModelName>().ok().map(|id| id.to_string()));
    token(text.parse::<WorkerId>().ok().map(|id| id.to_string()));
    token(text.parse::<LoraName>().ok().map(|id| id.to_string()));
    if let Some(unix_ms) = time::parse_rfc3339(&text) {
        assert_eq!(time::parse_rfc3339(&time::rfc3339(unix_ms)), Some(unix_ms), "{text:?}");
    }
    for published in [0, 1_795_000_000_000, i64::MAX, i64::MIN] {
        header::estimated_start(&text, published);
    }
    let tenant = "t".parse::<Tenant>().unwrap();
    assert!(text.ends_with(header::job_in_message_id(&tenant, &text)));
    header::is_kept_on_dead_letter(&text);
    if let Ok(source) = text.parse::<PictureSource>() {
        assert_eq!(source.as_str(), text);
    }
    if let Ok(kind) = text.parse::<SamplerKind>() {
        assert_eq!(kind.as_str(), text);
    }
}

/// What a bill and a plan are made of.
pub(crate) fn billing(bytes: &[u8]) {
    if let Ok(report) = usage::decode(bytes) {
        assert_eq!(usage::decode(&usage::encode(&report)).unwrap(), report);
        let tenants = report.tenants.iter().map(|of| (of.tenant.clone(), of.images, of.gpu_ms)).collect();
        let entry = Entry {
            model: report.model,
            capacity: report.capacity,
            ran_ms: report.ran_ms,
            gpu_ms: report.gpu_ms,
            price_per_hour: report.price_per_hour,
            tenants,
        };
        bill(&[entry.clone(), entry]);
    }
    if let Ok(plan) = scale::decode(bytes) {
        assert_eq!(plan.hours.len(), scale::HOURS);
        assert_eq!(scale::decode(&scale::encode(&plan)).unwrap(), plan);
    }
    if let Ok(prices) = Prices::parse(&String::from_utf8_lossy(bytes)) {
        for instance in prices.instances() {
            for capacity in Capacity::ALL {
                assert!(
                    prices.per_worker_hour(&instance.name, capacity).is_ok_and(|usd| usd.is_finite() && usd >= 0.0)
                        || instance.spot_per_hour.is_none()
                );
            }
        }
    }
}
