use std::io::Cursor;

use domain::command::JobKey;
use domain::digest;
use domain::recipe::Recipe;
use image::{DynamicImage, Rgb, RgbImage};
use uuid::Uuid;

use super::{Finished, Glance, check, texts};
use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};
use domain::story::Story;

/// A picture whose colours say where a pixel came from: red grows to the right, green downwards.
fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let share = |at: u32, of: u32| u8::try_from(at * 255 / of.max(1)).expect("a share of 255");
        Rgb([share(x, width), share(y, height), 128])
    })
}

fn encoded(picture: &RgbImage, format: image::ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    DynamicImage::from(picture.clone()).write_to(&mut file, format).expect("it encodes");
    file.into_inner()
}

fn png(width: u32, height: u32) -> Vec<u8> {
    encoded(&gradient(width, height), image::ImageFormat::Png)
}

fn story() -> Story {
    let recipe = Recipe {
        english: Some("A fox at dusk".into()),
        prompt: "A fox at dusk, 4k".into(),
        negative_prompt: "blurry".into(),
        engine: "stable-diffusion-xl-1024-v1-0".into(),
        cfg_scale: Some(8.0),
        steps: Some(40),
        ..Recipe::default()
    };
    let key = JobKey { job_id: Uuid::from_u128(7), project_id: 42 };
    Story::new(key, 3, "黃昏的狐狸", &recipe, 787_078_103, texts::SOFTWARE)
}

fn finish(sent: &[u8], spec: &ImageSpec) -> Result<Finished, ImageDefect> {
    super::finish(sent, spec, Glance::default(), &story())
}

fn decoded(bytes: &[u8]) -> RgbImage {
    image::load_from_memory(bytes).expect("it decodes").into_rgb8()
}

/// Test 6.
#[test]
fn test_6_an_image_is_checked_for_resolution_format_bytes_and_whether_it_loads() {
    let spec = ImageSpec::default();
    let good = png(1920, 1080);
    assert_eq!(check(&good, &spec), Ok(()));
    assert_eq!(check(&encoded(&gradient(1920, 1080), image::ImageFormat::Jpeg), &spec), Ok(()));
    let refused = |bytes: &[u8], spec: &ImageSpec| check(bytes, spec).expect_err("it is refused").to_string();
    assert_eq!(refused(&png(1280, 720), &spec), "wrong resolution: 1280x720, expected 1920x1080");
    assert_eq!(refused(b"GIF89a\x01\x00\x01\x00", &spec), "wrong format: expected PNG or JPEG");
    assert_eq!(refused(b"", &spec), "wrong format: expected PNG or JPEG");
    assert!(refused(&good[..good.len() / 2], &spec).starts_with("not a readable image"));
    let small = ImageSpec { max_bytes: good.len() as u64, ..spec };
    assert!(refused(&good, &small).starts_with("file too large"));
}

#[test]
fn a_picture_of_the_api_fills_the_frame_undistorted_around_its_middle() {
    let finished = finish(&png(1344, 768), &ImageSpec::default()).expect("it is finished");
    assert_eq!(finished.format, ImageFormat::Png);
    let picture = decoded(&finished.bytes);
    assert_eq!(picture.dimensions(), (1920, 1080));
    // 1344x768 scaled to cover 1920x1080 is 1920x1097: the full width stays, 6 rows of 768 go at the top and at the bottom.
    let near = |found: u8, wanted: u8| found.abs_diff(wanted) <= 2;
    let [left, top, _] = picture.get_pixel(0, 0).0;
    let [right, bottom, _] = picture.get_pixel(1919, 1079).0;
    let [middle_x, middle_y, _] = picture.get_pixel(960, 540).0;
    assert!(near(left, 0) && near(right, 254), "{left} {right}");
    assert!(near(top, 2) && near(bottom, 252), "{top} {bottom}");
    assert!(near(middle_x, 127) && near(middle_y, 127), "{middle_x} {middle_y}");
}

#[test]
fn any_shape_is_cropped_to_cover() {
    for (width, height) in [(640, 1536), (1536, 640), (1024, 1024), (320, 180), (1920, 1080), (2, 2)] {
        let finished = finish(&png(width, height), &ImageSpec::default()).expect("it is finished");
        assert_eq!(decoded(&finished.bytes).dimensions(), (1920, 1080), "{width}x{height}");
    }
}

#[test]
fn a_png_that_would_be_too_large_becomes_a_jpeg() {
    let mut state = 1_u32;
    let noise = RgbImage::from_fn(1920, 1080, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [a, b, c, _] = state.to_be_bytes();
        Rgb([a, b, c])
    });
    let sent = encoded(&noise, image::ImageFormat::Png);
    let spec = ImageSpec { max_bytes: 4 * 1024 * 1024, ..ImageSpec::default() };
    let finished = finish(&sent, &spec).expect("it is finished");
    assert_eq!(finished.format, ImageFormat::Jpeg);
    assert!((finished.bytes.len() as u64) < spec.max_bytes);
    assert_eq!(check(&finished.bytes, &spec), Ok(()));
    let tiny = ImageSpec { max_bytes: 10_000, ..spec };
    assert!(matches!(finish(&sent, &tiny), Err(ImageDefect::TooLarge { .. })));
}

