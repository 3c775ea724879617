//! The hashes of load balancing. They are fixed: every host and every build must compute the same (SEMANTICS SV8), so there is no
//! seed in them. Golden values in the tests hold them still.
//!
//! - A *name* is hashed by FNV-1a of 64 bits over its octets (offset `cbf29ce484222325`, prime `100000001b3`), then mixed.
//! - A *tuple* or *address* is folded word by word, `h = mix(h ^ word)`, from zero.
//! - `mix` is the finalizer of MurmurHash3 (`fmix64`).

/// The finalizer of MurmurHash3 for 64 bits: each bit of the input changes half of those of the output.
#[inline]
const fn mix(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

/// Of a name.
pub(crate) fn of_name(name: &str) -> u64 {
    of_octets(name.bytes())
}

/// Of a Service and the name of one of its L4 ports.
pub(crate) fn of_port(service: &str, port: &str) -> u64 {
    // No name has an octet of zero in it.
    of_octets(service.bytes().chain([0]).chain(port.bytes()))
}

fn of_octets(octets: impl Iterator<Item = u8>) -> u64 {
    mix(octets.fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)))
}

/// Of a client that is to keep its backend.
pub(crate) fn of_client(identity: u64, client: u128) -> u64 {
    [(client >> 64) as u64, client as u64].iter().fold(identity, |hash, word| mix(hash ^ word))
}

/// Of the tuple of a connection to a Service, as the client sent it: what [`Frontend::choose`](super::Frontend::choose) wants.
/// Addresses IPv4-mapped for IPv4.
#[inline]
pub fn of_tuple(src: u128, dst: u128, src_port: u16, dst_port: u16, proto: u8) -> u64 {
    let ports = u64::from(src_port) << 32 | u64::from(dst_port) << 16 | u64::from(proto);
    let words = [(src >> 64) as u64, src as u64, (dst >> 64) as u64, dst as u64, ports];
    words.iter().fold(0, |hash, word| mix(hash ^ word))
}

/// Of the `attempt`-th look for a backend of the same connection.
#[inline]
pub(crate) fn again(hash: u64, attempt: u32) -> u64 {
    if attempt == 0 { hash } else { mix(hash ^ u64::from(attempt)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These stand in tables of other hosts: they never change.
    #[test]
    fn sv8_hashes_are_those_of_every_host() {
        assert_eq!(of_name(""), 0xefd0_1f60_ba99_2926);
        assert_eq!(mix(1), 0xb456_bcfc_34c2_cb2c);
        assert_eq!(of_port("shop/db", "sql"), of_name("shop/db\0sql"));
        assert_ne!(of_port("shop/db", "sql"), of_port("shop/d", "bsql"));
    }

    #[test]
    fn every_part_of_a_tuple_counts() {
        let of = |src, dst, sport, dport, proto| of_tuple(src, dst, sport, dport, proto);
        let mut seen = vec![
            of(1, 2, 3, 4, 6),
            of(9, 2, 3, 4, 6),
            of(1 << 64, 2, 3, 4, 6),
            of(1, 9, 3, 4, 6),
            of(1, 2, 9, 4, 6),
            of(1, 2, 3, 9, 6),
            of(1, 2, 3, 4, 17),
        ];
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
        assert_eq!(again(7, 0), 7);
        assert_ne!(again(7, 1), again(7, 2));
    }
}
