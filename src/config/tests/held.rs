//! Addresses that the kernel of this host holds.

use hostweave_uplink::netlink::interfaces::Held;

use super::outside::{UPLINK, all, pools};
use super::*;
use crate::config::outside::held;

fn kernels(address: &str) -> Held {
    let address: std::net::IpAddr = address.parse().unwrap();
    Held { address, prefix: if address.is_ipv4() { 24 } else { 64 }, interface: "eth1".to_owned(), secondary: false }
}

#[test]
fn an_address_that_the_kernel_holds_is_refused_where_its_range_is_written() {
    let nat = nat_pool("out", "{addresses: [198.51.100.16/30, '2001:db8:9::10-2001:db8:9::12']}");
    let set = valid(&all(&[host(UPLINK), nat.clone(), pools()]));
    for (address, object, field) in [
        ("198.51.100.2", "HostConfig h", "spec.uplink.addresses"),
        ("2001:db8:9::2", "HostConfig h", "spec.uplink.addresses"),
        ("198.51.100.19", "NatPool out", "spec.addresses[0]"),
        ("2001:db8:9::11", "NatPool out", "spec.addresses[1]"),
        ("203.0.113.3", "AddressPool public", "spec.addresses[0]"),
        ("2001:db8:aa::2", "AddressPool public", "spec.addresses[1]"),
    ] {
        let others = [kernels("198.51.100.3"), kernels("2001:db8:9::3"), kernels(address)];
        let [found] = &held(&set, &others)[..] else { panic!("{address}") };
        assert!(found.is_error() && found.code.ends_with("::conflict"), "{found:?}");
        assert_eq!((found.object.as_deref(), found.field.as_deref()), (Some(object), Some(field)));
        assert!(found.message.contains(address) && found.message.contains("eth1"), "{found:?}");
        assert!(found.help.as_ref().is_some_and(|help| help.contains("ip address del")), "{found:?}");
        assert!(found.place.as_ref().is_some_and(|place| place.line > 0), "{found:?}");
    }
    // Others, routers, and what is not at the uplink at all.
    let others =
        ["198.51.100.3", "2001:db8:9::3", "198.51.100.1", "10.96.0.7", "203.0.113.4", "2001:db8:aa::3"].map(kernels);
    assert_eq!(held(&set, &others), []);
    // Without an uplink there is nothing to be mixed up.
    let (set, _) = validate(&all(&[nat, pools()])).unwrap();
    assert_eq!(held(&set, &[kernels("198.51.100.19"), kernels("203.0.113.3"), kernels("2001:db8:aa::2")]), []);
}
