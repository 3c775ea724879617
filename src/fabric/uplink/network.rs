//! The network beyond the uplink, as packets see it.

use std::net::IpAddr;

use hostweave_switch::tables::{Network, OUTSIDE_VNI};
use ipnet::IpNet;

/// Name of the network; no object can have it.
const NAME: &str = "(outside)";

/// The network. Its gateway's place is taken by `speaker` of IPv4 (`true`) and IPv6, from whom ICMP errors come; its range is the first
/// subnet of the host's `own` addresses. Without a speaker there is neither.
pub fn network_of(mtu: u16, own: &[IpNet], speaker: impl Fn(bool) -> Option<IpAddr>) -> Network {
    let range = |speaker: IpAddr| {
        let subnet = own.iter().find(|net| net.addr().is_ipv4() == speaker.is_ipv4());
        subnet.copied().unwrap_or(speaker.into()).trunc()
    };
    let v4 = speaker(true).and_then(|address| match (range(address), address) {
        (IpNet::V4(net), IpAddr::V4(address)) => Some((net, address)),
        _ => None,
    });
    let v6 = speaker(false).and_then(|address| match (range(address), address) {
        (IpNet::V6(net), IpAddr::V6(address)) => Some((net, address)),
        _ => None,
    });
    Network { v4, v6, mtu, ..Network::bare(NAME, OUTSIDE_VNI) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_from_the_speaker_whatever_the_subnet() {
        let own: [IpNet; 3] = ["192.0.2.2/24", "2001:db8::2/64", "198.51.100.2/24"].map(|net| net.parse().unwrap());
        let speaker = |ipv4| Some(if ipv4 { "203.0.113.7" } else { "2001:db8:1::7" }.parse().unwrap());
        let network = network_of(1400, &own, speaker);
        assert_eq!(network.v4, Some(("192.0.2.0/24".parse().unwrap(), "203.0.113.7".parse().unwrap())));
        assert_eq!(network.v6, Some(("2001:db8::/64".parse().unwrap(), "2001:db8:1::7".parse().unwrap())));
        let network = network_of(1400, &[], speaker);
        assert_eq!(network.v4, Some(("203.0.113.7/32".parse().unwrap(), "203.0.113.7".parse().unwrap())));
        assert_eq!(network.v6, Some(("2001:db8:1::7/128".parse().unwrap(), "2001:db8:1::7".parse().unwrap())));
        let network = network_of(1400, &own, |_| None);
        assert_eq!((network.v4, network.v6, network.mtu), (None, None, 1400));
    }
}
