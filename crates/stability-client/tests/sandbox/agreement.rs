//! Client and sandbox take and refuse the same v2beta options, those of the schema. The schema was transcribed from the
//! public reference, so that client and sandbox cannot share a misreading.

use std::time::Duration;

use bytes::Bytes;
use reqwest::multipart::Form;
use serde_json::{Value, json};
use stability_client::{
    ApiVersion, AspectRatio, Client, Credits, Dimensions, Engine, FastUpscale, InvalidRequest, OutputFormat,
    StylePreset, TextToImage, UnknownName,
};
use stability_sandbox::{Sandbox, Settings};

const SCHEMA: &str = include_str!("../../src/request/text-to-image-v2beta.schema.json");

/// Each option with values at and beyond its limits. `null`: the option is not set.
fn options() -> Vec<(&'static str, Value)> {
    let mut options = vec![("seed", Value::Null)];
    options.extend(StylePreset::ALL.iter().map(|preset| ("style_preset", json!(preset.as_str()))));
    options.extend(["png", "jpeg", "webp"].map(|format| ("output_format", json!(format))));
    options.extend([0.0, 0.9, 1.0, 7.5, 10.0, 10.1, 35.0].map(|cfg_scale| ("cfg_scale", json!(cfg_scale))));
    options.extend([0, 7, 4_294_967_294_u32, 4_294_967_295].map(|seed| ("seed", json!(seed))));
    options.extend([0, 1, 10_000, 10_001].map(|length| ("prompt", json!("x".repeat(length)))));
    options.extend([0, 1, 10_000, 10_001].map(|length| ("negative_prompt", json!("x".repeat(length)))));
    options.extend(AspectRatio::ALL.iter().map(|ratio| ("aspect_ratio", json!(ratio.as_str()))));
    options.extend(["4:3", "16:10"].map(|ratio| ("aspect_ratio", json!(ratio))));
    // Options of v1.
    options.extend([("steps", json!(40)), ("samples", json!(2))]);
    options
}

fn build(engine: Engine, name: &str, value: &Value) -> Result<TextToImage, InvalidRequest> {
    let text = value.as_str().unwrap_or_default();
    let prompt = if name == "prompt" { text } else { "A fox" };
    let mut dimensions = engine.dimensions_for(16, 9);
    if name == "aspect_ratio" {
        let ratio =
            text.parse().map_err(|error: UnknownName| InvalidRequest::new("aspect_ratio", text, error.to_string()));
        dimensions = Dimensions::AspectRatio(ratio?);
    }
    let request = TextToImage::new(engine, dimensions, prompt)?;
    match name {
        "steps" => request.steps(40),
        "samples" => request.samples(2),
        "style_preset" => request.style_preset(text.parse().expect("a known preset")),
        "output_format" => request.output_format(text.parse::<OutputFormat>().expect("a known format")),
        "cfg_scale" => request.cfg_scale(value.as_f64().expect("a number")),
        "seed" if !value.is_null() => {
            request.seed(u32::try_from(value.as_u64().expect("a number")).expect("a seed has 32 bits"))
        }
        "negative_prompt" => request.negative_prompt(text),
        _ => Ok(request),
    }
}

/// The service and the form fields of a request that does not come from the client.
fn fields(engine: Engine, name: &str, value: &Value) -> (String, Value) {
    let is_model = !matches!(engine, Engine::Core | Engine::Ultra);
    let service = if is_model { "sd3" } else { engine.id() }.to_owned();
    let mut fields = json!({"prompt": "A fox"});
    if is_model {
        fields["model"] = json!(engine.id());
    }
    if !value.is_null() {
        fields[name] = value.clone();
    }
    (service, fields)
}

fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_mins(1)).build().expect("an HTTP client")
}

