use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::rules::MAX_BODY_BYTES;

fn rules() -> Rules {
    Rules {
        engines: vec!["stable-diffusion-xl-1024-v1-0", "core"],
        engines_without_fast_upscaler: vec!["core"],
        style_presets: vec!["cinematic", "anime"],
        cfg_scale: 0.0..=35.0,
        steps: 10..=50,
    }
}

fn full_command() -> Value {
    json!({
        "job_id": "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10",
        "project_id": 42,
        "image_descriptions": ["A serene mountain landscape", " 一座寧靜的山景 "],
        "config": {
            "style_modifiers": ["cinematic lighting", "4k quality"],
            "negative_prompt": "blurry, low quality",
            "max_concurrent": 4,
            "engine": "stable-diffusion-xl-1024-v1-0",
            "upscaler": "lanczos",
            "style_preset": "cinematic",
            "cfg_scale": 8.0,
            "steps": 40,
            "seed": 0,
            "cache": "on_failure",
            "min_success_rate": 0.8,
            "max_cost_usd": 1.5
        }
    })
}

fn parse(value: &Value) -> Result<Command, InvalidCommand> {
    Command::parse(value.to_string().as_bytes(), &rules())
}

/// The full command with the value at `pointer` set to `value`.
fn full_command_with(pointer: &str, value: Value) -> Value {
    let mut command = full_command();
    let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer starts with a slash");
    command.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object").insert(key.to_owned(), value);
    command
}

#[test]
fn contract_example_is_parsed() {
    insta::assert_json_snapshot!(parse(&full_command()).expect("a valid command"));
}

#[test]
fn config_and_each_of_its_keys_is_optional() {
    let minimal = json!({"job_id": Uuid::nil(), "project_id": 1, "image_descriptions": ["x"]});
    let command = parse(&minimal).expect("a valid command");
    assert_eq!(command.config, JobConfig::default());
    assert!((command.config.min_success_rate() - 0.8).abs() < f64::EPSILON);
    for config in [json!(null), json!({}), json!({"style_modifiers": null, "negative_prompt": null, "seed": null})] {
        let mut same = minimal.clone();
        same["config"] = config;
        assert_eq!(parse(&same).as_ref(), Ok(&command));
    }
    let none = parse(&full_command_with("/config/style_modifiers", json!([]))).expect("a valid command");
    assert_eq!(none.config.style_modifiers, Some(vec![]), "an empty list differs from an absent one");
}

#[test]
fn fast_upscaler_is_refused_for_engines_with_larger_images() {
    let parse_with = |engine: Value, upscaler: &str| {
        let mut command = full_command_with("/config/engine", engine);
        command["config"]["upscaler"] = json!(upscaler);
        parse(&command).map(|command| command.config.upscaler).map_err(|error| error.to_string())
    };
    assert_eq!(parse_with(json!("stable-diffusion-xl-1024-v1-0"), "fast"), Ok(Some(Upscaler::Fast)));
    assert_eq!(parse_with(json!(null), "fast"), Ok(Some(Upscaler::Fast)));
    assert_eq!(parse_with(json!("core"), "lanczos"), Ok(Some(Upscaler::Lanczos)));
    let expected =
        "config.upscaler: \"fast\" is not allowed; lanczos: the fast upscaler does not take the images of core";
    assert_eq!(parse_with(json!("core"), "fast"), Err(expected.to_owned()));
}

#[test]
fn violation_names_field_value_and_allowed_range() {
    let check = |pointer: &str, value: Value, expected: &str| {
        let error = parse(&full_command_with(pointer, value)).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    };
    check("/job_id", json!("42"), "job_id: \"42\" is not allowed; a UUID");
    check("/job_id", json!(null), "job_id: missing; a UUID");
    let project = "a whole number from 1 to 9223372036854775807";
    for (value, shown) in [(json!(0), "0"), (json!(-1), "-1"), (json!(1.5), "1.5"), (json!("7"), "\"7\"")] {
        check("/project_id", value, &format!("project_id: {shown} is not allowed; {project}"));
    }
    check("/image_descriptions", json!([]), "image_descriptions: a list of 0 is not allowed; a list of 1 to 200 texts");
    check(
        "/image_descriptions",
        json!(vec!["x"; 201]),
        "image_descriptions: a list of 201 is not allowed; a list of 1 to 200 texts",
    );
    check("/image_descriptions", json!("x"), "image_descriptions: \"x\" is not allowed; a list of 1 to 200 texts");
    check("/image_descriptions", json!(null), "image_descriptions: missing; a list of 1 to 200 texts");
    let text = "a text of 1 to 2000 characters after trimming";
    check(
        "/image_descriptions",
        json!(["x", "  "]),
        &format!("image_descriptions[1]: 0 characters is not allowed; {text}"),
    );
    check(
        "/image_descriptions",
        json!(["é".repeat(2001)]),
        &format!("image_descriptions[0]: 2001 characters is not allowed; {text}"),
    );
    check("/image_descriptions", json!([7]), &format!("image_descriptions[0]: 7 is not allowed; {text}"));
    check(
        "/image_descriptions",
        json!(["a\0b"]),
        &format!("image_descriptions[0]: a NUL character is not allowed; {text}"),
    );
    check("/config", json!([]), "config: a list of 0 is not allowed; a JSON object");
    check("/config/max_concurrent", json!(7), "config.max_concurrent: 7 is not allowed; a whole number from 1 to 6");
    check("/config/max_concurrent", json!(0), "config.max_concurrent: 0 is not allowed; a whole number from 1 to 6");
    check(
        "/config/engine",
        json!("dall-e"),
        "config.engine: \"dall-e\" is not allowed; one of stable-diffusion-xl-1024-v1-0, core",
    );
    check(
        "/config/style_preset",
        json!("baroque"),
        "config.style_preset: \"baroque\" is not allowed; one of cinematic, anime",
    );
    check("/config/upscaler", json!("bicubic"), "config.upscaler: \"bicubic\" is not allowed; lanczos or fast");
    check("/config/cfg_scale", json!(35.1), "config.cfg_scale: 35.1 is not allowed; a number from 0 to 35");
    check("/config/steps", json!(9), "config.steps: 9 is not allowed; a whole number from 10 to 50");
    check("/config/steps", json!(40.5), "config.steps: 40.5 is not allowed; a whole number from 10 to 50");
    check(
        "/config/seed",
        json!(4_294_967_296_u64),
        "config.seed: 4294967296 is not allowed; a whole number from 0 to 4294967295",
    );
    check("/config/cache", json!("always"), "config.cache: \"always\" is not allowed; never, on_failure or prefer");
    check(
        "/config/min_success_rate",
        json!(1.01),
        "config.min_success_rate: 1.01 is not allowed; a number from 0 to 1",
    );
    check("/config/max_cost_usd", json!(-1), "config.max_cost_usd: -1 is not allowed; a number from 0 to 1000000");
    check(
        "/config/style_modifiers",
        json!(["x".repeat(100), {}]),
        "config.style_modifiers[1]: an object is not allowed; a text of 1 to 2000 characters after trimming",
    );
    check("/extra", json!(1), "extra: unknown key; allowed: job_id, project_id, image_descriptions, config");
}

