//! Tests of the whole, from the outside: real RabbitMQ, real PostgreSQL and SQLite, the built `asset-worker`.

mod command_line;
mod job;
mod messages;
mod process;
