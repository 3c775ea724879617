//! Addresses that are to be hostweave's and that the kernel of this host holds: it would answer for them too, or keep their packets.

use hostweave_uplink::netlink::interfaces::Held;

use super::check::holdings;
use crate::config::diagnostic::Diagnostic;
use crate::config::problem::Problem;
use crate::config::set::ObjectSet;
use crate::fabric::uplink::owned::{cure, refusal};

/// What is wrong where the kernel holds the addresses `held`: of the uplink, of NAT pools and of public pools, whether somebody has them
/// already or not. Without an uplink nothing is.
pub fn held(set: &ObjectSet, held: &[Held]) -> Vec<Diagnostic> {
    let Some(uplink) = &set.host().uplink else { return Vec::new() };
    let mut found = Vec::new();
    for holding in holdings(set).iter().filter(|holding| holding.outside) {
        for one in held.iter().filter(|one| holding.range.contains(one.address)) {
            let problem = Problem::value(&holding.path, "conflict", refusal(one)).label("the kernel's");
            found.push(holding.object.diagnose(problem.help(cure(one, held, uplink.driver))));
        }
    }
    found
}
