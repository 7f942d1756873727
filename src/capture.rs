//! The write half, as far as Postgres goes: the schema, what is published, and reading cuts out of the change log.
//!
//! In the order of a change: [`install`] puts triggers and log there, [`doorbell`] wakes the leader, [`lease`] makes it
//! the only one, [`views`] says which views to run, [`reader`] turns the log into cuts, [`sight`] asks for it who sees what where
//! row security decides, [`slices`] throws away what was delivered. [`catalogue`] is what both halves read in the snapshot of
//! their rows. Nothing here knows the store: [`crate::relay`] brings the two together.

pub mod session;

pub mod install;

pub mod catalogue;

pub mod doorbell;

pub mod lease;

pub mod views;

pub mod sight;

pub mod reader;

pub mod slices;
