//! Costs: what `asset-worker costs` shows adds up to the daily budget and to the events.

use anyhow::{Context, Result};
use integration_tests::{Database, TestEnv, command};
use serde_json::{Value, json};

async fn read_costs(env: &TestEnv, by: &str) -> Result<Value> {
    let output = env.run(&["costs", "--by", by, "--json"]).await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).context(error)
}

#[tokio::test]
async fn costs_add_up_to_budget_and_events_on_sqlite() -> Result<()> {
    costs_add_up_to_budget_and_events(Database::Sqlite).await
}

#[tokio::test]
async fn costs_add_up_to_budget_and_events_on_postgres() -> Result<()> {
    costs_add_up_to_budget_and_events(Database::Postgres).await
}

async fn costs_add_up_to_budget_and_events(database: Database) -> Result<()> {
    let mut env = TestEnv::with_database(database).await?;
    env.make_images_small();
    let jobs = [
        // One failure that is refunded, one that is not, and one image that is refused.
        command(
            1,
            &["A fox [fault:status=500 x1]", "A bear [fault:drop x1]", "A gory battle", "A"],
            &json!({"min_success_rate": 0.5}),
        ),
        command(1, &["A fox [fault:status=500 x1]"], &json!({"cache": "prefer"})),
        command(2, &["An owl", "A cat"], &json!({"upscaler": "fast", "engine": "sd3.5-flash"})),
        command(2, &["A gory battle"], &json!({})),
        command(3, &["A wolf"], &json!({"max_cost_usd": 0.001})),
    ];
    let (mut cost_usd, mut images, mut cached) = (0.0, 0, 0);
    for job in &jobs {
        let data = env.generate(job).await?.data;
        cost_usd += data["cost_usd"].as_f64().context("cost_usd is missing")?;
        images += data["succeeded"].as_u64().unwrap_or_default();
        cached += data["from_cache"].as_u64().unwrap_or_default();
    }
    // A job of which only the cancellation is known has no costs.
    assert_eq!(env.run(&["jobs", "cancel", "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10"]).await?.status.code(), Some(0));
    let requests = env.sandbox.ledger().requests;
    let spending = env.query_rows("SELECT requests, micro_usd FROM spending").await?;
    assert_eq!((cached, images), (1, 6));
    for purged in [false, true] {
        if purged {
            env.execute("UPDATE jobs SET published_at = finished_at").await?;
            assert_eq!(env.run(&["purge", "--older-than", "0s"]).await?.status.code(), Some(0));
        }
        for by in ["project", "day", "engine"] {
            let costs = read_costs(&env, by).await?;
            let total = &costs["total"];
            let context = format!("by {by}, purged: {purged}: {costs}");
            let total_usd = total["cost_usd"].as_f64().context(context.clone())?;
            assert!((total_usd - cost_usd).abs() < 1e-9, "the events say {cost_usd}; {context}");
            assert_eq!(json!((total_usd * 1e6).round()), json!(spending[0]["micro_usd"].as_f64()), "{context}");
            assert_eq!(total["requests"], spending[0]["requests"], "{context}");
            assert_eq!(total["requests"], requests, "{context}");
            assert_eq!(
                (&total["jobs"], &total["images"], &total["cached"]),
                (&json!(5), &json!(6), &json!(1)),
                "{context}"
            );
            assert_eq!(total["retries"], 2, "{context}");
        }
        let projects = read_costs(&env, "project").await?;
        let project = |key: &str| {
            let costs = projects["costs"].as_array().map(Vec::as_slice).unwrap_or_default();
            costs.iter().find(|costs| costs["key"] == key).cloned().unwrap_or_default()
        };
        // Two images by the cheapest v2beta engine, each upscaled for two credits.
        assert_eq!((&project("2")["requests"], &project("2")["images"]), (&json!(5), &json!(2)), "{projects}");
        assert_eq!((&project("3")["cost_usd"], &project("3")["requests"]), (&json!(0.0), &json!(0)), "{projects}");
        let csv = env.run(&["costs", "--by", "engine", "--csv"]).await?;
        let csv = String::from_utf8_lossy(&csv.stdout).into_owned();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[0], "engine,jobs,requests,images,cached,retries,cost_usd");
        assert!(lines[1..].iter().any(|line| line.starts_with("sd3.5-flash,1,4,2,0,0,")), "{csv}");
    }
    let none = env.run(&["costs", "--since", "0s", "--json"]).await?;
    let none: Value = serde_json::from_slice(&none.stdout)?;
    assert_eq!(none["total"]["jobs"], 5, "the whole day counts");
    Ok(())
}
