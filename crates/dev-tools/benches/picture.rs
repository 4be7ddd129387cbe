//! The stages of the picture pipeline, each alone, with photo-like images.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion};
use domain::command::JobKey;
use domain::digest;
use domain::generation_params::GenerationParams;
use domain::image_metadata::ImageMetadata;
use domain::image_spec::ImageSpec;
use fast_image_resize::Resizer;
use picture::{Buffers, QualityCheck, metadata};

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("the runtime starts");
    let photo = runtime.block_on(dev_tools::photos::take(1)).expect("a photo is made").remove(0);
    let mut criterion = Criterion::default().configure_from_args();
    bench_stages(&mut criterion, &photo);
    criterion.final_summary();
}

fn bench_stages(criterion: &mut Criterion, photo: &Bytes) {
    let (spec, quality_check) = (ImageSpec::default(), QualityCheck::default());
    let metadata = metadata();
    let decoded = picture::decode(photo, Vec::new()).expect("the photo is decoded");
    let mut resizer = Resizer::new();
    let resized = picture::resize_to_cover(&decoded, &spec, &mut resizer, Vec::new()).expect("it is resized");
    let (file, format) = picture::encode(&resized, &spec, &metadata).expect("it is encoded");

    let mut group = criterion.benchmark_group("picture");
    let mut buffer = Vec::new();
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let decoded = picture::decode(black_box(photo), std::mem::take(&mut buffer));
            buffer = decoded.expect("the photo is decoded").into_raw();
        });
    });
    group.bench_function("quality check", |bencher| bencher.iter(|| quality_check.check(black_box(&decoded))));
    group.bench_function("resize", |bencher| {
        bencher.iter(|| {
            let buffer_before = std::mem::take(&mut buffer);
            let resized = picture::resize_to_cover(black_box(&decoded), &spec, &mut resizer, buffer_before);
            buffer = resized.expect("it is resized").into_raw();
        });
    });
    group.bench_function("encode", |bencher| bencher.iter(|| picture::encode(black_box(&resized), &spec, &metadata)));
    group.bench_function("verify", |bencher| {
        bencher.iter(|| picture::verify_encoded(black_box(&file), format, &resized, &spec));
    });
    group.bench_function("verify by decoding", |bencher| bencher.iter(|| picture::verify(black_box(&file), &spec)));
    group.bench_function("hash", |bencher| bencher.iter(|| digest::sha256(black_box(&file))));
    let mut buffers = Buffers::default();
    group.bench_function("all stages", |bencher| {
        bencher.iter_batched(
            || photo.clone(),
            |photo| picture::process(photo, &spec, quality_check, &metadata, &mut buffers),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn metadata() -> ImageMetadata {
    let params = GenerationParams { prompt: "A lighthouse at dusk, 4k".into(), ..GenerationParams::default() };
    let key = JobKey { job_id: uuid::Uuid::from_u128(7), project_id: 42 };
    ImageMetadata::new(key, 1, "A lighthouse at dusk", &params, 7, metadata::SOFTWARE)
}
