//! Tools that are no tests: fault injection ([`chaos`]), measurements with several workers ([`scale`]), and the picture of the dashboard
//! ([`dashboard`]). They run the built programs from the outside, as the tests do.

pub mod chaos;
pub mod dashboard;
mod measurement_result;
pub mod scale;
mod telemetry_overhead;
