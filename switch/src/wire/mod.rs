//! One file per protocol: offsets, checks, builders.
