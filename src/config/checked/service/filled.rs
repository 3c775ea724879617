//! A Service as Kubernetes shows it: with what it was given.

use std::net::IpAddr;
use std::sync::Arc;

use super::HEADLESS;
use crate::config::checked::{Form, Network, Object, Spec};
use crate::config::raw::RawObject;
use crate::config::raw::service::{IpFamily, IpFamilyPolicy, ServiceType};

impl Object {
    /// The same Service of this network saying its type, cluster addresses and families; another object as it is. Applied again, it is the same Service.
    #[must_use]
    pub fn with_cluster_addresses(&self, given: &[IpAddr], network: Option<&Network>) -> Self {
        let Spec::Service(service) = &self.spec else { return self.clone() };
        let mut object = self.clone();
        let RawObject::Service(raw) = Arc::make_mut(&mut object.raw) else { return object };
        let spec = &mut raw.spec;
        spec.service_type = spec.service_type.or(Some(ServiceType::ClusterIP));
        let addresses: Vec<String> = match service.form {
            Form::Attach | Form::ExternalName(_) => return object,
            Form::Headless => {
                let (has_v4, has_v6) = network.map_or((true, true), |of| (of.v4.is_some(), of.v6.is_some()));
                let mut named: Vec<bool> = [true, false].into_iter().filter(|it| service.names(*it, has_v4)).collect();
                // Written, the policy says that one of two is enough.
                if spec.ip_family_policy == Some(IpFamilyPolicy::PreferDualStack) {
                    named.retain(|ipv4| if *ipv4 { has_v4 } else { has_v6 });
                }
                named.sort_by_key(|ipv4| *ipv4 == service.ipv6_first);
                let family = |ipv4: &bool| if *ipv4 { IpFamily::IPv4 } else { IpFamily::IPv6 };
                let one = [IpFamilyPolicy::SingleStack, IpFamilyPolicy::RequireDualStack];
                spec.ip_family_policy = spec.ip_family_policy.or(one.get(named.len().saturating_sub(1)).copied());
                spec.ip_families = Some(named.iter().map(family).collect());
                vec![HEADLESS.to_owned()]
            }
            Form::ClusterIp | Form::LoadBalancer => {
                let mut given = given.to_vec();
                given.sort_by_key(|address| address.is_ipv6() != service.ipv6_first);
                let family = |address: &IpAddr| if address.is_ipv4() { IpFamily::IPv4 } else { IpFamily::IPv6 };
                if !given.is_empty() {
                    spec.ip_families = Some(given.iter().map(family).collect());
                    let one = [IpFamilyPolicy::SingleStack, IpFamilyPolicy::RequireDualStack];
                    spec.ip_family_policy = spec.ip_family_policy.or(one.get(given.len() - 1).copied());
                }
                given.iter().map(ToString::to_string).collect()
            }
        };
        if !addresses.is_empty() {
            spec.cluster_ip = addresses.first().cloned();
            spec.cluster_ips = Some(addresses);
        }
        object
    }
}
