"""What the suites outside of `cargo test` share: test runner, processes, guests, namespaces, packets, the daemon."""
