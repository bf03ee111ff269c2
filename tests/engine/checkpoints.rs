//! Images that are saved, and go on in another process: with the same bytes in the end, or not at all.

use darkroom::engine::{Admitted, ResumeError};
use darkroom::job::{FeatureCache, Rng};

use super::*;

const FAMILIES: [&str; 9] = ["sd1", "sd2", "sd1-inpaint", "lcm", "sdxl", "sd3", "sd3.5", "flux-schnell", "flux-dev"];
const ROW: RowId = RowId(1);
const MATE: RowId = RowId(2);

fn open(directory: &tempfile::TempDir) -> Pipeline {
    load(directory.path(), &LoadOptions::default()).unwrap()
}

/// A picture and a mask that leaves half of it.
fn pictures(spec: &ImageSpec) -> StartingPictures {
    let file = |pixel: fn(usize) -> u8| {
        let pixels = (0..3 * 24 * 24).map(pixel).collect();
        let image = RgbImage { width: 24, height: 24, pixels };
        Some(encode(&image, OutputFormat::Png).unwrap().into())
    };
    let init_image = file(|index| (index * 7 % 251) as u8);
    let mask_image = file(|index| if index % 72 < 36 { u8::MAX } else { 0 });
    StartingPictures::prepare(&PictureFiles { init_image, mask_image }, spec).unwrap()
}

/// What a row was saved as before each of its steps and after the last, and its picture.
struct Run {
    saved: Vec<Vec<u8>>,
    image: RgbImage,
}

fn run(model: &mut Pipeline, spec: &ImageSpec) -> Run {
    let pictures = pictures(spec);
    let Admitted { steps, step, .. } = model.admit(ROW, spec, &pictures).unwrap();
    assert_eq!(step, 0);
    let mut saved = vec![model.save(ROW).unwrap()];
    for _ in 0..steps {
        model.step(&[ROW]).unwrap();
        saved.push(model.save(ROW).unwrap());
    }
    let image = model.decode(ROW).unwrap();
    model.release(ROW);
    // Saving moves nothing.
    assert_eq!(model.render(spec, &pictures, None, &mut |_, _| {}).unwrap().image, image);
    Run { saved, image }
}

/// Resumes at `step` and makes the picture, with `mate` in the batch.
fn finished(model: &mut Pipeline, spec: &ImageSpec, run: &Run, step: usize, mate: Option<&ImageSpec>) -> RgbImage {
    let what = format!("{} at step {step}", spec.scheduler);
    let admitted = model.resume(ROW, spec, &pictures(spec), &run.saved[step]).unwrap();
    assert_eq!((admitted.steps as usize, admitted.step as usize), (run.saved.len() - 1, step), "{what}");
    let mut mate_left = mate.map_or(0, |mate| model.admit(MATE, mate, &pictures(mate)).unwrap().steps);
    assert_eq!(model.save(ROW).unwrap(), run.saved[step], "{what}: saved again");
    for next in step + 1..run.saved.len() {
        if mate_left > 0 {
            mate_left -= 1;
            model.step(&[MATE, ROW]).unwrap();
        } else {
            model.step(&[ROW]).unwrap();
        }
        assert_eq!(model.save(ROW).unwrap(), run.saved[next], "{what}: state at {next}");
    }
    let image = model.decode(ROW).unwrap();
    [ROW, MATE].into_iter().for_each(|row| model.release(row));
    image
}

/// Text to image with and without guidance, image to image and inpainting, as far as the model can.
fn specs(model: &Pipeline, kind: SamplerKind, steps: u32) -> Vec<ImageSpec> {
    let strength = 0.7;
    let all: [&dyn Fn(&mut ImageSpec); 4] = [
        &|spec| spec.cache = Some(FeatureCache { interval: 2 }),
        &|spec| (spec.guidance_scale, spec.rng) = (1.0, Rng::TorchCuda),
        &|spec| (spec.start, spec.guidance_rescale) = (Start::Picture { strength }, 0.5),
        &|spec| spec.start = Start::Inpaint { strength },
    ];
    let takes_mask = model.manifest().tasks == [darkroom::job::Task::Inpainting];
    all.iter()
        .enumerate()
        .filter(|(index, _)| !takes_mask || *index == 3)
        .map(|(_, change)| {
            spec(|spec| {
                (spec.scheduler, spec.num_inference_steps, spec.negative_prompt) = (kind, steps, "red".into());
                change(spec);
            })
        })
        .collect()
}

#[test]
fn an_image_goes_on_after_any_step_of_any_sampler_in_another_process_with_the_same_bytes() {
    let directory = tiny::model("sd1");
    let (mut one, mut other) = (open(&directory), open(&directory));
    for kind in samplers() {
        for spec in specs(&one, kind, 5) {
            let run = run(&mut one, &spec);
            for step in 0..run.saved.len() {
                assert_eq!(finished(&mut other, &spec, &run, step, None), run.image, "{kind}, step {step}: {spec:?}");
            }
        }
    }
}

