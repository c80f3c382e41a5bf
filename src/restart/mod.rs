//! A restart: a new process takes over (ADR 0029). So far, what it executes.

pub(crate) mod program;
