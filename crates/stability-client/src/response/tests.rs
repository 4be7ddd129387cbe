use proptest::prelude::*;

use super::*;

/// The start and end markers of a PNG file.
const COMPLETE_PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xAE\x42\x60\x82";

fn decode_json(family: ApiVersion, body: &str) -> Result<DecodedImages, Error> {
    decode(family, &HttpResponse { status: 200, body: body.to_owned().into(), ..HttpResponse::default() })
}

fn describe(found: Result<DecodedImages, Error>) -> String {
    match found {
        Ok(DecodedImages { images: pictures, withheld }) => {
            let pictures: Vec<_> = pictures
                .iter()
                .map(|picture| format!("{} bytes, seed {}", picture.bytes.len(), picture.seed))
                .collect();
            format!("{}, {withheld} withheld", pictures.join("; "))
        }
        Err(error) => error.kind().to_owned(),
    }
}

#[test]
fn v1_response_yields_only_finished_images() {
    let check =
        |body: &str, expected: &str| assert_eq!(describe(decode_json(ApiVersion::V1, body)), expected, "{body}");
    check(
        r#"{"artifacts":[{"base64":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":7,"finishReason":"SUCCESS"}]}"#,
        "20 bytes, seed 7, 0 withheld",
    );
    check(r#"{"artifacts":[{"base64":"iVBORw0KGgoAAAAASUVORK5CYII="}]}"#, "20 bytes, seed 0, 0 withheld");
    check(
        r#"{"artifacts":[{"base64":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":7,"finishReason":"CONTENT_FILTERED"}]}"#,
        "filtered",
    );
    check(r#"{"artifacts":[{"base64":null,"finishReason":"CONTENT_FILTERED"}]}"#, "filtered");
    check(r#"{"artifacts":[{"base64":"iVBORw0KGgoAAAAASUVORK5CYII\u003d","seed":7}]}"#, "20 bytes, seed 7, 0 withheld");
    check(r#"{"artifacts":[{"base64":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":7,"finishReason":"ERROR"}]}"#, "unfinished");
    check(
        r#"{"artifacts":[{"base64":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":7,"finishReason":"MAYBE"}]}"#,
        "undecodable",
    );
    check(
        r#"{"artifacts":[{"base64":"/9j/2gACcHj/2Q==","seed":1},{"finishReason":"CONTENT_FILTERED"},{"base64":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":3}]}"#,
        "10 bytes, seed 1; 20 bytes, seed 3, 1 withheld",
    );
    // A bad image among good ones is withheld; the good ones were paid for.
    for bad in ["aGVsbG8=", "not base64!", ""] {
        check(
            &format!(
                r#"{{"artifacts":[{{"base64":"{bad}"}},{{"base64":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":3}},{{"finishReason":"MAYBE"}}]}}"#
            ),
            "20 bytes, seed 3, 2 withheld",
        );
    }
    check(r#"{"artifacts":[{"finishReason":"ERROR"},{"finishReason":"CONTENT_FILTERED"}]}"#, "unfinished");
    check(r#"{"artifacts":[{"base64":"not base64!"}]}"#, "undecodable");
    check(r#"{"artifacts":[{"base64":""}]}"#, "undecodable");
    check(r#"{"artifacts":[{"base64":"aGVsbG8="}]}"#, "damaged");
    check(r#"{"artifacts":[]}"#, "undecodable");
    check(r#"{"artifacts":[{"base64":"aGVsbG"#, "undecodable");
    check("{}", "undecodable");
    check("<html>hello</html>", "undecodable");
    check("", "undecodable");
}

#[test]
fn v2beta_response_yields_only_finished_images() {
    let check =
        |body: &str, expected: &str| assert_eq!(describe(decode_json(ApiVersion::V2Beta, body)), expected, "{body}");
    check(
        r#"{"image":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":7,"finish_reason":"SUCCESS"}"#,
        "20 bytes, seed 7, 0 withheld",
    );
    check(r#"{"image":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":7,"finish_reason":"CONTENT_FILTERED"}"#, "filtered");
    check(r#"{"finish_reason":"ERROR"}"#, "unfinished");
    check(r#"{"seed":7,"finish_reason":"SUCCESS"}"#, "undecodable");
    check(r#"{"artifacts":[]}"#, "undecodable");
    check("null", "undecodable");
}

#[test]
fn binary_response_takes_seed_and_finish_reason_from_headers() {
    let check = |reason: Option<&str>, body: &'static [u8], expected: &str| {
        for family in [ApiVersion::V1, ApiVersion::V2Beta] {
            let answer = HttpResponse {
                status: 200,
                content_type: Some("image/png".to_owned()),
                finish_reason: reason.map(str::to_owned),
                seed: Some(7),
                body: body.into(),
                ..HttpResponse::default()
            };
            assert_eq!(describe(decode(family, &answer)), expected, "{reason:?}");
        }
    };
    check(Some("SUCCESS"), COMPLETE_PNG, "20 bytes, seed 7, 0 withheld");
    check(None, COMPLETE_PNG, "20 bytes, seed 7, 0 withheld");
    check(Some("CONTENT_FILTERED"), COMPLETE_PNG, "filtered");
    check(Some("ERROR"), COMPLETE_PNG, "unfinished");
    check(Some("MAYBE"), COMPLETE_PNG, "undecodable");
    check(Some("SUCCESS"), b"", "undecodable");
    check(Some("SUCCESS"), &COMPLETE_PNG[..15], "damaged");
}

#[test]
fn file_without_end_marker_is_incomplete() {
    let check = |image: &[u8], whole: bool| assert_eq!(is_complete(image), whole, "{image:?}");
    check(COMPLETE_PNG, true);
    check(&COMPLETE_PNG[..19], false);
    let jpeg = b"\xFF\xD8\xFF\xE1\0\x0A preview\xFF\xDA\0\x04..pixels\xFF\xD9";
    check(jpeg, true);
    for length in 0..jpeg.len() {
        check(&jpeg[..length], false);
    }
    // Cut after the end marker of a preview in the first segment.
    check(b"\xFF\xD8\xFF\xE1\x20\0\xFF\xD8 preview\xFF\xD9", false);
    check(b"\xFF\xD8\xFF\xE0 and so on \xFF\xD9", false);
    check(b"RIFF\x05\0\0\0WEBP!", true);
    check(b"RIFF\x06\0\0\0WEBP!", false);
    check(b"RIFF", false);
    check(b"GIF89a", false);
    check(b"", false);
}

proptest! {
    #[test]
    fn decoder_never_panics(
        body in proptest::collection::vec(any::<u8>(), 0..1_000),
        content_type in proptest::option::of("[a-z/]{0,12}"),
        reason in proptest::option::of("\\PC{0,60}"),
        v1: bool,
    ) {
        let family = if v1 { ApiVersion::V1 } else { ApiVersion::V2Beta };
        let answer = HttpResponse { status: 200, content_type, finish_reason: reason, body: body.into(), ..HttpResponse::default() };
        let _ = decode(family, &answer);
    }
}