#[test]
fn an_image_of_any_family_goes_on_in_a_fresh_process_among_others_with_the_same_bytes() {
    for family in FAMILIES {
        let directory = tiny::model(family);
        let mut model = open(&directory);
        let kind = model.manifest().defaults.scheduler;
        let specs = specs(&model, kind, 4);
        let mates: Vec<ImageSpec> = specs.iter().map(|spec| ImageSpec { seed: 99, ..spec.clone() }).collect();
        for (spec, mate) in specs.iter().zip(mates.iter().rev()) {
            let run = run(&mut model, spec);
            for step in [0, 1, run.saved.len() - 2, run.saved.len() - 1] {
                let image = finished(&mut open(&directory), spec, &run, step, Some(mate));
                assert_eq!(image, run.image, "{family}, step {step}: {spec:?}");
            }
        }
    }
}

#[test]
fn many_images_change_processes_at_every_step_on_several_threads() {
    let directory = tiny::model("sd1");
    let mut model = open(&directory);
    let kinds: Vec<SamplerKind> = samplers().collect();
    let specs: Vec<ImageSpec> = kinds.iter().flat_map(|kind| specs(&model, *kind, 4)).collect();
    let expected: Vec<RgbImage> = specs.iter().map(|spec| run(&mut model, spec).image).collect();
    std::thread::scope(|scope| {
        for offset in 0..3 {
            let (specs, expected, directory) = (&specs, &expected, &directory);
            scope.spawn(move || {
                let mut models = [open(directory), open(directory)];
                let mut rows: Vec<(usize, Vec<u8>)> = (offset..specs.len())
                    .step_by(3)
                    .map(|index| {
                        let row = RowId(index as u64);
                        models[1].admit(row, &specs[index], &pictures(&specs[index])).unwrap();
                        let saved = models[1].save(row).unwrap();
                        models[1].release(row);
                        (index, saved)
                    })
                    .collect();
                for turn in 0.. {
                    if rows.is_empty() {
                        break;
                    }
                    let model = &mut models[turn % 2];
                    let mut batch = Vec::new();
                    for (index, saved) in std::mem::take(&mut rows) {
                        let row = RowId(index as u64);
                        let admitted = model.resume(row, &specs[index], &pictures(&specs[index]), &saved).unwrap();
                        if admitted.step == admitted.steps {
                            assert_eq!(model.decode(row).unwrap(), expected[index], "{:?}", specs[index]);
                            model.release(row);
                        } else {
                            batch.push(row);
                        }
                    }
                    model.step(&batch).unwrap();
                    for row in batch {
                        rows.push((row.0 as usize, model.save(row).unwrap()));
                        model.release(row);
                    }
                }
            });
        }
    });
}

#[test]
fn images_with_loras_go_on_with_the_same_loras_only() {
    let layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let directory = tiny::model("sd1");
    let with_loras = |folder: &tempfile::TempDir| {
        let options = LoadOptions { loras: Some(folder.path().into()), ..LoadOptions::default() };
        load(directory.path(), &options).unwrap()
    };
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    folders[..2].iter().for_each(|folder| write_lora(folder.path(), "one", layer, 8));
    write_lora(folders[2].path(), "other", layer, 8);
    std::fs::rename(folders[2].path().join("other.safetensors"), folders[2].path().join("one.safetensors")).unwrap();
    let asked = spec(|spec| spec.loras = vec![lora("one", 0.5)]);
    let run = run(&mut with_loras(&folders[0]), &asked);
    assert_eq!(finished(&mut with_loras(&folders[1]), &asked, &run, 2, None), run.image);
    let refused = with_loras(&folders[2]).resume(ROW, &asked, &pictures(&asked), &run.saved[2]).unwrap_err();
    assert!(matches!(refused, ResumeError::OtherModel { .. }), "{refused}");
}

/// Refuses `saved`, and makes the picture of `spec` from its beginning then.
fn refusal(model: &mut Pipeline, spec: &ImageSpec, saved: &[u8], expected: &RgbImage) -> ResumeError {
    let refused = model.resume(ROW, spec, &pictures(spec), saved).unwrap_err();
    assert!(model.decode(ROW).is_err() && model.save(ROW).is_err(), "a row is left: {refused}");
    assert_eq!(picture(model, spec), *expected, "{refused}");
    refused
}

#[test]
fn damaged_checkpoints_are_refused_and_leave_the_engine_as_it_was() {
    let directory = tiny::model("sd1");
    let mut model = open(&directory);
    let asked = spec(|spec| spec.scheduler = SamplerKind::UniPc(SigmaSpacing::Trained));
    let Run { saved, image } = run(&mut model, &asked);
    let whole = &saved[2];
    let mut damaged: Vec<Vec<u8>> =
        [0, 7, 8, 100, whole.len() / 2, whole.len() - 1].map(|keep| whole[..keep].to_vec()).into();
    damaged.push([whole.as_slice(), b" "].concat());
    for start in (0..whole.len()).step_by(whole.len() / 60) {
        let mut flipped = whole.clone();
        flipped.iter_mut().skip(start).take(3).for_each(|byte| *byte ^= 0xff);
        damaged.push(flipped);
    }
    for bytes in damaged {
        let refused = refusal(&mut model, &asked, &bytes, &image);
        assert!(matches!(refused, ResumeError::Damaged { .. }), "{} bytes: {refused}", bytes.len());
    }
    assert_eq!(finished(&mut model, &asked, &Run { saved, image: image.clone() }, 2, None), image);
}

