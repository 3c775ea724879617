//! What the author of an attachment may not have meant. No errors: a network may get another range later.

use super::{Attachment, ServiceAddresses, attach_path, attachment, attachments, service};
use crate::config::checked::Form;
use crate::config::diagnostic::Diagnostic;
use crate::config::kind::{Kind, ObjectKey};
use crate::config::problem::Problem;
use crate::config::set::ObjectSet;

/// What is dubious about attachments that those of `keys` take part in: ports, their Pods and networks, Services.
pub fn dubious<'a>(
    set: &'a ObjectSet,
    given: &ServiceAddresses,
    keys: impl IntoIterator<Item = &'a ObjectKey>,
) -> Vec<Diagnostic> {
    let mut concerned: Vec<Attachment<'_>> = keys.into_iter().flat_map(|key| of(set, key)).collect();
    concerned.sort_by_key(|attachment| &attachment.port.key);
    concerned.dedup_by_key(|attachment| &attachment.port.key);
    concerned.iter().filter_map(|attachment| half_used(set, given, attachment)).collect()
}

/// The attachments that an object takes part in.
fn of<'a>(set: &'a ObjectSet, key: &ObjectKey) -> Vec<Attachment<'a>> {
    match key.kind {
        Kind::Port => attachment(set, key).into_iter().collect(),
        Kind::Pod => {
            attachment(set, &ObjectKey::new(Kind::Port, key.namespace.as_deref(), &key.name)).into_iter().collect()
        }
        Kind::Service if service(set, key).is_some_and(|(_, service)| service.form == Form::Attach) => {
            attachments(set).filter(|attachment| attachment.service_key() == *key).collect()
        }
        Kind::Network => attachments(set).filter(|attachment| attachment.network() == key.name).collect(),
        _ => Vec::new(),
    }
}

/// An address that nobody has: the Service has it, and the port's network has no range of its family. With none that is of use it is
/// no doubt but a problem.
fn half_used(set: &ObjectSet, given: &ServiceAddresses, attachment: &Attachment<'_>) -> Option<Diagnostic> {
    let service = attachment.service_key();
    let (used, unused) = attachment.split(set, given.get(&service)?);
    let (first, _) = (unused.first()?, used.first()?);
    let family = if first.address.is_ipv4() { "IPv4" } else { "IPv6" };
    let message = format!(
        "address {} of {service} is of no use: Network {} has no {family} range",
        first.address,
        attachment.network()
    );
    let problem = Problem::value(&attach_path(), "no_effect", message).warning().label("one family only");
    Some(attachment.written.diagnose(problem.help("write spec.ipFamilies in the Service, or give the Network a range")))
}
