//! Tests of [`super`]: reports read octet by octet, as RFC 3810 §5 draws them.

use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta};
use hostweave_switch::parse;
use hostweave_switch::stage::Verdict;

use super::*;

const MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x77]);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn group(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, last)
}

/// The ICMPv6 message of a frame, everything before it checked.
fn read(frame: &[u8], source: Ipv6Addr, to: Ipv6Addr) -> &[u8] {
    let [.., a, b, c, d] = to.octets();
    assert_eq!(frame[..6], [0x33, 0x33, a, b, c, d]);
    assert_eq!(frame[6..14], [0x02, 0, 0, 0, 0, 0x77, 0x86, 0xdd]);
    let (ip, message) = (&frame[14..54], &frame[62..]);
    assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), frame.len() - 54);
    assert_eq!(ip[6..8], [0, 1], "hop-by-hop header, hop limit 1");
    assert_eq!([&source.octets()[..], &to.octets()].concat(), ip[8..40]);
    assert_eq!(frame[54..62], [58, 0, 5, 2, 0, 0, 1, 0], "router alert of MLD");
    assert!(frame::checksum_valid(58, &ip[8..40], message));
    message
}

#[test]
fn a_report_names_each_group_and_fits_the_smallest_mtu() {
    for (begins, kind) in [(true, 4), (false, 2)] {
        for count in [1, 2, RECORDS_MAX] {
            let groups: Vec<Ipv6Addr> = (0..count as u16).map(group).collect();
            let frame = report(MAC, &groups, begins);
            assert!(frame.len() <= 14 + 1280);
            let message = read(&frame, Ipv6Addr::UNSPECIFIED, "ff02::16".parse().unwrap());
            assert_eq!(message[..2], [143, 0]);
            assert_eq!(message[4..8], [0, 0, 0, count as u8]);
            let records: Vec<&[u8]> = message[8..].chunks(20).collect();
            assert_eq!(records.len(), count);
            for (record, group) in records.iter().zip(&groups) {
                assert_eq!(**record, [&[kind, 0, 0, 0][..], &group.octets()].concat());
            }
        }
    }
    let frame = old_report(MAC, group(7));
    let message = read(&frame, Ipv6Addr::UNSPECIFIED, group(7));
    assert_eq!((message.len(), message[0]), (24, 131));
    assert_eq!(message[8..], group(7).octets());
}

/// A query as a router sends it.
fn query(source: Ipv6Addr, message: Vec<u8>) -> Vec<u8> {
    framed(MacAddr([2, 0, 0, 0, 0, 1]), source, ALL_NODES, message)
}

fn message(code: u16, about: Ipv6Addr, len: usize) -> Vec<u8> {
    let mut message = [&[QUERY, 0, 0, 0][..], &code.to_be_bytes(), &[0, 0], &about.octets(), &[2, 125, 0, 0]].concat();
    message.truncate(len);
    message
}

fn heard(frame: &[u8]) -> Option<Query> {
    let mut burst = Burst::new();
    burst.with_frame(Meta::default(), frame, HEAD_FIRST, |packet, arena| {
        assert_eq!(parse::parse(packet, arena), Verdict::Continue);
        Query::read(packet, arena)
    })
}

#[test]
fn queries_of_routers_are_heard_and_others_ignored() {
    let all = Ipv6Addr::UNSPECIFIED;
    let general = |len| query(ROUTER, message(10_000, all, len));
    assert_eq!(heard(&general(28)), Some(Query { group: all, within_ms: 10_000, old: false }));
    assert_eq!(heard(&general(24)), Some(Query { group: all, within_ms: 10_000, old: true }));
    let specific = query(ROUTER, message(1_000, group(7), 28));
    assert_eq!(heard(&specific), Some(Query { group: group(7), within_ms: 1_000, old: false }));
    assert_eq!(heard(&general(26)), None, "neither version");
    for source in [Ipv6Addr::UNSPECIFIED, "2001:db8::1".parse().unwrap()] {
        assert_eq!(heard(&query(source, message(10_000, all, 28))), None, "{source} is no router");
    }
    let changed = |at: usize, octet: u8| {
        let mut frame = general(28);
        frame[at] = octet;
        heard(&frame)
    };
    assert_eq!(changed(14 + 7, 255), None, "from beyond the link");
    assert_eq!(changed(62 + 2, 0x5a), None, "checksum");
}

#[test]
fn long_response_delays_are_floating_point_numbers() {
    for (code, ms) in [(0, 0), (0x7fff, 32_767), (0x8000, 32_768), (0x8001, 32_776), (0xffff, 8_387_584)] {
        assert_eq!(response_delay(code), ms, "{code:x}");
    }
}
