//! Rowcast keeps browser dashboards in step with Postgres.
//!
//! The modules stand in the order in which a change travels; a module imports only what stands above it. First the
//! words that everything is said in, then the store and what is kept in it, then the half that writes into it, then the
//! half that reads from it, and at the end what starts and stops it all.

pub mod version;

pub mod publication;

pub mod entry;

pub mod protocol;

pub mod value;

pub mod order;

pub mod metrics;

pub mod query;

pub mod identity;

pub mod channel;

pub mod audit;

pub mod view;

pub mod store;

pub mod rows;

pub mod checkpoint;

pub mod base;

pub mod capture;

pub mod relay;

pub mod snapshots;

pub mod hub;

pub mod session;

pub mod http;

pub mod config;

pub mod app;

pub mod demo;

pub mod cli;
