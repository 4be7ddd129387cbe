//! Files in `deploy/` match the published Kubernetes schemas and the worker's settings.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

const KUBERNETES_SCHEMA: &str = include_str!("../schemas/kubernetes-1.36.json");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");

fn read_deploy_yaml(file: &str) -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

/// The folders with a kustomization.yaml, each with the name of what it deploys.
const APPLICATIONS: [(&str, &str); 2] = [("kubernetes", "asset-worker"), ("kubernetes/api", "asset-worker-api")];

/// Manifests listed in a folder's kustomization.yaml, with their kind.
fn manifests_in(folder: &str) -> Result<Vec<(String, Value)>> {
    let kustomization = read_deploy_yaml(&format!("{folder}/kustomization.yaml"))?;
    let files = kustomization["resources"].as_array().context("kustomization.yaml has no resources")?;
    files
        .iter()
        .map(|file| {
            let manifest = read_deploy_yaml(&format!("{folder}/{}", file.as_str().unwrap_or_default()))?;
            Ok((manifest["kind"].as_str().context("the manifest has no kind")?.to_owned(), manifest))
        })
        .collect()
}

fn manifest_in(folder: &str, kind: &str) -> Result<Value> {
    let found = manifests_in(folder)?.into_iter().find(|(known, _)| known == kind);
    Ok(found.with_context(|| format!("no manifest of kind {kind}"))?.1)
}

/// A manifest of the workers.
fn manifest(kind: &str) -> Result<Value> {
    manifest_in("kubernetes", kind)
}

#[test]
fn manifests_match_kubernetes_schemas() -> Result<()> {
    let schema: Value = serde_json::from_str(KUBERNETES_SCHEMA)?;
    let manifests =
        APPLICATIONS.map(|(folder, name)| Ok(manifests_in(folder)?.into_iter().map(move |found| (name, found))));
    for (name, (kind, manifest)) in manifests.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
        // The kind belongs to KEDA; Kubernetes publishes no schema for it.
        let Some(definition) = schema["kinds"][&kind].as_str() else {
            assert_eq!(kind, "ScaledObject");
            continue;
        };
        let of_kind = json!({"$ref": format!("#/definitions/{definition}"), "definitions": schema["definitions"]});
        let validator = jsonschema::draft7::new(&of_kind)?;
        let errors: Vec<String> =
            validator.iter_errors(&manifest).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{kind}: {errors:?}");
        let is_shared = matches!(kind.as_str(), "Namespace" | "ServiceAccount" | "ConfigMap");
        assert_eq!(manifest["metadata"]["name"], if is_shared { "asset-worker" } else { name });
    }
    Ok(())
}

#[test]
fn manifest_variables_are_documented_and_secrets_are_references() -> Result<()> {
    let config = manifest("ConfigMap")?;
    let plain: Vec<String> = config["data"].as_object().context("the ConfigMap has no data")?.keys().cloned().collect();
    for name in &plain {
        assert!(
            !name.contains("KEY") && !name.contains("TOKEN") && name != "AMQP_URL" && name != "DATABASE_URL",
            "{name} may hold a secret"
        );
    }
    let compose = read_deploy_yaml("compose.yaml")?;
    for (folder, service) in [("kubernetes", "worker"), ("kubernetes/api", "api")] {
        let pod = manifest_in(folder, "Deployment")?["spec"]["template"]["spec"].clone();
        let container = &pod["containers"][0];
        assert_eq!(container["envFrom"][0]["configMapRef"]["name"], "asset-worker");
        let env = container["env"].as_array().context("the container has no env")?;
        let composed =
            compose["services"][service]["environment"].as_object().context("the service has no environment")?;
        let named = env.iter().filter_map(|variable| variable["name"].as_str().map(str::to_owned));
        for name in plain.iter().cloned().chain(named).chain(composed.keys().cloned()) {
            let setting = name.strip_suffix("_FILE").unwrap_or(&name);
            let is_standard = name == "OTEL_SERVICE_NAME";
            assert!(
                is_standard || CONFIGURATION.contains(&format!("`{setting}`")),
                "{name} is not in docs/configuration.md"
            );
        }
        let (volume, mount) = (&pod["volumes"][0], &container["volumeMounts"][0]);
        assert_eq!((&volume["secret"]["secretName"], &volume["name"]), (&json!("asset-worker"), &mount["name"]));
        let mounted_at = mount["mountPath"].as_str().context("the volume has no path")?;
        let phrase_book = config["data"]["TRANSLATION_PHRASE_BOOK"].as_str().context("there is no phrase book")?;
        assert!(!phrase_book.starts_with(mounted_at), "the volume hides the phrase book of the image");
        let file = format!("{mounted_at}/{}", volume["secret"]["items"][0]["path"].as_str().unwrap_or_default());
        for variable in env {
            let name = variable["name"].as_str().unwrap_or_default();
            let is_file = name == "STABILITY_API_KEY_FILE" && variable["value"] == file.as_str();
            let is_plain = ["API_ADDR", "API_CACHE_DIR", "OTEL_SERVICE_NAME"].contains(&name);
            assert!(
                is_file || is_plain || variable["valueFrom"]["secretKeyRef"]["name"] == "asset-worker",
                "{variable}"
            );
        }
    }
    Ok(())
}

