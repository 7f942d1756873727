//! The integration tests, one binary: against real servers, which each test starts for itself and which end with it.

// These rules are about a node: that it knows its tasks, bounds its queues and has its settings in one place. A test's
// tasks end with its runtime.
#![allow(clippy::disallowed_methods, reason = "rules for a node, not for its tests")]

mod audit;
mod auth;
mod bad_input;
mod browser;
mod burst;
mod capture;
mod contract;
mod docs_permissions;
mod docs_queries;
mod doorbell;
mod edge;
mod faults;
mod filters;
mod handoff;
mod harness;
mod no_leak;
mod policies;
mod publications_live;
mod query_agrees;
mod real_input;
mod revocation;
mod rls;
mod roles;
mod steps;
mod store_faults;
mod tidy;
mod tokens;
mod transitions;
mod views;
