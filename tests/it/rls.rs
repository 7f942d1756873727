//! Row security: Postgres decides who sees which rows, in snapshots, in deltas, and in everything that is gone.

mod cost;
mod exact;
mod moves;
mod refusals;
mod stage;
