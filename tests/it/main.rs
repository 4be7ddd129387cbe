//! Tests of the whole, from the outside: real RabbitMQ, real PostgreSQL and SQLite, the built `asset-worker`.

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
