//! Two connections that cross, of which one began with the reverse of what the other began with: each has answers of its own, by its translation.

use super::*;

/// What one end sends to the other.
fn there() -> FlowKey {
    FlowKey::new(1, 2, 5000, 5000, proto::UDP, Kind::Ports)
}

/// A connection with the tuple `key` whose sender is seen with the L4 port `l4` behind its translation.
fn crossing(host: &Host, key: FlowKey, in_port: u32, l4: u16) -> NewConnection {
    let reply = FlowKey::new(key.dst(), key.src(), key.dst_port(), l4, key.proto(), key.kind());
    let translation = Translation { reply, vni: 7, held: [None, None] };
    NewConnection { translation: Some(translation), ..host.new_connection(key, in_port) }
}

fn commit_after(host: &Host, miss: Miss, new: &NewConnection) -> Result<Committed, CommitError> {
    host.connections.commit_after(miss, new, &host.timeouts, &mut host.free.lock().unwrap(), 100)
}

/// A host with a connection that crosses, and a miss that was right before the table changed.
fn begun() -> (Host, Miss, Found) {
    let host = host(1000);
    host.connections.make_translatable(1000);
    let back = there().reversed();
    let stale = host.connections.look(&back, host.hash(&back), 7).unwrap_err();
    let first = commit_after(&host, Miss::UNKNOWN, &crossing(&host, there(), 0, 50_000)).unwrap();
    assert!(first.new);
    (host, stale, first.found)
}

#[test]
fn a_connection_that_crosses_is_not_refused_for_one_that_began_with_its_reverse() {
    for look_again in [false, true] {
        let (host, stale, first) = begun();
        let back = there().reversed();
        // What was found is no part of it (`is_part` in the packet path), so it is not known whether there is one.
        let miss = if look_again { Miss::UNKNOWN } else { stale };
        let second = commit_after(&host, miss, &crossing(&host, back, 3, 60_000)).unwrap();
        assert!(second.new, "{second:?}");
        // Each by its own tuple, whichever stands first in the chain, and by that of its answers.
        assert_eq!(host.find(there()), Some(first));
        assert_eq!(host.find(back), Some(second.found));
        for (found, new) in [(first, there()), (second.found, back)] {
            let reply = host.connections.translation(found.index, found.generation).unwrap().reply;
            assert_eq!(host.find(reply), Some(Found { direction: 1, ..found }), "{new:?}");
        }
        // Another worker that was too late finds it.
        let late = commit_after(&host, stale, &crossing(&host, back, 3, 60_000)).unwrap();
        assert_eq!(late, Committed { found: second.found, new: false });
        // With one gone the other is as it was.
        assert!(host.connections.remove(second.found.index, second.found.generation, Ending::Flushed));
        assert_eq!(host.find(there()), Some(first));
    }
}

#[test]
fn what_stays_in_its_network_and_what_began_with_its_reverse_are_one_connection() {
    let (host, stale, first) = begun();
    let plain = host.new_connection(there().reversed(), 3);
    let found = commit_after(&host, stale, &plain).unwrap();
    assert_eq!(found, Committed { found: Found { direction: 1, ..first }, new: false });
    assert!(host.connections.remove(first.index, first.generation, Ending::Flushed));
    let stays = commit_after(&host, stale, &plain).unwrap();
    assert!(stays.new);
    let crosses = commit_after(&host, stale, &crossing(&host, there(), 0, 50_000)).unwrap();
    assert_eq!(crosses, Committed { found: Found { direction: 1, ..stays.found }, new: false });
}

#[test]
fn the_answers_of_one_that_crosses_are_known_to_a_late_worker() {
    let (host, stale, first) = begun();
    // What another began with the reverse of its answers' tuple: 2:5000 to 1:50000.
    let answers = host.connections.translation(first.index, first.generation).unwrap().reply;
    let other = commit_after(&host, Miss::UNKNOWN, &crossing(&host, answers.reversed(), 0, 40_000)).unwrap();
    assert!(other.new);
    let late = commit_after(&host, stale, &crossing(&host, answers, 3, 60_000)).unwrap();
    assert_eq!(late, Committed { found: Found { direction: 1, ..first }, new: false });
    assert_eq!(host.find(answers), Some(Found { direction: 1, ..first }));
}
