//! demo
pub mod instance;