/// The API is reachable where its Service, its probes and its policy say, and only inside the cluster.
#[test]
fn api_is_reachable_inside_the_cluster_only() -> Result<()> {
    let folder = "kubernetes/api";
    let pod = manifest_in(folder, "Deployment")?["spec"]["template"].clone();
    let container = &pod["spec"]["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(container["args"], json!(["serve"]));
    let variable = |name: &str| {
        let mut variables = container["env"].as_array().into_iter().flatten();
        variables.find(|variable| variable["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(variable("API_ADDR")["value"], format!("0.0.0.0:{}", port["containerPort"]));
    assert_ne!(variable("API_TOKEN")["valueFrom"]["secretKeyRef"]["optional"], json!(true));
    let cache = &container["volumeMounts"][1];
    assert_eq!(
        (&variable("API_CACHE_DIR")["value"], &pod["spec"]["volumes"][1]["name"]),
        (&cache["mountPath"], &cache["name"])
    );
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], port["containerPort"].to_string());
    for probe in ["livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], port["name"]);
    }
    let service = manifest_in(folder, "Service")?["spec"].clone();
    assert_eq!((&service["type"], &service["ports"][0]["targetPort"]), (&json!("ClusterIP"), &port["name"]));
    let policy = manifest_in(folder, "NetworkPolicy")?["spec"].clone();
    assert_eq!(policy["ingress"][0]["ports"][0]["port"], port["containerPort"]);
    assert!(policy["ingress"][0]["from"].as_array().is_some_and(|from| from.len() == 2), "not everyone may call");
    // The workers' Deployment and policies do not select these pods.
    let label = |folder: &str| {
        Ok::<_, anyhow::Error>(read_deploy_yaml(&format!("{folder}/kustomization.yaml"))?["labels"][0]["pairs"].clone())
    };
    assert_ne!(label(folder)?, label("kubernetes")?);
    let api = read_deploy_yaml("compose.yaml")?["services"]["api"].clone();
    assert!(api["entrypoint"][2].as_str().is_some_and(|script| script.ends_with("exec asset-worker serve")));
    assert_eq!(api["ports"], json!(["127.0.0.1:8088:8088"]));
    Ok(())
}

/// Parses a duration such as `25s`.
fn parse_seconds(value: &Value) -> Option<u64> {
    value.as_str()?.strip_suffix('s')?.parse().ok()
}

#[test]
fn termination_grace_period_exceeds_shutdown_grace() -> Result<()> {
    let grace = parse_seconds(&manifest("ConfigMap")?["data"]["WORKER_SHUTDOWN_GRACE"])
        .context("WORKER_SHUTDOWN_GRACE is missing")?;
    let pod = manifest("Deployment")?["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64();
    let compose = parse_seconds(&read_deploy_yaml("compose.yaml")?["services"]["worker"]["stop_grace_period"]);
    for given in [pod, compose] {
        assert!(
            given.is_some_and(|given| given >= grace + 10),
            "{given:?} is less than the grace period of {grace} s plus 10 s"
        );
    }
    Ok(())
}

#[test]
fn max_replicas_match_the_api_quota() -> Result<()> {
    let config = manifest("ConfigMap")?["data"].clone();
    let number = |name: &str| config[name].as_str().and_then(|text| text.parse::<u64>().ok());
    let (quota, in_flight) = (number("STABILITY_RATE_LIMIT"), number("STABILITY_MAX_CONCURRENT"));
    let scaled = manifest("ScaledObject")?["spec"].clone();
    // A request takes about 8 seconds.
    let pods = quota.context("STABILITY_RATE_LIMIT is missing")? * 8
        / 60
        / in_flight.context("STABILITY_MAX_CONCURRENT is missing")?;
    assert_eq!(scaled["maxReplicaCount"], pods);
    assert_eq!(scaled["scaleTargetRef"]["name"], manifest("Deployment")?["metadata"]["name"]);
    assert_eq!(scaled["triggers"][0]["metadata"]["queueName"], "assets.generate");
    Ok(())
}

/// Checks against KEDA's definition (v1alpha1), for which Kubernetes publishes no schema.
#[test]
fn scaled_object_uses_only_keda_fields() -> Result<()> {
    let scaled = manifest("ScaledObject")?;
    assert_eq!(scaled["apiVersion"], "keda.sh/v1alpha1");
    let numbers = ["cooldownPeriod", "idleReplicaCount", "maxReplicaCount", "minReplicaCount", "pollingInterval"];
    for (name, value) in scaled["spec"].as_object().context("the ScaledObject has no spec")? {
        match name.as_str() {
            "scaleTargetRef" => assert!(value["name"].is_string(), "{value}"),
            "triggers" => assert_eq!(value.as_array().map(Vec::len), Some(2), "{value}"),
            "advanced" => {
                let fields = value["scalingModifiers"].as_object().context("there are no scalingModifiers")?;
                assert_eq!(fields.keys().collect::<Vec<_>>(), ["formula", "metricType", "target"]);
            }
            name => assert!(numbers.contains(&name) && value.is_u64(), "{name}: {value}"),
        }
    }
    for trigger in scaled["spec"]["triggers"].as_array().into_iter().flatten() {
        let fields = trigger.as_object().context("the trigger is no object")?;
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["metadata", "name", "type"]);
        let metadata = trigger["metadata"].as_object().context("the trigger has no metadata")?;
        assert!(metadata.values().all(Value::is_string), "all values must be strings: {metadata:?}");
    }
    let metadata = &scaled["spec"]["triggers"][0]["metadata"];
    let from = metadata["hostFromEnv"].as_str().context("hostFromEnv is missing")?;
    let container = manifest("Deployment")?["spec"]["template"]["spec"]["containers"][0].clone();
    let env = container["env"].as_array().context("the container has no env")?;
    assert!(env.iter().any(|variable| variable["name"] == from), "the pods have no variable {from}");
    Ok(())
}

/// KEDA evaluates the formula with the values of the triggers by name.
#[test]
fn pods_are_not_added_while_the_gate_is_closed() -> Result<()> {
    let spec = manifest("ScaledObject")?["spec"].clone();
    assert!(spec["minReplicaCount"].as_u64() >= Some(1), "a pod must remain that probes the account");
    let modifiers = &spec["advanced"]["scalingModifiers"];
    assert_eq!(modifiers["formula"], "gate_closed > 0 ? 0 : commands");
    assert_eq!(modifiers["target"], spec["triggers"][0]["metadata"]["value"]);
    let named = |name: &str| {
        let mut triggers = spec["triggers"].as_array().into_iter().flatten().cloned();
        triggers.find(|trigger| trigger["name"] == name).context("no such trigger")
    };
    assert_eq!(named("commands")?["type"], "rabbitmq");
    let gate = named("gate_closed")?;
    assert_eq!(gate["type"], "prometheus");
    // The alerts define a gate that is closed for all workers in the same way, and promtool tests them.
    let query = gate["metadata"]["query"].as_str().context("the trigger has no query")?;
    let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/telemetry/alerts.yaml");
    let alerts = std::fs::read_to_string(alerts)?;
    assert!(alerts.contains(&format!("{query} > 0")), "{query}");
    Ok(())
}

#[test]
fn pod_monitor_targets_the_metrics_endpoint_of_pods() -> Result<()> {
    let monitor = read_deploy_yaml("kubernetes/podmonitor.yaml")?;
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let pod = manifest("Deployment")?["spec"]["template"].clone();
    assert_eq!(endpoint["port"], pod["spec"]["containers"][0]["ports"][0]["name"]);
    assert_eq!(endpoint["path"], pod["metadata"]["annotations"]["prometheus.io/path"]);
    let labels = read_deploy_yaml("kubernetes/kustomization.yaml")?["labels"][0]["pairs"].clone();
    for (label, value) in
        monitor["spec"]["selector"]["matchLabels"].as_object().context("the PodMonitor has no matchLabels")?
    {
        assert_eq!(labels[label], *value, "{label}");
    }
    Ok(())
}

#[test]
fn production_image_contains_one_program() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/Dockerfile");
    let dockerfile = std::fs::read_to_string(path)?;
    let last = dockerfile.rsplit("\nFROM ").next().context("the Dockerfile has no stage")?;
    assert!(last.starts_with("runtime AS worker\n"), "{last}");
    let copied: Vec<&str> = last.lines().filter(|line| line.starts_with("COPY --from")).collect();
    assert_eq!(copied, ["COPY --from=build /src/target/release/asset-worker /usr/local/bin/"]);
    assert_eq!(read_deploy_yaml("compose.yaml")?["services"]["sandbox"]["build"]["target"], "sandbox");
    Ok(())
}
