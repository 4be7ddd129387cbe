//! What lies in `deploy/`: it keeps to the schemas that Kubernetes publishes, and to what the worker is.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../schemas/kubernetes-1.36.json");
const README: &str = include_str!("../../README.md");

fn deployed(file: &str) -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

/// The manifests that kustomization.yaml names, by their kind.
fn manifests() -> Result<Vec<(String, Value)>> {
    let kustomization = deployed("kubernetes/kustomization.yaml")?;
    let files = kustomization["resources"].as_array().context("a list of resources")?;
    files
        .iter()
        .map(|file| {
            let manifest = deployed(&format!("kubernetes/{}", file.as_str().unwrap_or_default()))?;
            Ok((manifest["kind"].as_str().context("a kind")?.to_owned(), manifest))
        })
        .collect()
}

fn manifest(kind: &str) -> Result<Value> {
    let found = manifests()?.into_iter().find(|(known, _)| known == kind);
    Ok(found.with_context(|| format!("no {kind}"))?.1)
}

#[test]
fn the_manifests_keep_to_the_schemas_of_kubernetes() -> Result<()> {
    let schema: Value = serde_json::from_str(SCHEMA)?;
    for (kind, manifest) in manifests()? {
        // KEDA's own, which Kubernetes does not publish.
        let Some(definition) = schema["kinds"][&kind].as_str() else {
            assert_eq!(kind, "ScaledObject");
            continue;
        };
        let of_kind = json!({"$ref": format!("#/definitions/{definition}"), "definitions": schema["definitions"]});
        let validator = jsonschema::draft7::new(&of_kind)?;
        let errors: Vec<String> =
            validator.iter_errors(&manifest).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{kind}: {errors:?}");
        assert_eq!(manifest["metadata"]["name"], "asset-worker");
    }
    Ok(())
}

#[test]
fn every_variable_of_the_manifests_is_a_setting_and_secrets_come_by_reference() -> Result<()> {
    let config = manifest("ConfigMap")?;
    let container = manifest("Deployment")?["spec"]["template"]["spec"]["containers"][0].clone();
    let plain = config["data"].as_object().context("data")?.keys().cloned();
    let env = container["env"].as_array().context("a list")?;
    let compose = deployed("compose.yaml")?;
    let composed = compose["services"]["worker"]["environment"].as_object().context("an environment")?.keys().cloned();
    let by_reference = env.iter().filter_map(|variable| variable["name"].as_str().map(str::to_owned));
    for name in plain.clone().chain(by_reference).chain(composed) {
        assert!(README.contains(&format!("`{name}`")), "{name} stands not in the README");
    }
    for name in plain {
        assert!(!name.contains("KEY") && name != "AMQP_URL" && name != "DATABASE_URL", "{name} may hold a secret");
    }
    assert!(env.iter().all(|variable| variable["valueFrom"]["secretKeyRef"]["name"] == "asset-worker"));
    Ok(())
}

/// What `25s` says.
fn seconds(value: &Value) -> Option<u64> {
    value.as_str()?.strip_suffix('s')?.parse().ok()
}

#[test]
fn what_is_killed_had_its_grace_before() -> Result<()> {
    let grace = seconds(&manifest("ConfigMap")?["data"]["WORKER_SHUTDOWN_GRACE"]).context("a grace")?;
    let pod = manifest("Deployment")?["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64();
    let compose = seconds(&deployed("compose.yaml")?["services"]["worker"]["stop_grace_period"]);
    for given in [pod, compose] {
        assert!(given.is_some_and(|given| given >= grace + 10), "{given:?} is not {grace} s and what the end takes");
    }
    Ok(())
}

#[test]
fn there_are_no_more_pods_than_use_the_quota_up() -> Result<()> {
    let config = manifest("ConfigMap")?["data"].clone();
    let number = |name: &str| config[name].as_str().and_then(|text| text.parse::<u64>().ok());
    let (quota, in_flight) = (number("STABILITY_RATE_LIMIT"), number("STABILITY_MAX_CONCURRENT"));
    let scaled = manifest("ScaledObject")?["spec"].clone();
    // A request takes some 8 seconds.
    let pods = quota.context("a quota")? * 8 / 60 / in_flight.context("a number in flight")?;
    assert_eq!(scaled["maxReplicaCount"], pods);
    assert_eq!(scaled["scaleTargetRef"]["name"], manifest("Deployment")?["metadata"]["name"]);
    assert_eq!(scaled["triggers"][0]["metadata"]["queueName"], "assets.generate");
    Ok(())
}

/// By the definition of KEDA (v1alpha1), which Kubernetes does not publish.
#[test]
fn the_scaled_object_has_fields_that_keda_knows() -> Result<()> {
    let scaled = manifest("ScaledObject")?;
    assert_eq!(scaled["apiVersion"], "keda.sh/v1alpha1");
    let numbers = ["cooldownPeriod", "idleReplicaCount", "maxReplicaCount", "minReplicaCount", "pollingInterval"];
    for (name, value) in scaled["spec"].as_object().context("a specification")? {
        match name.as_str() {
            "scaleTargetRef" => assert!(value["name"].is_string(), "{value}"),
            "triggers" => assert!(value.as_array().is_some_and(|triggers| !triggers.is_empty()), "{value}"),
            name => assert!(numbers.contains(&name) && value.is_u64(), "{name}: {value}"),
        }
    }
    let trigger = scaled["spec"]["triggers"][0].as_object().context("a trigger")?;
    assert_eq!(trigger.keys().collect::<Vec<_>>(), ["metadata", "type"]);
    let metadata = trigger["metadata"].as_object().context("metadata")?;
    assert!(metadata.values().all(Value::is_string), "all of it is text: {metadata:?}");
    let from = metadata["hostFromEnv"].as_str().context("a variable")?;
    let container = manifest("Deployment")?["spec"]["template"]["spec"]["containers"][0].clone();
    let env = container["env"].as_array().context("a list")?;
    assert!(env.iter().any(|variable| variable["name"] == from), "the pods have no {from}");
    Ok(())
}

#[test]
fn the_pod_monitor_looks_where_the_pods_serve() -> Result<()> {
    let monitor = deployed("kubernetes/podmonitor.yaml")?;
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let pod = manifest("Deployment")?["spec"]["template"].clone();
    assert_eq!(endpoint["port"], pod["spec"]["containers"][0]["ports"][0]["name"]);
    assert_eq!(endpoint["path"], pod["metadata"]["annotations"]["prometheus.io/path"]);
    let labels = deployed("kubernetes/kustomization.yaml")?["labels"][0]["pairs"].clone();
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().context("labels")? {
        assert_eq!(labels[label], *value, "{label}");
    }
    Ok(())
}

#[test]
fn production_image_contains_one_program() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/Dockerfile");
    let dockerfile = std::fs::read_to_string(path)?;
    let last = dockerfile.rsplit("\nFROM ").next().context("a stage")?;
    assert!(last.starts_with("runtime AS worker\n"), "{last}");
    let copied: Vec<&str> = last.lines().filter(|line| line.starts_with("COPY --from")).collect();
    assert_eq!(copied, ["COPY --from=build /src/target/release/asset-worker /usr/local/bin/"]);
    assert_eq!(deployed("compose.yaml")?["services"]["sandbox"]["build"]["target"], "sandbox");
    Ok(())
}
