use super::*;
use crate::generation_params::GenerationParams;
use crate::image_spec::ImageFormat;
use crate::outcome::Origin;

fn context() -> EventContext {
    EventContext {
        key: JobKey { job_id: Uuid::from_u128(0x0199_f3a2_7c1e_7b52_9f0e_2f6c_1d9a_4b10), project_id: 42 },
        trace: TraceContext::parse(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), None),
        time: OffsetDateTime::from_unix_timestamp(1_760_832_000).expect("the timestamp is in range"),
    }
}

fn asset(index: u32, origin: Origin) -> ImageState {
    ImageState::Completed(Box::new(Asset {
        id: Uuid::from_u128(u128::from(index)),
        index,
        file_path: crate::asset_path::default_path(42, index, ImageFormat::Png),
        uri: format!("file:///data/projects/42/assets/image_{index:03}.png"),
        width: 1920,
        height: 1080,
        format: ImageFormat::Png,
        size_bytes: 4_810_234,
        sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
        description: "A fox".into(),
        params: GenerationParams { prompt: "A fox, 4k quality".into(), ..GenerationParams::default() },
        seed: 787_078_103,
        origin,
    }))
}

fn failure(index: u32, code: ImageFailureCode) -> ImageState {
    ImageState::Failed(ImageFailure {
        index,
        description: "A fox".into(),
        code,
        message: "the prompt was rejected".into(),
        attempts: 1,
        retryable: code.is_retryable(),
    })
}

/// The event as JSON, which matches the schema of its kind.
fn to_pretty_json(event: &Event) -> String {
    let value: Value = serde_json::from_str(&event.body).expect("the body is JSON");
    let schema = crate::schema::event(event.kind);
    let validator = jsonschema::validator_for(schema.as_value()).expect("the schema is valid");
    assert_eq!(validator.iter_errors(&value).map(|error| error.to_string()).collect::<Vec<_>>(), Vec::<String>::new());
    format!("routing key: {}\n{}", event.routing_key(), serde_json::to_string_pretty(&value).expect("valid JSON"))
}

#[test]
fn event_bodies_match_the_contract() {
    let totals = Totals { cost_usd: 0.1 + 0.08, duration_ms: 25_310 };
    let images = [asset(1, Origin::Generated), asset(2, Origin::Cache), failure(3, ImageFailureCode::ContentPolicy)];
    insta::assert_snapshot!("started", to_pretty_json(&Event::started(&context(), 10)));
    insta::assert_snapshot!(
        "progress_completed",
        to_pretty_json(&Event::progress(&context(), 2, None, &Tally::from_images(&images)))
    );
    insta::assert_snapshot!(
        "progress_failed",
        to_pretty_json(&Event::progress(
            &context(),
            3,
            Some(ImageFailureCode::ContentPolicy),
            &Tally::from_images(&images)
        ))
    );
    insta::assert_snapshot!("completed", to_pretty_json(&Event::terminal(&context(), &images, None, totals, None)));
    let error = JobError { code: JobFailureCode::SuccessRateTooLow, message: "2 of 3 images, 3 needed".into() };
    insta::assert_snapshot!(
        "failed",
        to_pretty_json(&Event::terminal(&context(), &images, None, totals, Some(&error)))
    );
}

#[test]
fn schema_of_an_event_names_all_its_keys() {
    let totals = Totals { cost_usd: 0.18, duration_ms: 25_310 };
    let images = [asset(1, Origin::Generated), failure(2, ImageFailureCode::ContentPolicy)];
    let origin = RetryOrigin { retry_of: Uuid::nil(), original_indexes: vec![4, 5] };
    let error = JobError { code: JobFailureCode::Cancelled, message: "cancelled".into() };
    let context = EventContext {
        trace: TraceContext::parse(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), Some("a=b")),
        ..context()
    };
    let tally = Tally::from_images(&images);
    let events = [
        Event::started(&context, 2),
        Event::progress(&context, 2, Some(ImageFailureCode::ContentPolicy), &tally),
        Event::terminal(&context, &images, Some(&origin), totals, None),
        Event::terminal(&context, &images, Some(&origin), totals, Some(&error)),
    ];
    for event in events {
        let mut schema = crate::schema::event(event.kind);
        // No other keys than those of the schema, at any depth.
        close(&mut schema);
        let validator = jsonschema::validator_for(schema.as_value()).expect("the schema is valid");
        let body: Value = serde_json::from_str(&event.body).expect("the body is JSON");
        let errors: Vec<_> = validator.iter_errors(&body).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new());
        // And no schema of another kind.
        for other in [EventKind::Started, EventKind::Progress, EventKind::Completed, EventKind::Failed] {
            let schema = crate::schema::event(other);
            let validator = jsonschema::validator_for(schema.as_value()).expect("the schema is valid");
            assert_eq!(validator.is_valid(&body), other == event.kind);
        }
    }
}

fn close(schema: &mut Schema) {
    use schemars::transform::{Transform, transform_subschemas};
    if schema.get("properties").is_some() {
        schema.insert("additionalProperties".to_owned(), false.into());
    }
    transform_subschemas(&mut close as &mut dyn Transform, schema);
}

#[test]
fn event_keys_are_in_contract_order() {
    let body = Event::terminal(
        &context(),
        &[asset(1, Origin::Generated)],
        None,
        Totals { cost_usd: 0.02, duration_ms: 1 },
        None,
    )
    .body;
    let mut from = 0;
    for key in [
        "job_id",
        "total",
        "assets",
        "\"id\"",
        "index",
        "type",
        "status",
        "file_path",
        "sha256",
        "origin",
        "failures",
        "cost_usd",
    ] {
        let at = body[from..].find(key).unwrap_or_else(|| panic!("{key} not found after byte {from} of {body}"));
        from += at;
    }
}

#[test]
fn event_id_is_determined_by_job_type_and_index() {
    let job = context().key.job_id;
    assert_eq!(event_id(job, EventKind::Started, None), event_id(job, EventKind::Started, None));
    let mut ids: Vec<_> = (1..=200).map(|index| event_id(job, EventKind::Progress, Some(index))).collect();
    ids.extend([EventKind::Started, EventKind::Completed, EventKind::Failed].map(|kind| event_id(job, kind, None)));
    ids.push(event_id(Uuid::nil(), EventKind::Started, None));
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn event_kind_round_trips() {
    for kind in [EventKind::Started, EventKind::Progress, EventKind::Completed, EventKind::Failed] {
        assert_eq!(EventKind::parse(kind.as_str()), Some(kind));
    }
    assert_eq!(EventKind::parse("assets.generation"), None);
}
