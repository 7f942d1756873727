//! stub until merge
pub mod catalogue;