#[test]
fn unknown_keys_are_escaped_and_limited_to_twenty() {
    let error = parse(&full_command_with("/a\0b", json!(1))).expect_err("the key is unknown");
    assert!(error.to_string().starts_with("a\\0b: unknown key"), "{error}");
    let mut many = full_command_with("/project_id", json!(42));
    for number in 0..1_000 {
        many[format!("key{number}")] = json!(number);
    }
    let error = parse(&many).expect_err("the keys are unknown");
    assert_eq!(error.violations.len(), 21);
    assert_eq!(error.violations.last().map(String::as_str), Some("and 980 more"));
    assert!(error.key.is_some());
}

#[test]
fn all_broken_rules_are_reported_at_once() {
    let error = parse(&json!({"job_id": 1, "config": {"steps": 1, "speed": 2}})).expect_err("the command is invalid");
    insta::assert_snapshot!(error.violations.join("\n"));
}

#[test]
fn job_key_is_kept_if_both_ids_are_readable() {
    let key = |value: Value| parse(&value).expect_err("the command is invalid").key;
    let both = JobKey { job_id: Uuid::from_u128(0x0199_f3a2_7c1e_7b52_9f0e_2f6c_1d9a_4b10), project_id: 42 };
    assert_eq!(key(full_command_with("/image_descriptions", json!([]))), Some(both));
    assert_eq!(key(full_command_with("/config/steps", json!(1))), Some(both));
    assert_eq!(key(full_command_with("/job_id", json!("x"))), None);
    assert_eq!(key(full_command_with("/project_id", json!(0))), None);
}

#[test]
fn unparsable_body_is_rejected_with_a_reason() {
    let check = |body: &[u8], expected: &str| {
        let error = Command::parse(body, &rules()).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    };
    check(b"", "body: not JSON in UTF-8");
    check(b"\xff\xfe{}", "body: not JSON in UTF-8");
    check(b"[1]", "body: a list of 1 is not allowed; a JSON object");
    check(b"{\"job_id\": NaN}", "body: not JSON in UTF-8");
    check("[".repeat(100_000).as_bytes(), "body: not JSON in UTF-8");
    check(&vec![b' '; MAX_BODY_BYTES + 1], "body: 4194305 bytes is not allowed; at most 4194304 bytes");
}

#[test]
fn key_order_does_not_change_the_command() {
    let other = br#"{ "config": {"steps":40, "seed": 7}, "image_descriptions": [" x "],
        "project_id": 1, "job_id": "00000000-0000-0000-0000-000000000000" }"#;
    let one = br#"{"job_id":"00000000-0000-0000-0000-000000000000","project_id":1,"image_descriptions":["x"],"config":{"seed":7,"steps":40}}"#;
    assert_eq!(Command::parse(one, &rules()), Command::parse(other, &rules()));
}

proptest! {
    #[test]
    fn parser_never_panics(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Command::parse(&body, &rules());
    }

    #[test]
    fn serialized_command_parses_to_the_same_command(
        job in any::<u128>(), project_id in 1..=i64::MAX,
        descriptions in proptest::collection::vec("[\\PC&&[^\\s]]{1,40}", 1..20),
        modifiers in proptest::option::of(proptest::collection::vec("[a-z]{1,10}", 0..5)),
        cfg_scale in proptest::option::of(0.0..=35.0_f64), steps in proptest::option::of(10..=50_u8),
        seed in proptest::option::of(any::<u32>()), min_success_rate in proptest::option::of(0.0..=1.0_f64),
    ) {
        let command = Command {
            job_id: Uuid::from_u128(job),
            project_id,
            image_descriptions: descriptions,
            config: JobConfig { style_modifiers: modifiers, cfg_scale, steps, seed, min_success_rate, ..JobConfig::default() },
        };
        let body = serde_json::to_vec(&command).expect("a command serialises");
        prop_assert_eq!(Command::parse(&body, &rules()), Ok(command));
    }
}