#[test]
fn what_is_no_picture_is_refused_without_being_unpacked() {
    let mut bomb = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bomb, 60_000, 60_000);
    encoder.set_color(::png::ColorType::Grayscale);
    drop(encoder.write_header().expect("a header"));
    for sent in [&b""[..], b"<html></html>", b"\x89PNG\r\n\x1a\n", &png(1344, 768)[..5_000], &bomb] {
        assert!(finish(sent, &ImageSpec::default()).is_err());
    }
}

#[test]
fn the_sum_is_that_of_the_file() {
    let finished = finish(&png(128, 128), &ImageSpec { width: 64, height: 64, ..ImageSpec::default() });
    let finished = finished.expect("it is finished");
    assert_eq!(finished.sha256, digest::sha256(&finished.bytes));
}

#[test]
fn a_picture_carries_its_story_in_either_format() {
    let story = story();
    let noisy = RgbImage::from_fn(1920, 1080, |x, y| {
        let mixed = x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(40_503)).rotate_left(x % 31);
        let [a, b, c, _] = mixed.wrapping_mul(2_246_822_519).to_be_bytes();
        Rgb([a, b, c])
    });
    let small = ImageSpec { max_bytes: 4 * 1024 * 1024, ..ImageSpec::default() };
    for (sent, spec, format) in [
        (png(1344, 768), ImageSpec::default(), ImageFormat::Png),
        (encoded(&noisy, image::ImageFormat::Png), small, ImageFormat::Jpeg),
    ] {
        let finished = finish(&sent, &spec).expect("it is finished");
        let texts::Read { format: found, width, height, texts: told } =
            texts::read(&finished.bytes).expect("it is read");
        assert_eq!((finished.format, found), (format, format));
        assert_eq!((width, height), (1920, 1080));
        let text = |keyword: &str| {
            told.iter().find(|(known, _)| known == keyword).map(|(_, text)| text.as_str()).unwrap_or_default()
        };
        assert_eq!(text("parameters"), story.parameters());
        assert_eq!(text("Title"), "Project 42, image 3");
        assert_eq!(text("Description"), "黃昏的狐狸");
        assert_eq!(text("Software"), texts::SOFTWARE);
        assert_eq!(texts::story(&told).as_ref(), Some(&story));
    }
}

#[test]
fn a_story_that_is_longer_than_a_jpeg_can_carry_loses_its_longest_text() {
    let mut long = story();
    long.recipe.left_out = vec!["x".repeat(100_000)];
    let exif = texts::exif(&long);
    assert!(exif.len() <= 65_000);
    let noise = encoded(&gradient(64, 64), image::ImageFormat::Png);
    let spec = ImageSpec { width: 64, height: 64, max_bytes: 3_000 };
    let finished = super::finish(&noise, &spec, Glance::default(), &long);
    let finished = finished.expect("a PNG with that story is too large, a JPEG without it is not");
    let texts::Read { format, texts: told, .. } = texts::read(&finished.bytes).expect("it is read");
    assert_eq!(format, ImageFormat::Jpeg);
    assert_eq!(texts::story(&told), None);
    assert!(told.iter().any(|(keyword, text)| keyword == "parameters" && text.starts_with("A fox at dusk")));
}

#[test]
fn a_file_without_a_story_has_none() {
    for (file, format) in
        [(png(64, 48), ImageFormat::Png), (encoded(&gradient(64, 48), image::ImageFormat::Jpeg), ImageFormat::Jpeg)]
    {
        let expected = texts::Read { format, width: 64, height: 48, texts: vec![] };
        assert_eq!(texts::read(&file), Ok(expected));
    }
    assert!(texts::read(b"GIF89a").is_err());
    assert!(texts::read(&png(64, 64)[..60]).is_err());
}

#[test]
fn a_picture_of_one_colour_is_not_finished() {
    let blank = encoded(&RgbImage::from_pixel(1344, 768, Rgb([10, 20, 200])), image::ImageFormat::Png);
    assert!(matches!(finish(&blank, &ImageSpec::default()), Err(ImageDefect::OneColour { .. })));
    // Test 6 lets a stored file of one colour pass: the glance is at what the API sends, not at files.
    let file = encoded(&RgbImage::from_pixel(1920, 1080, Rgb([0, 0, 255])), image::ImageFormat::Png);
    assert_eq!(check(&file, &ImageSpec::default()), Ok(()));
}
