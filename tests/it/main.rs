//! Black-box tests of the built `asset-worker` with real RabbitMQ, PostgreSQL and SQLite.

mod architecture;
mod cache;
mod codes;
mod command_line;
mod deploy;
mod job;
mod kills;
mod language;
mod messages;
mod metrics;
mod money;
mod pictures;
mod process;
mod quota;
mod recovery;
mod shared_files;
mod spending_less;
mod style;
mod traces;
mod views;
