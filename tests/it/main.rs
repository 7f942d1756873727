//! The integration tests, one binary: against real servers, which each test starts for itself and which end with it.

mod capture;
mod contract;
mod doorbell;
mod harness;
mod store_faults;
