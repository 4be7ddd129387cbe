use secrecy::ExposeSecret;

use super::*;

fn load(pairs: &[(&str, &str)]) -> Result<Settings, SettingError> {
    Settings::from_source(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

#[test]
fn defaults_match_the_contract() {
    let settings = load(&[]).expect("defaults are valid");
    assert_eq!(settings.amqp_url.expose_secret(), "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!(settings.database_url.expose_secret(), "sqlite://data/asset-worker.db?mode=rwc");
    let StorageRoot::Folder(folder) = &settings.storage_root else { panic!("{:?}", settings.storage_root) };
    assert!(folder.is_absolute() && folder.ends_with("data/assets"));
    assert!(settings.stability.api_key.is_none());
    assert_eq!(settings.stability.base_url.as_str(), "https://api.stability.ai/");
    assert_eq!(settings.stability.max_concurrent.get(), 4);
    assert_eq!(settings.stability.rate_limit.get(), 150);
    assert_eq!(settings.stability.timeout, Duration::from_mins(1));
    assert_eq!(settings.stability.retry_delays, [2, 5, 10].map(Duration::from_secs));
    assert_eq!(settings.stability.lockout, Duration::from_mins(1));
    assert_eq!(settings.image, ImageSpec::default());
    assert_eq!(settings.steps, 40);
    assert_eq!(settings.jobs.max_in_flight.get(), 2);
    assert_eq!(settings.jobs.max_attempts.get(), 3);
    assert_eq!(settings.jobs.retry_delays, [30, 120].map(Duration::from_secs));
    assert_eq!(settings.shutdown_grace, Duration::from_secs(25));
    assert_eq!(settings.http_addr.to_string(), "0.0.0.0:8080");
    assert_eq!(settings.log_format, None);
    assert_eq!(settings.log_filter, None);
}

#[test]
fn invalid_value_error_names_variable_and_allowed_values() {
    let check = |name: &str, value: &str, expected: &str| {
        assert_eq!(load(&[(name, value)]).expect_err(expected).to_string(), expected);
    };
    check(
        "STABILITY_MAX_CONCURRENT",
        "0",
        "STABILITY_MAX_CONCURRENT: \"0\" is not allowed; a whole number from 1 to 64",
    );
    check(
        "STABILITY_RATE_LIMIT",
        "fast",
        "STABILITY_RATE_LIMIT: \"fast\" is not allowed; a whole number from 1 to 100000",
    );
    check(
        "STABILITY_TIMEOUT",
        "60",
        "STABILITY_TIMEOUT: \"60\" is not allowed; a duration from 1s to 300s, such as 500ms, 30s or 2m",
    );
    check(
        "STABILITY_RETRY_DELAYS",
        "2s,,5s",
        "STABILITY_RETRY_DELAYS: \"2s,,5s\" is not allowed; 1 to 10 durations of at most one hour, separated by commas, such as 2s,5s,10s, or none",
    );
    check(
        "WORKER_DAILY_BUDGET_USD",
        "0.01",
        "WORKER_DAILY_BUDGET_USD: \"0.01\" is not allowed; at least the price of one image, 0.02",
    );
    check(
        "STABILITY_ENGINE",
        "stable-diffusion-v1-6",
        "STABILITY_ENGINE: \"stable-diffusion-v1-6\" is not allowed; one of stable-diffusion-xl-1024-v1-0, core, ultra, sd3.5-large, sd3.5-large-turbo, sd3.5-medium, sd3.5-flash",
    );
    check("IMAGE_CFG_SCALE", "NaN", "IMAGE_CFG_SCALE: \"NaN\" is not allowed; a number from 0 to 35");
    check("HTTP_ADDR", "8080", "HTTP_ADDR: \"8080\" is not allowed; an address and a port, such as 0.0.0.0:8080");
    check("LOG_FORMAT", "xml", "LOG_FORMAT: \"xml\" is not allowed; text or json");
    check(
        "STABILITY_BASE_URL",
        "ftp://x",
        "STABILITY_BASE_URL: \"ftp://x\" is not allowed; an http:// or https:// URL without credentials",
    );
    check(
        "ASSET_STORAGE_URL",
        "data",
        "ASSET_STORAGE_URL: \"data\" is not allowed; a file:// URL with an absolute path, or s3://bucket/prefix",
    );
}

#[test]
fn secret_values_never_appear_in_errors_or_debug_output() {
    for (name, value) in [
        ("AMQP_URL", "hunter2"),
        ("AMQP_URL", "amqp://u:hunter2@broker:notaport/"),
        ("DATABASE_URL", "mysql://u:hunter2@x/y"),
        ("DATABASE_URL", "postgres://u:hunter2/x#y@db/z"),
        ("STABILITY_API_KEY", "hunter2 é"),
        ("STABILITY_API_KEY_FILE", "sk-hunter2"),
    ] {
        let error = load(&[(name, value)]).expect_err("the value is rejected");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        assert!(error.to_string().starts_with(name), "{error}");
    }
    let settings =
        load(&[("STABILITY_API_KEY", "hunter2"), ("AMQP_URL", "amqp://u:hunter2@x/")]).expect("valid settings");
    assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
}

#[test]
fn redacted_values_contain_no_secrets() {
    let pairs = [
        ("STABILITY_API_KEY", "sk-hunter2"),
        ("AMQP_URL", "amqp://pipeline:hunter2@broker:5672/assets"),
        ("DATABASE_URL", "postgres://worker:hunter2@db/assets?sslpassword=hunter2"),
        ("IMAGE_STEPS", "30"),
    ];
    let in_force = load(&pairs).expect("valid settings").redacted_values;
    let check = |name: &str, expected: &str| {
        let shown = in_force.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        assert_eq!(shown, Some(expected), "{name}");
    };
    check("AMQP_URL", "amqp://pipeline:***@broker:5672/assets");
    check("DATABASE_URL", "postgres://worker:***@db/assets");
    check("STABILITY_API_KEY", "(set)");
    check("IMAGE_STEPS", "30");
    check("STABILITY_TIMEOUT", "60s");
    check("LOG_FORMAT", "(not set)");
    assert_eq!(in_force.len(), ALL.len());
}

#[test]
fn secret_is_read_from_variable_or_file_but_not_both() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("key");
    std::fs::write(&file, "sk-from-file\n").expect("key file is written");
    let path = file.to_str().expect("path is UTF-8");
    let settings = load(&[("STABILITY_API_KEY_FILE", path)]).expect("valid settings");
    assert_eq!(settings.stability.api_key.expect("key is set").expose_secret(), "sk-from-file");
    let both =
        load(&[("STABILITY_API_KEY_FILE", path), ("STABILITY_API_KEY", "x")]).expect_err("both variables are set");
    assert_eq!(both.to_string(), "STABILITY_API_KEY: set together with STABILITY_API_KEY_FILE; only one of them");
    let gone = load(&[("STABILITY_API_KEY_FILE", "/nowhere/key")]).expect_err("file does not exist");
    assert!(
        gone.to_string()
            .starts_with("STABILITY_API_KEY_FILE: \"/nowhere/key\" is not allowed; the path of a readable file"),
        "{gone}"
    );
}

#[test]
fn empty_value_is_unset_and_none_is_an_empty_list() {
    let settings = load(&[("STABILITY_TIMEOUT", " "), ("STABILITY_RETRY_DELAYS", "none"), ("STABILITY_LOCKOUT", "0")])
        .expect("valid settings");
    assert_eq!(settings.stability.timeout, Duration::from_mins(1));
    assert!(settings.stability.retry_delays.is_empty());
    assert!(settings.stability.lockout.is_zero());
}

#[test]
fn last_retry_delay_repeats() {
    let jobs = load(&[]).expect("valid settings").jobs;
    let waits: Vec<_> = (1..=4).map(|attempts| jobs.job_retry_delay(attempts).as_secs()).collect();
    assert_eq!(waits, [30, 120, 120, 120]);
}

#[test]
fn documentation_lists_every_setting_with_its_default() {
    let page = include_str!("../../../../docs/configuration.md");
    for setting in ALL {
        let row = page.lines().find(|line| line.starts_with('|') && line.contains(&format!("`{}`", setting.name)));
        let row = row.unwrap_or_else(|| panic!("docs/configuration.md has no row for {}", setting.name));
        let shown = row.split('|').nth(2).unwrap_or_default();
        // Without a fixed default, the page describes the behaviour in words.
        let expected = if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
        assert!(
            shown.contains(&expected),
            "docs/configuration.md shows a different default for {}: {row}",
            setting.name
        );
        let marked = row.split('|').nth(1).is_some_and(|name| name.contains('*'));
        assert_eq!(
            marked, setting.secret,
            "docs/configuration.md must mark exactly the settings that can be read from a file: {row}"
        );
    }
    let settings = page
        .split("## Settings")
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .expect("docs/configuration.md has a Settings section");
    let rows = settings.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, ALL.len(), "docs/configuration.md lists a setting that does not exist");
}

#[test]
fn bucket_uses_aws_variables_and_hides_their_secrets() {
    let source = |name: &str| match name {
        "ASSET_STORAGE_URL" => Some("s3://renders/final/".to_owned()),
        "AWS_REGION" => Some("eu-central-1".to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some("hunter2".to_owned()),
        _ => None,
    };
    let settings = Settings::from_source(source).expect("valid settings");
    let StorageRoot::Bucket { bucket, prefix, aws_variables: aws } = &settings.storage_root else {
        panic!("{:?}", settings.storage_root)
    };
    assert_eq!((bucket.as_str(), prefix.as_str()), ("renders", "final"));
    assert_eq!(aws.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["AWS_SECRET_ACCESS_KEY", "AWS_REGION"]);
    assert!(!format!("{settings:?}").contains("hunter2"));
    for bad in ["s3://", "s3://user:password@renders/x", "https://renders/x"] {
        let error = Settings::from_source(|name| (name == "ASSET_STORAGE_URL").then(|| bad.to_owned())).expect_err(bad);
        assert!(error.to_string().contains("or s3://bucket/prefix"), "{error}");
    }
}

#[test]
fn export_requires_endpoint_and_log_export_is_opt_in() {
    let telemetry = |given: &[(&str, &str)]| load(given).expect("valid settings").telemetry;
    let exported = |given: &[(&str, &str)]| {
        let TelemetrySettings { traces, metrics, logs, .. } = telemetry(given);
        [traces, metrics, logs]
    };
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    assert_eq!(exported(&[]), [None; 3]);
    assert_eq!(exported(&[("OTEL_LOGS_EXPORTER", "otlp")]), [None; 3]);
    assert_eq!(exported(&[endpoint]), [Some(OtlpProtocol::Http), Some(OtlpProtocol::Http), None]);
    assert_eq!(exported(&[endpoint, ("OTEL_LOGS_EXPORTER", "otlp")]), [Some(OtlpProtocol::Http); 3]);
    assert_eq!(exported(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), [None, Some(OtlpProtocol::Http), None]);
    let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let own = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf");
    assert_eq!(exported(&[endpoint, grpc, own]), [Some(OtlpProtocol::Grpc), Some(OtlpProtocol::Http), None]);
    assert_eq!(
        exported(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/v1/traces")]),
        [Some(OtlpProtocol::Http), None, None]
    );
    assert_eq!(exported(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), [None; 3]);
}

#[test]
fn otel_variables_are_validated() {
    let check = |name: &str, value: &str, allowed: &str| {
        let refused = load(&[(name, value)]).expect_err(name).to_string();
        assert_eq!(refused, format!("{name}: {value:?} is not allowed; {allowed}"));
    };
    check("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "an http:// or https:// URL without credentials");
    check("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://u:p@c/", "an http:// or https:// URL without credentials");
    check("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "grpc or http/protobuf");
    check("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "GRPC", "grpc or http/protobuf");
    check("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", "gzip or none");
    check("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "a whole number from 1 to 3600000");
    check("OTEL_BSP_MAX_QUEUE_SIZE", "4294967295", "a whole number from 1 to 65536");
    check("OTEL_METRIC_EXPORT_INTERVAL", "0", "a whole number from 1 to 3600000");
    check("OTEL_METRICS_EXPORTER", "prometheus", "otlp or none");
    check("OTEL_TRACES_SAMPLER_ARG", "2", "a number from 0 to 1");
    check("OTEL_SDK_DISABLED", "yes", "true or false");
    for name in ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"] {
        let refused = load(&[(name, "authorization: hunter2")]).expect_err(name).to_string();
        assert_eq!(
            refused,
            format!("{name}: its value is not allowed; name=value, separated by commas; values may be percent-encoded")
        );
    }
    assert!(load(&[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2, x-tenant=7")]).is_ok());
}