#[test]
fn checkpoints_of_something_else_are_refused_by_what_it_is() {
    let directory = tiny::model("sd1");
    let mut model = open(&directory);
    let asked = spec(|_| {});
    let Run { saved, image } = run(&mut model, &asked);
    let saved = &saved[2];

    let trajectories: [fn(&mut ImageSpec); 2] =
        [|spec| spec.scheduler = SamplerKind::Ddpm, |spec| spec.num_inference_steps = 5];
    for change in trajectories {
        let other = spec(change);
        let expected = picture(&mut model, &other);
        let refused = refusal(&mut model, &other, saved, &expected);
        assert!(matches!(refused, ResumeError::OtherTrajectory { .. }), "{refused}");
    }
    let images: [fn(&mut ImageSpec); 6] = [
        |spec| spec.seed = 2,
        |spec| spec.prompt = "a star".into(),
        |spec| spec.negative_prompt = "red".into(),
        |spec| spec.guidance_scale = 1.0,
        |spec| spec.rng = Rng::TorchCuda,
        |spec| spec.sizes.target = [8, 8],
    ];
    for change in images {
        let other = spec(change);
        let expected = picture(&mut model, &other);
        let refused = refusal(&mut model, &other, saved, &expected);
        assert!(matches!(refused, ResumeError::OtherImage { .. }), "{refused}");
    }
    // Of another size not even the tensors fit.
    let wide = spec(|spec| spec.width = 32);
    let expected = picture(&mut model, &wide);
    let refused = refusal(&mut model, &wide, saved, &expected);
    assert!(matches!(refused, ResumeError::Damaged { .. }), "{refused}");

    let precisions = Precisions { vae: Some(Precision::F16), ..Precisions::default() };
    for precisions in [precisions, Precisions::all(Some(Precision::Bf16))] {
        let options = LoadOptions { precisions, ..LoadOptions::default() };
        let mut half = load(directory.path(), &options).unwrap();
        let expected = picture(&mut half, &asked);
        let refused = refusal(&mut half, &asked, saved, &expected);
        assert!(matches!(refused, ResumeError::OtherPlacement { .. }), "{refused}");
    }

    let retrained = tiny::model("sd1");
    replace_unet_tensors(retrained.path(), |tensors| {
        tensors.insert("conv_in.bias".into(), tiny::tensor("another", &[8]));
    });
    for mut other in [open(&retrained), open(&tiny::model("sd2"))] {
        let expected = picture(&mut other, &asked);
        let refused = refusal(&mut other, &asked, saved, &expected);
        assert!(matches!(refused, ResumeError::OtherModel { .. }), "{refused}");
    }
    // What the engine cannot begin at all is its own error.
    let refused = model.resume(ROW, &spec(|spec| spec.loras = vec![lora("one", 1.0)]), &pictures(&asked), saved);
    assert!(matches!(&refused, Err(ResumeError::Engine(fault)) if fault.class == FaultClass::Reject), "{refused:?}");
    assert_eq!(picture(&mut model, &asked), image);
}

#[test]
fn another_starting_picture_makes_another_image() {
    let directory = tiny::model("sd1");
    let mut model = open(&directory);
    let asked = spec(|spec| spec.start = Start::Picture { strength: 0.5 });
    let run = run(&mut model, &asked);
    let black = RgbImage { width: 16, height: 16, pixels: vec![0; 3 * 16 * 16] };
    let files = PictureFiles { init_image: Some(encode(&black, OutputFormat::Png).unwrap().into()), mask_image: None };
    let other = StartingPictures::prepare(&files, &asked).unwrap();
    let refused = model.resume(ROW, &asked, &other, &run.saved[1]).unwrap_err();
    assert!(matches!(refused, ResumeError::OtherImage { .. }), "{refused}");
}

#[test]
fn a_checkpoint_is_as_large_as_the_tensors_that_the_sampler_has() {
    let directory = tiny::model("sd1");
    let mut model = open(&directory);
    for (kind, tensors) in [(SamplerKind::Ddim, 2), (SamplerKind::DpmPlusPlus2M(SigmaSpacing::Karras), 3)] {
        let asked = spec(|spec| (spec.scheduler, spec.width, spec.height) = (kind, 32, 32));
        let latents = 4 * 16 * 16 * size_of::<f32>();
        for bytes in run(&mut model, &asked).saved {
            // The generator has 2.5 KiB, names and digests 1.
            assert!((tensors * latents..tensors * latents + 4096).contains(&bytes.len()), "{kind}: {}", bytes.len());
        }
    }
}

#[test]
fn a_row_that_does_not_exist_cannot_be_saved() {
    let directory = tiny::model("sd1");
    assert!(open(&directory).save(ROW).is_err());
}
