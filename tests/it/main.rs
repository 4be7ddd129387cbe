//! Black-box tests of the built `asset-worker` with real RabbitMQ, PostgreSQL and SQLite.

mod account_gate;
mod architecture;
mod broker_faults;
mod cache;
mod command_line;
mod cost_limits;
mod database;
mod deploy;
mod fail_fast;
mod failure_codes;
mod images;
mod job;
mod messages;
mod metrics;
mod quota;
mod recovery;
mod refused_account;
mod repository;
mod s3_storage;
mod storage_outage;
mod style;
mod telemetry_config;
mod traces;
mod translation;
mod worker_crashes;
mod worker_process;
