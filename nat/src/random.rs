//! L4 ports that nobody outside can guess (RFC 6056 §3.3.1): SipHash-1-3 of a counter, under a key of this run.

use std::hash::{BuildHasher, Hasher};

/// A source of random numbers. One per shard.
pub(crate) struct Random {
    key: [u64; 2],
    count: u64,
    /// What is left of the last word, and how many draws.
    word: u64,
    left: u32,
}

impl Random {
    /// One of its own for each `stream`. `None` asks the operating system for a key.
    pub(crate) fn new(seed: Option<u64>, stream: u64) -> Self {
        let word = |i: u64| match seed {
            Some(seed) => seed.wrapping_add(i),
            None => {
                // `RandomState` is seeded by the operating system and differs with every call.
                let mut hasher = std::hash::RandomState::new().build_hasher();
                hasher.write_u64(i);
                hasher.finish()
            }
        };
        Self { key: [word(0), word(1) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)], count: 0, word: 0, left: 0 }
    }

    /// Sixteen bits.
    #[inline]
    pub(crate) fn draw(&mut self) -> u16 {
        if self.left == 0 {
            self.count += 1;
            self.word = siphash13(self.key, self.count);
            self.left = 4;
        }
        self.left -= 1;
        let drawn = self.word as u16;
        self.word >>= 16;
        drawn
    }
}

/// SipHash-1-3 of one word (Aumasson and Bernstein, 2012).
pub(crate) fn siphash13(key: [u64; 2], message: u64) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for word in [message, 8 << 56] {
        v[3] ^= word;
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    (0..3).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_siphash() {
        // The standard library's default hasher is SipHash-1-3 with keys of zero.
        let mut hasher = std::hash::DefaultHasher::new();
        for message in [0, 1, 0xdead_beef_0000_1234_u64] {
            hasher.write_u64(message);
            assert_eq!(siphash13([0, 0], message), hasher.finish());
            hasher = std::hash::DefaultHasher::new();
        }
    }

    #[test]
    fn streams_and_draws_differ() {
        let draws = |stream| {
            let mut random = Random::new(Some(1), stream);
            (0..64).map(|_| random.draw()).collect::<Vec<_>>()
        };
        assert_ne!(draws(0), draws(1));
        assert_eq!(draws(2), draws(2));
        let distinct: std::collections::BTreeSet<u16> = draws(3).into_iter().collect();
        assert!(distinct.len() > 60, "{distinct:?}");
    }
}
