//! Faults: what happens to viewers when a node, Redis or Postgres is killed, frozen, emptied or set back under load.
//!
//! Real processes, killed for good. The viewers check at every moment that nothing goes back in time and that no
//! transaction is seen in part; at the end each has exactly the rows of the tables.

mod back_in_time;
mod health;
mod lag;
mod leaders;
mod postgres;
mod redis;
