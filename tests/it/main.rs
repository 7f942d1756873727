//! The integration tests, one binary: against real servers, which each test starts for itself and which end with it.
