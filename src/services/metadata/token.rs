//! Tokens of the second version of EC2's metadata service (IMDSv2).
//!
//! A token is the second at which it ends and a MAC over that and the port's identity, by a key that lives as long as the
//! process: nothing is kept for a token, so asking for many costs nobody memory, and one port's token is nothing in the
//! hands of another. After a restart of the daemon clients are told 401 and ask for a new one, as when it has ended.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use uuid::Uuid;

/// Seconds that a token may live, as on EC2.
pub const TTL_S: RangeInclusive<u64> = 1..=21_600;

/// Octets of the end, and of the MAC behind it.
const END_LEN: usize = 8;
const MAC_LEN: usize = 32;

/// What tokens are made and checked with.
pub struct Key(hmac::Key);

impl Key {
    /// A key that nobody knows.
    ///
    /// # Errors
    /// The kernel has no random octets.
    pub fn random() -> std::io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new());
        key.map(Self).map_err(|_| std::io::Error::other("the kernel gives no random octets"))
    }

    /// A token of a port that lives for `ttl_s` seconds from `now_s`, on any clock that only goes forward.
    pub fn issue(&self, port: Uuid, now_s: u64, ttl_s: u64) -> String {
        let end = now_s.saturating_add(ttl_s).to_be_bytes();
        let mac = hmac::sign(&self.0, &message(port, end));
        URL_SAFE_NO_PAD.encode([&end[..], mac.as_ref()].concat())
    }

    /// Whether a token is one of this port and has not ended.
    pub fn accepts(&self, port: Uuid, now_s: u64, token: &[u8]) -> bool {
        let mut octets = [0; END_LEN + MAC_LEN];
        if URL_SAFE_NO_PAD.decode_slice(token, &mut octets) != Ok(octets.len()) {
            return false;
        }
        let Some((end, mac)) = octets.split_first_chunk::<END_LEN>() else { return false };
        hmac::verify(&self.0, &message(port, *end), mac).is_ok() && now_s < u64::from_be_bytes(*end)
    }
}

fn message(port: Uuid, end: [u8; END_LEN]) -> [u8; 16 + END_LEN] {
    let mut message = [0; 16 + END_LEN];
    message[..16].copy_from_slice(port.as_bytes());
    message[16..].copy_from_slice(&end);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    #[test]
    fn a_token_is_good_for_its_port_until_it_ends() {
        let key = Key::random().unwrap();
        let token = key.issue(A, 100, 60);
        assert!(key.accepts(A, 100, token.as_bytes()) && key.accepts(A, 159, token.as_bytes()));
        assert!(!key.accepts(A, 160, token.as_bytes()), "ended");
        assert!(!key.accepts(B, 100, token.as_bytes()), "of another port");
        assert!(!Key::random().unwrap().accepts(A, 100, token.as_bytes()), "of another run");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let key = Key::random().unwrap();
        let token = key.issue(A, 100, 60);
        for index in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[index] = if other[index] == b'A' { b'B' } else { b'A' };
            assert!(!key.accepts(A, 100, &other), "{index}");
        }
        for bad in [&b""[..], b"x", b"\xff\xff", &token.as_bytes()[1..], &[b'A'; 4096], format!("{token}A").as_bytes()]
        {
            assert!(!key.accepts(A, 100, bad));
        }
    }
}
