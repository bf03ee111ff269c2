//! The bus protocol as clients meet it: what a request may say, how refusals read, and that the schemas are the types'.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use darkroom::job::limits::REQUEST_BYTES_MAX;
use darkroom::job::{
    Deadline, Defaults, FeatureCache, JobId, LongPrompt, ModelLimits, ModelManifest, OnLate, PictureSource, Priority,
    Rng, SamplerKind, Start, Task, Tenant, WebhookEvent, Weighting,
};
use darkroom::wire::request::{Context, Refusal, Request, id_in_body, parse, webhook_in_body};
use darkroom::wire::{manifest, schema};

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

fn read_as(body: &[u8], message_id: Option<&str>) -> Result<Request, Refusal> {
    let (model, tenant) = (model(), "t".parse::<Tenant>().unwrap());
    let context =
        Context { manifest: &model, tenant: &tenant, priority: Priority::Normal, message_id, stream_sequence: 7 };
    parse(body, &context)
}

fn read(body: &[u8]) -> Result<Request, Refusal> {
    read_as(body, Some("job-1"))
}

fn fields(refusal: &Refusal) -> Vec<&str> {
    refusal.violations.iter().map(|violation| violation.field.as_str()).collect()
}

#[test]
fn a_prompt_is_enough() {
    let request = read(br#"{"prompt":"a red circle"}"#).unwrap();
    assert_eq!(request.job.as_str(), "job-1");
    assert_eq!((request.spec.image.width, request.spec.image.num_inference_steps), (256, 20));
    assert_eq!(request, read(br#"{"prompt":"a red circle"}"#).unwrap(), "the seed unasked is the job's, not random");
    let other = read_as(br#"{"prompt":"a red circle"}"#, Some("job-2")).unwrap();
    assert_ne!(request.spec.image.seed, other.spec.image.seed);
}

#[test]
fn every_field_arrives() {
    let body = br#"{"id":"job-1","prompt":"p","negative_prompt":"n","width":64,"height":96,"num_inference_steps":7,
        "guidance_scale":1.5,"seed":9007199254740983,"num_images":3,"scheduler":"lcm","output_format":"webp",
        "priority":"normal","previews":2,"metadata":{"a":[1]},"guidance_rescale":0.7,"rng":"torch-cuda",
        "init_image":"t/inputs/a.png","mask_image":"https://example.com/m.png","strength":0.5,
        "loras":[{"name":"one","weight":-0.5},{"name":"two"}],"long_prompt":"chunk","prompt_weighting":true,
        "original_size":[1,2],"crops_coords_top_left":[3,4],"target_size":[5,6],
        "deadline":"2030-01-31T13:00:00+01:00","on_late":"continue",
        "webhook":{"url":"https://example.com/hook","events":["started","failed"]},"cache":{"interval":3}}"#;
    let Request { spec, metadata, .. } = read(body).unwrap();
    let image = spec.image(0);
    assert_eq!((image.width, image.height, image.num_inference_steps, spec.num_images), (64, 96, 7, 3));
    assert_eq!((image.seed, image.scheduler, spec.previews), (9_007_199_254_740_983, SamplerKind::Lcm, Some(2)));
    assert_eq!(
        (image.guidance_rescale, image.rng, image.start),
        (0.7, Rng::TorchCuda, Start::Inpaint { strength: 0.5 })
    );
    assert_eq!(spec.init_image, Some(PictureSource::Key("t/inputs/a.png".into())));
    assert_eq!(spec.mask_image, Some(PictureSource::Url("https://example.com/m.png".into())));
    let loras: Vec<_> = image.loras.iter().map(|lora| (lora.name.as_str(), lora.weight)).collect();
    assert_eq!(loras, [("one", -0.5), ("two", 1.0)]);
    assert_eq!((image.prompt_options.long, image.prompt_options.weighting), (LongPrompt::Chunk, Weighting::On));
    let sizes = image.sizes;
    assert_eq!((sizes.original, sizes.crops_coords_top_left, sizes.target), ([1, 2], [3, 4], [5, 6]));
    assert_eq!((spec.output_format.extension(), image.cache), ("webp", Some(FeatureCache { interval: 3 })));
    assert_eq!(spec.deadline, Some(Deadline { unix_ms: 1_896_091_200_000, on_late: OnLate::Continue }));
    let webhook = spec.webhook.unwrap();
    assert_eq!(webhook.url.as_str(), "https://example.com/hook");
    assert_eq!(webhook.events, [WebhookEvent::Started, WebhookEvent::Failed]);
    assert_eq!(metadata.unwrap()["a"][0], 1);
}

#[test]
fn each_mistake_names_its_field() {
    let prompt_of = |characters: usize| format!(r#"{{"prompt":"{}"}}"#, "a".repeat(characters));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("body", b"not json".to_vec()),
        ("body", b"".to_vec()),
        ("body", b"[]".to_vec()),
        ("body", b"null".to_vec()),
        ("body", b"{\"prompt\":\"\xff\xfe\"}".to_vec()),
        ("body", br#"{"prompt":"p","guidance_scale":NaN}"#.to_vec()),
        ("body", br#"{"prompt":"p""#.to_vec()),
        ("body", vec![b' '; REQUEST_BYTES_MAX + 1]),
        ("prompt", b"{}".to_vec()),
        ("prompt", br#"{"prompt":""}"#.to_vec()),
        ("prompt", br#"{"prompt":7}"#.to_vec()),
        ("prompt", br#"{"prompt":null}"#.to_vec()),
        ("prompt", prompt_of(2001).into_bytes()),
        ("negative_prompt", br#"{"prompt":"p","negative_prompt":[]}"#.to_vec()),
        ("cache", br#"{"prompt":"p","cache":3}"#.to_vec()),
        ("cache", br#"{"prompt":"p","cache":[3]}"#.to_vec()),
        ("cache", br#"{"prompt":"p","cache":{"interval":3,"threshold":1}}"#.to_vec()),
        ("cache.interval", br#"{"prompt":"p","cache":{"interval":1}}"#.to_vec()),
        ("num_inference_steps", br#"{"prompt":"p","num_inference_steps":0}"#.to_vec()),
        ("num_inference_steps", br#"{"prompt":"p","num_inference_steps":101}"#.to_vec()),
        ("num_inference_steps", br#"{"prompt":"p","num_inference_steps":1.5}"#.to_vec()),
        ("num_inference_steps", br#"{"prompt":"p","num_inference_steps":-1}"#.to_vec()),
        ("width", br#"{"prompt":"p","width":100}"#.to_vec()),
        ("height", br#"{"prompt":"p","height":544}"#.to_vec()),
        ("height", br#"{"prompt":"p","height":4294967296}"#.to_vec()),
        ("guidance_scale", br#"{"prompt":"p","guidance_scale":"NaN"}"#.to_vec()),
        ("guidance_scale", br#"{"prompt":"p","guidance_scale":1e300}"#.to_vec()),
        ("guidance_scale", br#"{"prompt":"p","guidance_scale":0.9}"#.to_vec()),
        ("seed", br#"{"prompt":"p","seed":-1}"#.to_vec()),
        ("seed", br#"{"prompt":"p","seed":9007199254740984}"#.to_vec()),
        ("num_images", br#"{"prompt":"p","num_images":9}"#.to_vec()),
        ("scheduler", br#"{"prompt":"p","scheduler":"euler_a"}"#.to_vec()),
        ("output_format", br#"{"prompt":"p","output_format":"gif"}"#.to_vec()),
        ("priority", br#"{"prompt":"p","priority":"high"}"#.to_vec()),
        ("previews", br#"{"prompt":"p","previews":true}"#.to_vec()),
        ("deadline", br#"{"prompt":"p","deadline":60}"#.to_vec()),
        ("deadline", br#"{"prompt":"p","deadline":"in an hour"}"#.to_vec()),
        ("deadline", br#"{"prompt":"p","deadline":"2030-01-31T12:00:00"}"#.to_vec()),
        ("on_late", br#"{"prompt":"p","on_late":"fail"}"#.to_vec()),
        ("on_late", br#"{"prompt":"p","deadline":"2030-01-31T12:00:00Z","on_late":"give up"}"#.to_vec()),
        ("metadata", br#"{"prompt":"p","metadata":"text"}"#.to_vec()),
        ("metadata", format!(r#"{{"prompt":"p","metadata":{{"a":"{}"}}}}"#, "x".repeat(5000)).into_bytes()),
        ("strength", br#"{"prompt":"p","init_image":"t/a.png","strength":0}"#.to_vec()),
        ("strength", br#"{"prompt":"p","init_image":"t/a.png","strength":1.5}"#.to_vec()),
        ("init_image", br#"{"prompt":"p","init_image":"/etc/passwd"}"#.to_vec()),
        ("init_image", br#"{"prompt":"p","init_image":{"url":"https://example.com"}}"#.to_vec()),
        ("mask_image", br#"{"prompt":"p","mask_image":"t/a.png"}"#.to_vec()),
        ("loras", br#"{"prompt":"p","loras":"one"}"#.to_vec()),
        ("loras[0]", br#"{"prompt":"p","loras":["one"]}"#.to_vec()),
        ("loras[0].name", br#"{"prompt":"p","loras":[{"name":"../one"}]}"#.to_vec()),
        ("loras[0].weight", br#"{"prompt":"p","loras":[{"name":"one","weight":"1"}]}"#.to_vec()),
        ("loras[0].scale", br#"{"prompt":"p","loras":[{"name":"one","scale":1}]}"#.to_vec()),
        ("rng", br#"{"prompt":"p","rng":"numpy"}"#.to_vec()),
        ("long_prompt", br#"{"prompt":"p","long_prompt":"wrap"}"#.to_vec()),
        ("prompt_weighting", br#"{"prompt":"p","prompt_weighting":"yes"}"#.to_vec()),
        ("target_size", br#"{"prompt":"p","target_size":[1,2,3]}"#.to_vec()),
        ("webhook", br#"{"prompt":"p","webhook":"https://example.com"}"#.to_vec()),
        ("webhook.url", br#"{"prompt":"p","webhook":{}}"#.to_vec()),
        ("webhook.url", br#"{"prompt":"p","webhook":{"url":7}}"#.to_vec()),
        ("webhook.url", br#"{"prompt":"p","webhook":{"url":"ftp://example.com"}}"#.to_vec()),
        ("webhook.url", br#"{"prompt":"p","webhook":{"url":"https://user:secret@example.com"}}"#.to_vec()),
        ("webhook.events", br#"{"prompt":"p","webhook":{"url":"https://a.b","events":[]}}"#.to_vec()),
        ("webhook.events", br#"{"prompt":"p","webhook":{"url":"https://a.b","events":"failed"}}"#.to_vec()),
        (
            "webhook.events[1]",
            br#"{"prompt":"p","webhook":{"url":"https://a.b","events":["failed","begun"]}}"#.to_vec(),
        ),
        (
            "webhook.events[1]",
            br#"{"prompt":"p","webhook":{"url":"https://a.b","events":["failed","failed"]}}"#.to_vec(),
        ),
        ("webhook.secret", br#"{"prompt":"p","webhook":{"url":"https://a.b","secret":"x"}}"#.to_vec()),
        ("size", br#"{"prompt":"p","size":"256x256"}"#.to_vec()),
        ("id", br#"{"prompt":"p","id":"job-2"}"#.to_vec()),
    ];
    for (field, body) in cases {
        let refusal = read(&body).unwrap_err();
        assert_eq!(fields(&refusal), [field], "{:?}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        assert_eq!(refusal.job.as_str(), "job-1", "the refusal belongs to the job that was named");
        assert!(!refusal.violations[0].allowed.is_empty());
    }
}

#[test]
fn all_mistakes_are_reported_together() {
    let body = br#"{"prompt":5,"width":"wide","height":1,"num_inference_steps":0,"seed":"x","colour":"red"}"#;
    let mut found = read(body).unwrap_err().violations.into_iter().map(|v| v.field).collect::<Vec<_>>();
    found.sort();
    assert_eq!(found, ["colour", "height", "num_inference_steps", "prompt", "seed", "width"]);
}

#[test]
fn a_webhook_is_told_of_a_refusal_if_it_is_right_itself() {
    let told = |body: &str| webhook_in_body(body.as_bytes()).map(|webhook| webhook.events);
    let right = r#"{"prompt":7,"colour":"red","webhook":{"url":"https://a.b"}}"#;
    assert_eq!(told(right).as_deref(), Some(WebhookEvent::TERMINAL));
    for body in ["", "[]", "{}", r#"{"webhook":null}"#, r#"{"webhook":{"url":"https://a.b","events":["begun"]}}"#] {
        assert_eq!(told(body), None, "{body}");
    }
    let secret = read(br#"{"prompt":"p","webhook":{"url":"https://user:secret@a.b"}}"#).unwrap_err();
    assert!(!format!("{secret:?}").contains("secret"), "what is wrong with a URL is said without it: {secret:?}");
}

#[test]
fn ids_that_are_no_tokens_fall_back_to_the_stream_sequence() {
    let long = "a".repeat(1000);
    for id in ["*", ">", "a.b", "a b", "", long.as_str(), "naïve", "a/b", "$JS"] {
        let refusal = read_as(br#"{"prompt":"p"}"#, Some(id)).unwrap_err();
        assert_eq!(fields(&refusal), ["Nats-Msg-Id"], "{id:?}");
        assert_eq!(refusal.job, JobId::from_stream_sequence(7));
        assert!(refusal.violations[0].value.chars().count() <= 65, "shown shortened");
    }
    let with_tenant = read_as(br#"{"prompt":"p","id":"mine"}"#, Some("t.mine")).unwrap();
    assert_eq!(
        with_tenant.job.as_str(),
        "mine",
        "streams compare ids over all tenants, so the tenant may stand before"
    );
    assert_eq!(read_as(br#"{"prompt":"p"}"#, None).unwrap().job.as_str(), "seq-7");
    assert_eq!(read_as(br#"{"prompt":"p","id":"mine"}"#, None).unwrap().job.as_str(), "mine");
}

#[test]
fn the_same_request_has_the_same_digest_whatever_the_order_of_its_fields() {
    let one = read(br#"{"prompt":"p","seed":1}"#).unwrap();
    let same = read(br#"{ "seed": 1, "prompt": "p" }"#).unwrap();
    let other = read(br#"{"prompt":"p","seed":2}"#).unwrap();
    assert_eq!(one.digest, same.digest);
    assert_ne!(one.digest, other.digest);
}

#[test]
fn no_bytes_make_it_panic() {
    // Mutations of a good request, and noise, from a fixed sequence of numbers.
    let good = br#"{"prompt":"p","seed":1,"width":256,"metadata":{"a":[1,2,{"b":null}]},"guidance_scale":2.5}"#;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..20_000 {
        let mut body = good.to_vec();
        for _ in 0..=next() % 6 {
            let at = usize::try_from(next()).unwrap() % body.len();
            body[at] = next().to_le_bytes()[0];
        }
        if round % 3 == 0 {
            body.truncate(usize::try_from(next()).unwrap() % good.len());
        }
        match read(&body) {
            Ok(request) => assert!(request.spec.image.prompt.chars().count() >= 1),
            Err(refusal) => assert!(!refusal.violations.is_empty()),
        }
    }
}

#[test]
fn manifests_read_back() {
    assert_eq!(manifest::decode(&manifest::encode(&model())), Some(model()));
    assert_eq!(manifest::decode("{}"), None);
}

#[test]
fn schemas_in_the_repository_are_those_of_the_types() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("nats/schema");
    for (name, schema) in schema::all() {
        let wanted = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let found = fs::read_to_string(directory.join(name)).unwrap_or_default();
        assert!(found == wanted, "nats/schema/{name} is not what `darkroom schema --dir nats/schema` writes");
    }
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let (_, schema) = schema::all().into_iter().find(|(name, _)| *name == "request.json").unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for (body, good) in [
        (r#"{"prompt":"p"}"#, true),
        (r#"{"prompt":"p","seed":3,"scheduler":"ddim","width":64}"#, true),
        (r#"{}"#, false),
        (r#"{"prompt":""}"#, false),
        (r#"{"prompt":"p","colour":"red"}"#, false),
        (r#"{"prompt":"p","num_inference_steps":101}"#, false),
        (r#"{"prompt":"p","guidance_scale":0.5}"#, false),
        (r#"{"prompt":"p","scheduler":"other"}"#, false),
        (r#"{"prompt":"p","width":100}"#, false),
        (r#"{"prompt":"p","id":"a.b"}"#, false),
        (r#"{"prompt":"p","seed":-1}"#, false),
        (r#"{"prompt":"p","webhook":{"url":"https://example.com:8443/hook?a=b@c"}}"#, true),
        (r#"{"prompt":"p","webhook":{"url":"http://[::1]/","events":["started","completed"]}}"#, true),
        (r#"{"prompt":"p","webhook":{"url":"https://example.com","events":null}}"#, true),
        (r#"{"prompt":"p","webhook":{"url":"ftp://example.com"}}"#, false),
        (r#"{"prompt":"p","webhook":{"url":"https://user@example.com"}}"#, false),
        (r#"{"prompt":"p","webhook":{"url":"https://a.b","events":["begun"]}}"#, false),
        (r#"{"prompt":"p","webhook":{"url":"https://a.b","events":["failed","failed"]}}"#, false),
        (r#"{"prompt":"p","webhook":{"url":"https://a.b","events":[]}}"#, false),
        (r#"{"prompt":"p","webhook":{"events":["failed"]}}"#, false),
        (r#"{"prompt":"p","webhook":{"url":"https://a.b","secret":"x"}}"#, false),
    ] {
        assert_eq!(validator.is_valid(&serde_json::from_str(body).unwrap()), good, "schema: {body}");
        assert_eq!(read_as(body.as_bytes(), None).is_ok(), good, "reader: {body}");
    }
}

#[test]
fn the_id_in_a_body_is_found_without_reading_the_rest() {
    let id = |body: &str| id_in_body(body.as_bytes()).map(|job| job.to_string());
    assert_eq!(id(r#"{"id": "one", "prompt": 7, "no_such_field": []}"#).as_deref(), Some("one"));
    for body in [r#"{"id": "not an id"}"#, r#"{"id": 1}"#, r#"["id"]"#, "{}", "id", ""] {
        assert_eq!(id(body), None, "{body}");
    }
}
