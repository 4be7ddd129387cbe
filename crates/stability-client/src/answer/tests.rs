use proptest::prelude::*;

use super::*;

/// The first and the last bytes of every PNG.
const WHOLE: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xAE\x42\x60\x82";

fn json(family: Family, body: &str) -> Result<Pictures, Error> {
    decode(family, &HttpResponse { status: 200, body: body.to_owned().into(), ..HttpResponse::default() })
}

fn shown(found: Result<Pictures, Error>) -> String {
    match found {
        Ok(Pictures { pictures, withheld }) => {
            let pictures: Vec<_> = pictures
                .iter()
                .map(|picture| format!("{} bytes, seed {}", picture.image.len(), picture.seed))
                .collect();
            format!("{}, {withheld} withheld", pictures.join("; "))
        }
        Err(error) => error.kind().to_owned(),
    }
}

#[test]
fn only_a_finished_picture_of_v1_is_a_picture() {
    let check = |body: &str, expected: &str| assert_eq!(shown(json(Family::V1, body)), expected, "{body}");
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
        r#"{"artifacts":[{"base64":"/9j/2Q==","seed":1},{"finishReason":"CONTENT_FILTERED"},{"base64":"iVBORw0KGgoAAAAASUVORK5CYII=","seed":3}]}"#,
        "4 bytes, seed 1; 20 bytes, seed 3, 1 withheld",
    );
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
fn only_a_finished_picture_of_v2beta_is_a_picture() {
    let check = |body: &str, expected: &str| assert_eq!(shown(json(Family::V2Beta, body)), expected, "{body}");
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
fn a_picture_that_comes_as_it_is_has_its_facts_in_headers() {
    let check = |reason: Option<&str>, body: &'static [u8], expected: &str| {
        for family in [Family::V1, Family::V2Beta] {
            let answer = HttpResponse {
                status: 200,
                content_type: Some("image/png".to_owned()),
                finish_reason: reason.map(str::to_owned),
                seed: Some(7),
                body: body.into(),
                ..HttpResponse::default()
            };
            assert_eq!(shown(decode(family, &answer)), expected, "{reason:?}");
        }
    };
    check(Some("SUCCESS"), WHOLE, "20 bytes, seed 7, 0 withheld");
    check(None, WHOLE, "20 bytes, seed 7, 0 withheld");
    check(Some("CONTENT_FILTERED"), WHOLE, "filtered");
    check(Some("ERROR"), WHOLE, "unfinished");
    check(Some("MAYBE"), WHOLE, "undecodable");
    check(Some("SUCCESS"), b"", "undecodable");
    check(Some("SUCCESS"), &WHOLE[..15], "damaged");
}

#[test]
fn a_file_is_whole_where_it_ends_as_its_format_does() {
    let check = |image: &[u8], whole: bool| assert_eq!(is_whole(image), whole, "{image:?}");
    check(WHOLE, true);
    check(&WHOLE[..19], false);
    check(b"\xFF\xD8\xFF\xE0 and so on \xFF\xD9", true);
    check(b"\xFF\xD8\xFF\xE0 and so on", false);
    check(b"RIFF\x05\0\0\0WEBP!", true);
    check(b"RIFF\x06\0\0\0WEBP!", false);
    check(b"RIFF", false);
    check(b"GIF89a", false);
    check(b"", false);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(
        body in proptest::collection::vec(any::<u8>(), 0..1_000),
        content_type in proptest::option::of("[a-z/]{0,12}"),
        reason in proptest::option::of("\\PC{0,60}"),
        v1: bool,
    ) {
        let family = if v1 { Family::V1 } else { Family::V2Beta };
        let answer = HttpResponse { status: 200, content_type, finish_reason: reason, body: body.into(), ..HttpResponse::default() };
        let _ = decode(family, &answer);
    }
}
