//! Developer tools: fault injection ([`chaos`]), measurements with several workers ([`scale`]), CPU time ([`cpu`]), and
//! a rendering of the dashboard ([`dashboard`]). They run the built programs from the outside, as the black-box tests
//! do.

mod api_load;
pub mod chaos;
pub mod cpu;
pub mod dashboard;
mod measurement_result;
mod old_jobs;
mod page_load;
pub mod photos;
mod purge_load;
pub mod scale;
mod telemetry_overhead;
mod timed_calls;
mod window;
