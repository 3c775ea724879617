//! libFuzzer on the target of the same name.
#![no_main]
#[path = "../../targets.rs"]
#[allow(dead_code, reason = "each binary runs one target")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::packets(data));
