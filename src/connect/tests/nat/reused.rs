//! A record that becomes another connection's while a worker is about to use it: between one's look and its rewrite the other gives the
//! connection up and commits one in its place.

use hostweave_switch::connection::{NewConnection, Timeouts};
use hostweave_switch::tcp_track::Side;

use super::*;

/// Ends a connection when a packet of it has been found, and begins another one in its record.
struct Between {
    connections: Arc<Connections>,
    /// What a stage shows when it is time.
    when: fn(&'static str, &Detail) -> bool,
    found: Entry,
    new: NewConnection,
    taken: bool,
}

impl Recorder for Between {
    const MASKED: bool = false;
    fn stage(&mut self, name: &'static str, detail: Detail) {
        if self.taken || !(self.when)(name, &detail) {
            return;
        }
        assert!(self.connections.remove(self.found.index, self.found.generation, Ending::Flushed));
        let mut free = FreeRecords::new();
        // Records that are free are used in no order that matters: as many connections as it takes.
        self.taken = (1..100).any(|more| {
            let committed = self.connections.commit(&one_of(&self.new, more), &Timeouts::default(), &mut free, 100);
            committed.unwrap().found.index == self.found.index
        });
    }
}

/// Another connection like this one.
fn one_of(new: &NewConnection, more: u16) -> NewConnection {
    let mut translation = new.translation.unwrap();
    let (key, reply) = (&new.key, &translation.reply);
    let kind = key.kind();
    translation.reply =
        FlowKey::new(reply.src(), reply.dst(), reply.src_port() + more, reply.dst_port(), reply.proto(), kind);
    let key = FlowKey::new(key.src(), key.dst(), key.src_port(), key.dst_port() + more, key.proto(), kind);
    NewConnection { key, translation: Some(translation), ..*new }
}

/// A connection of C to somebody else out there, which the same host has had.
fn of_c(host: &mut Host, v6: bool) -> NewConnection {
    let frame = out(C, remote(v6, 77)).udp(7700, 77, b"of another");
    host.to(C, &frame).unwrap();
    let entry = host.entry();
    assert!(host.connections.remove(entry.index, entry.generation, Ending::Flushed));
    NewConnection {
        key: entry.key,
        hash: host.connections.keys().hash(&entry.key, entry.vni),
        vni: entry.vni,
        in_port: C,
        out_port: entry.out_port,
        basis: entry.basis,
        epoch: host.plane.tables.crossings,
        queue: 0,
        side: Side::default(),
        translation: entry.translation,
        receiver_pays: false,
    }
}

#[test]
fn a_packet_never_becomes_what_another_connection_is() {
    let is_hit = |name, detail: &Detail| name == "flow" && matches!(detail, Detail::Hit);
    both(|v6| {
        let mut host = Host::outside();
        let new = of_c(&mut host, v6);
        let frame = out(A, remote(v6, 1)).udp(4000, 53, b"data");
        assert!(host.to(A, &frame).is_ok());
        let (connections, found) = (Arc::clone(&host.connections), host.entry());
        let mut between = Between { connections, when: is_hit, found, new, taken: false };
        let ended = host.pass(0, A, &frame, Offload::default(), &mut between).map(|passed| passed.to);
        assert!(between.taken);
        assert_eq!(ended.map_err(|ended| ended.0), Err(DropReason::NoConnection));
        // The next one begins anew.
        assert!(host.to(A, &frame).is_ok());
        assert!(host.entries().iter().any(|entry| entry.in_port == A));
    });
}

#[test]
fn an_error_never_goes_to_who_has_the_record_now() {
    let is_related = |name, detail: &Detail| name == "conn" && matches!(detail, Detail::Related(_));
    both(|v6| {
        let mut host = Host::outside();
        let new = of_c(&mut host, v6);
        let frame = out(A, remote(v6, 1)).udp(4000, 53, b"data");
        let sent = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).map_err(|ended| ended.0).unwrap();
        let (connections, found) = (Arc::clone(&host.connections), host.entry());
        let mut between = Between { connections, when: is_related, found, new, taken: false };
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let error = inward(remote(v6, 1), public(v6, POOL)).icmp(kind, code, [0; 4], &sent.frame[14..]);
        let passed = host.pass(0, UPLINK, &error, Offload::default(), &mut between);
        assert!(between.taken);
        // It was A's when it was looked at, and says what A's packet was; or it ends.
        match passed {
            Ok(passed) => {
                assert_eq!(passed.to, A);
                assert!(passed.frame.windows(2).any(|two| two == 4000u16.to_be_bytes()), "what it quotes is A's");
            }
            Err(ended) => assert_eq!(ended.0, DropReason::IcmpUnrelated),
        }
    });
}
