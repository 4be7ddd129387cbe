use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::Map;

use super::*;
use crate::failure::{ImageFailureCode, JobFailureCode};

fn rules() -> Rules {
    Rules {
        engines: vec!["stable-diffusion-xl-1024-v1-0", "core"],
        engines_without_fast_upscaler: vec!["core"],
        style_presets: vec!["cinematic", "anime"],
        cfg_scale: 0.0..=35.0,
        steps: 10..=50,
    }
}

fn validator(schema: &Schema) -> Validator {
    jsonschema::validator_for(schema.as_value()).expect("the schema is valid")
}

/// Values that are valid for some key, or nearly so.
fn fixed_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!([]),
        json!({}),
        json!({"never": null}),
        json!(0),
        json!(-1),
        json!(1),
        json!(-0.0),
        json!(1.0),
        json!(6),
        json!(7),
        json!(0.5),
        json!(10.0),
        json!(50),
        json!(51),
        json!(35.000_001),
        json!(4_294_967_295_u32),
        json!(4_294_967_296_u64),
        json!(1_000_000),
        json!(1_000_000.1),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(9.3e18),
        json!(1e19),
        json!(1e300),
        json!(""),
        json!("lanczos"),
        json!("fast"),
        json!("core"),
        json!("anime"),
        json!("prefer"),
        json!(["A fox"]),
        json!([null]),
        json!([7]),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        proptest::sample::select(fixed_values()),
        any_text().prop_map(Value::from),
        any_time().prop_map(Value::from),
        any_uuid().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        any::<i64>().prop_map(|number| json!(number)),
    ]
}

fn any_text() -> impl Strategy<Value = String> {
    let space = "[\u{9}-\u{d} \u{85}\u{a0}\u{1680}\u{2000}-\u{200b}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}\u{180e}]{0,3}";
    let long = prop_oneof![Just(1usize), Just(199), Just(200), Just(201), 1_998..2_003usize];
    let inner = prop_oneof![
        3 => "[a-z狐\u{1F98A}]{1,4}",
        1 => long.prop_map(|length| "狐".repeat(length)),
        1 => any::<String>(),
        1 => Just("a\u{0}b".to_owned()),
        1 => Just(String::new()),
    ];
    (space, inner, space).prop_map(|(before, text, after)| before + &text + &after)
}

fn any_time() -> impl Strategy<Value = String> {
    let year = prop_oneof![
        Just("0000".to_owned()),
        Just("9999".to_owned()),
        Just("0001".to_owned()),
        Just("9998".to_owned()),
        Just("1900".to_owned()),
        "20[0-9]{2}"
    ];
    let offset = prop_oneof!["[Zz]", "[+-][0-2][0-9]:[0-6][0-9]", "[+-]23:59", ""];
    let time = ("[T t_]", "[0-2][0-9]:[0-6][0-9]:[0-6][0-9]", prop_oneof!["", "\\.[0-9]{1,12}", "\\."], offset);
    (year, "-[01][0-9]-[0-3][0-9]|-02-29|-12-31|-01-01", time).prop_map(
        |(year, date, (separator, time, fraction, offset))| format!("{year}{date}{separator}{time}{fraction}{offset}"),
    )
}

fn any_uuid() -> impl Strategy<Value = String> {
    let hyphenated = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}";
    prop_oneof![
        3 => hyphenated,
        1 => hyphenated.prop_map(|id| format!("{{{id}}}")),
        1 => ("[uU]rn:uuid:", hyphenated).prop_map(|(prefix, id)| prefix + &id),
        1 => "[0-9a-f]{32}",
        1 => "[0-9a-f-]{36}",
        1 => "[0-9a-fA-F]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{11}g",
    ]
}

/// A key that is absent, has one of these values, or any value.
fn key(valid: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![6 => Just(None), 12 => valid.prop_map(Some), 1 => any_value().prop_map(Some)]
}

fn required(valid: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![1 => Just(None), 30 => valid.prop_map(Some), 2 => any_value().prop_map(Some)]
}

