//! The integration tests, one binary: against real servers, which each test starts for itself and which end with it.

mod bad_input;
mod burst;
mod capture;
mod contract;
mod filters;
mod handoff;
mod harness;
mod publications_live;
mod real_input;
mod store_faults;
