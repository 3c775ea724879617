//! Runs every fuzz target over its corpus, then over mutations of it.
//!
//! `HOSTWEAVE_FUZZ_SECONDS` says how long each target is mutated (one second if not set; CI takes 30), and
//! `HOSTWEAVE_FUZZ_SEED` repeats a run. An input that fails is kept below `target/fuzz`; it belongs into the corpus of its
//! target, under a name that says what was wrong, together with the fix.

#[cfg(test)]
mod mutate;
#[cfg(test)]
mod targets;

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use super::mutate::Mutator;
    use super::targets::TARGETS;

    fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{} holds seeds", folder.display());
        paths.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("a file"))).collect()
    }

    fn number(variable: &str) -> Option<u64> {
        let value = std::env::var(variable).ok()?;
        Some(value.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {value:?}")))
    }

    fn fuzz(name: &str) {
        let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a known target");
        let corpus = corpus(name);
        for (path, data) in &corpus {
            let result = catch_unwind(AssertUnwindSafe(|| target(data)));
            assert!(result.is_ok(), "{}", path.display());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let seed = number("HOSTWEAVE_FUZZ_SEED").unwrap_or(now);
        let time = Duration::from_secs(number("HOSTWEAVE_FUZZ_SECONDS").unwrap_or(1));
        println!("{name}: HOSTWEAVE_FUZZ_SEED={seed}");
        let mut mutator = Mutator::new(seed, corpus.into_iter().map(|(_, data)| data).collect());
        let (start, mut rounds) = (Instant::now(), 0u64);
        while start.elapsed() < time {
            let data = mutator.next();
            if catch_unwind(AssertUnwindSafe(|| target(&data))).is_err() {
                let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
                let path = folder.join(format!("{name}-{seed}-{rounds}"));
                std::fs::create_dir_all(&folder).expect("a folder");
                std::fs::write(&path, &data).expect("a file");
                panic!("HOSTWEAVE_FUZZ_SEED={seed}, round {rounds}: the input is kept in {}", path.display());
            }
            rounds += 1;
        }
        println!("{name}: {rounds} rounds");
        assert!(time.is_zero() || rounds > 10, "so few rounds prove nothing");
    }

    macro_rules! targets {
        ($($name:ident)+) => {
            $(#[test] fn $name() { fuzz(stringify!($name)); })+

            #[test]
            fn every_target_is_run() {
                assert_eq!(TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [$(stringify!($name)),+]);
            }
        };
    }

    targets!(rings messages packets offload local yaml rpc);
}