/// Whether the sandbox makes an image of these fields.
async fn is_taken(http: &reqwest::Client, sandbox: &Sandbox, service: &str, fields: &Value) -> bool {
    let mut form = Form::new();
    for (name, value) in fields.as_object().expect("an object") {
        form = form.text(name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    let url = format!("{}v2beta/stable-image/generate/{service}", sandbox.base_url());
    let request = http.post(url).bearer_auth("sk-sandbox").header("accept", "image/*");
    let status = request.multipart(form).send().await.expect("the sandbox responds").status();
    assert!(matches!(status.as_u16(), 200 | 400), "{service}: {status}");
    status.is_success()
}

#[tokio::test]
async fn schema_client_and_sandbox_agree_on_every_v2beta_option() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema file is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a valid JSON schema");
    let settings = Settings { limit: 100_000, ..Settings::default() };
    let (http, sandbox) = (http_client(), Sandbox::start(settings).await.expect("the sandbox starts"));
    // Only the status counts.
    sandbox.set_prepared_images(vec![Bytes::from_static(b"an image")]);
    let engines = Engine::ALL.iter().filter(|engine| engine.api_version() == ApiVersion::V2Beta);
    for engine in engines {
        for (name, value) in options() {
            let (service, fields) = fields(*engine, name, &value);
            let mut instance = fields.clone();
            instance["service"] = json!(service);
            let shown: String = format!("{engine} {name}: {value}").chars().take(60).collect();
            let expected = validator.is_valid(&instance);
            assert_eq!(build(*engine, name, &value).is_ok(), expected, "client, {shown}");
            assert_eq!(is_taken(&http, &sandbox, &service, &fields).await, expected, "sandbox, {shown}");
        }
    }
}

/// The credits of the reference's table, transcribed like the schema. Client and sandbox charge them.
#[tokio::test]
async fn client_and_sandbox_have_the_prices_of_the_reference() {
    let settings = Settings { limit: 100_000, sketch: true, ..Settings::default() };
    let sandbox = Sandbox::start(settings).await.expect("the sandbox starts");
    let client = Client::builder("sk-sandbox").base_url(sandbox.base_url()).build().expect("a client");
    let charged = async |before: f64| before - client.balance().await.expect("a balance").credits;
    let prices = [
        ("stable-diffusion-xl-1024-v1-0", 2.0),
        ("core", 3.0),
        ("ultra", 8.0),
        ("sd3.5-large", 6.5),
        ("sd3.5-large-turbo", 4.0),
        ("sd3.5-medium", 3.5),
        ("sd3.5-flash", 2.5),
    ];
    assert_eq!(prices.map(|(name, _)| name).as_slice(), Engine::ALL.iter().map(Engine::id).collect::<Vec<_>>());
    let mut image = None;
    for (name, price) in prices {
        let engine: Engine = name.parse().expect("a known engine");
        assert_eq!(engine.price().map(Credits::as_f64), Some(price), "client, {name}");
        sandbox.set_credits(100.0);
        let request = TextToImage::new(engine, engine.dimensions_for(16, 9), "A fox").expect("a valid request");
        let generated = client.generate(&request).await.expect("an image").into_first();
        assert!((charged(100.0).await - price).abs() < 1e-9, "sandbox, {name}");
        // Of which engines the fast upscaler takes the images follows from their size.
        let upscale = FastUpscale::new(generated.bytes);
        assert_eq!(upscale.is_ok(), engine.fits_fast_upscaler(), "{name}");
        image = upscale.ok().or(image);
    }
    assert!((FastUpscale::PRICE.as_f64() - 2.0).abs() < 1e-9);
    sandbox.set_credits(100.0);
    client.upscale(&image.expect("an image that fits")).await.expect("an image");
    assert!((charged(100.0).await - 2.0).abs() < 1e-9);
}

#[test]
fn schema_has_the_rows_of_the_reference() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema file is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a valid JSON schema");
    let check = |service: &str, model: Option<&str>, name: &str, value: Value, expected: bool| {
        let mut instance = json!({"service": service, "prompt": "A fox", name: value});
        if let Some(model) = model {
            instance["model"] = json!(model);
        }
        assert_eq!(validator.is_valid(&instance), expected, "{instance}");
    };
    for (service, model) in
        [("core", None), ("ultra", None), ("sd3", Some("sd3.5-large")), ("sd3", Some("sd3.5-flash"))]
    {
        let is_sd3 = model.is_some();
        check(service, model, "style_preset", json!("anime"), true);
        check(service, model, "style_preset", json!("baroque"), false);
        check(service, model, "cfg_scale", json!(5), is_sd3);
        check(service, model, "cfg_scale", json!(11), false);
        check(service, model, "output_format", json!("jpeg"), true);
        check(service, model, "output_format", json!("webp"), !is_sd3);
        check(service, model, "steps", json!(40), false);
    }
    check("core", Some("sd3.5-large"), "seed", json!(1), false);
    check("sd3", Some("sd3"), "seed", json!(1), false);
}