fn object(entries: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> impl Strategy<Value = Value> {
    let (keys, values): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
    (values, prop_oneof![20 => Just(None), 1 => any_value().prop_map(Some)]).prop_map(move |(values, unknown)| {
        let known = keys.iter().zip(values).filter_map(|(key, value)| Some(((*key).to_owned(), value?)));
        Value::Object(known.chain(unknown.map(|value| ("sparkle".to_owned(), value))).collect::<Map<_, _>>())
    })
}

fn any_command() -> impl Strategy<Value = Value> {
    let texts = |count| proptest::collection::vec(any_text(), count).prop_map(|texts| json!(texts));
    let good_texts = || proptest::collection::vec("[a-z]{1,3}", 1..4).prop_map(|texts| json!(texts));
    let name = |names: &[&str]| proptest::sample::select(names.iter().map(|name| json!(name)).collect::<Vec<_>>());
    let config = object(vec![
        (
            "style_modifiers",
            key(prop_oneof![5 => good_texts(), 1 => texts(0..3), 1 => Just(json!(vec!["x"; 51]))]).boxed(),
        ),
        ("negative_prompt", key(any_text().prop_map(Value::from)).boxed()),
        ("max_concurrent", key((1..7u8).prop_map(|number| json!(number))).boxed()),
        ("engine", key(name(&["core", "stable-diffusion-xl-1024-v1-0"])).boxed()),
        ("upscaler", key(name(&["lanczos", "fast"])).boxed()),
        ("style_preset", key(name(&["cinematic", "anime"])).boxed()),
        ("cfg_scale", key((0.0..35.0).prop_map(|number| json!(number))).boxed()),
        ("steps", key((10..51u8).prop_map(|number| json!(number))).boxed()),
        ("seed", key(any::<u32>().prop_map(|number| json!(number))).boxed()),
        ("cache", key(name(&["never", "on_failure", "prefer"])).boxed()),
        ("min_success_rate", key((0.0..1.0).prop_map(|number| json!(number))).boxed()),
        ("max_cost_usd", key((0.0..1e6).prop_map(|number| json!(number))).boxed()),
        ("expires_at", key(any_time().prop_map(Value::from)).boxed()),
    ]);
    object(vec![
        ("job_id", required(any_uuid().prop_map(Value::from)).boxed()),
        ("project_id", required((1..i64::MAX).prop_map(|id| json!(id))).boxed()),
        (
            "image_descriptions",
            required(prop_oneof![5 => good_texts(), 1 => texts(0..3), 1 => Just(json!(vec!["x"; 201]))]).boxed(),
        ),
        ("config", key(config).boxed()),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn command_is_accepted_exactly_if_its_schema_allows_it(command in any_command()) {
        thread_local!(static SCHEMA: Validator = validator(&super::command(&rules())));
        let allowed = SCHEMA.with(|schema| schema.is_valid(&command));
        let parsed = Command::parse(command.to_string().as_bytes(), &rules());
        prop_assert_eq!(allowed, parsed.is_ok(), "{:?}", parsed);
    }

    #[test]
    fn cancellation_is_accepted_exactly_if_its_schema_allows_it(
        request in object(vec![
            ("job_id", required(any_uuid().prop_map(Value::from)).boxed()),
            ("reason", key(any_text().prop_map(Value::from)).boxed()),
        ])
    ) {
        thread_local!(static SCHEMA: Validator = validator(&cancel()));
        let allowed = SCHEMA.with(|schema| schema.is_valid(&request));
        let parsed = CancelRequest::parse(request.to_string().as_bytes());
        prop_assert_eq!(allowed, parsed.is_ok(), "{:?}", parsed);
    }

    #[test]
    fn single_value_is_accepted_exactly_if_the_schema_allows_it(
        key in proptest::sample::select(KEYS.to_vec()),
        value in any_value(),
    ) {
        thread_local!(static SCHEMA: Validator = validator(&command(&rules())));
        let command = command_with(key, value);
        let allowed = SCHEMA.with(|schema| schema.is_valid(&command));
        let parsed = Command::parse(command.to_string().as_bytes(), &rules());
        prop_assert_eq!(allowed, parsed.is_ok(), "{:?}", parsed);
    }
}

const KEYS: [&str; 17] = [
    "job_id",
    "project_id",
    "image_descriptions",
    "config",
    "config.style_modifiers",
    "config.negative_prompt",
    "config.max_concurrent",
    "config.engine",
    "config.upscaler",
    "config.style_preset",
    "config.cfg_scale",
    "config.steps",
    "config.seed",
    "config.cache",
    "config.min_success_rate",
    "config.max_cost_usd",
    "config.expires_at",
];

fn command_with(key: &str, value: Value) -> Value {
    let mut command = json!({"job_id": uuid::Uuid::nil(), "project_id": 1, "image_descriptions": ["A fox"]});
    match key.split_once('.') {
        Some((_, key)) => command["config"][key] = value,
        None => command[key] = value,
    }
    command
}

#[test]
fn each_edge_value_is_accepted_exactly_if_the_schema_allows_it() {
    let schema = validator(&command(&rules()));
    for key in KEYS {
        for value in fixed_values() {
            let command = command_with(key, value);
            let parsed = Command::parse(command.to_string().as_bytes(), &rules());
            assert_eq!(schema.is_valid(&command), parsed.is_ok(), "{command}: {parsed:?}");
        }
    }
}

#[test]
fn random_commands_are_of_both_kinds() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let schema = validator(&command(&rules()));
    let mut allowed = 0;
    for _ in 0..1_000 {
        let tree = any_command().new_tree(&mut runner).expect("a command");
        allowed += usize::from(schema.is_valid(&proptest::strategy::ValueTree::current(&tree)));
    }
    assert!((100..=900).contains(&allowed), "{allowed} of 1,000 commands are valid");
}

#[test]
fn event_schema_lists_the_failure_codes() {
    let codes = |schema: &Schema, pointer: &str| {
        let options = schema.pointer(pointer).and_then(Value::as_array).expect("a list of codes");
        options.iter().filter_map(|option| option["const"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let failed = event(EventKind::Failed);
    let image_codes = codes(&failed, "/properties/data/properties/failures/items/properties/code/oneOf");
    assert_eq!(image_codes, ImageFailureCode::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>());
    let job_codes = codes(&failed, "/properties/data/properties/error/properties/code/oneOf");
    assert_eq!(job_codes, JobFailureCode::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>());
}
