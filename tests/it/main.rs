//! The integration tests, one binary: against real servers, which each test starts for itself and which end with it.

mod burst;
mod capture;
mod contract;
mod filters;
mod handoff;
mod harness;
mod real_input;
mod store_faults;
