//! The rules for names, labels and annotations, as in Kubernetes' `apimachinery/pkg/util/validation`, and the search
//! for the word that somebody may have meant.

/// Characters of a DNS label (RFC 1123 §2.1).
pub const LABEL_MAX: usize = 63;

/// Characters of a DNS subdomain name.
pub const SUBDOMAIN_MAX: usize = 253;

/// Octets of all annotations of an object together.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;

/// Checks a DNS label: lower case letters, digits and `-`, not at the ends.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the name.
pub fn check_dns_label(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > LABEL_MAX {
        return Err(format!("has {} characters; at most {LABEL_MAX} are allowed", name.len()));
    }
    let inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    if !name.bytes().all(inner) || name.starts_with('-') || name.ends_with('-') {
        return Err(
            "must consist of lower case letters, digits and '-', and begin and end with a letter or digit".to_owned()
        );
    }
    Ok(())
}

/// Checks a DNS subdomain name: DNS labels joined by dots.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the name.
pub fn check_dns_subdomain(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > SUBDOMAIN_MAX {
        return Err(format!("has {} characters; at most {SUBDOMAIN_MAX} are allowed", name.len()));
    }
    let outer = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
    let part_ok = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().copied().is_some_and(outer)
            && bytes.last().copied().is_some_and(outer)
            && bytes.iter().all(|octet| outer(*octet) || *octet == b'-')
    };
    if name.split('.').all(part_ok) {
        return Ok(());
    }
    Err("must consist of lower case letters, digits, '-' and '.', and begin and end with a letter or digit".to_owned())
}

/// Checks the key of a label or annotation: `name` or `prefix/name`.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the key.
pub fn check_label_key(key: &str) -> Result<(), String> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            check_dns_subdomain(prefix).map_err(|reason| format!("has a prefix that {reason}"))?;
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Err("has no name".to_owned());
    }
    check_label_characters(name)
}

/// Checks the value of a label; an empty one is allowed.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the value.
pub fn check_label_value(value: &str) -> Result<(), String> {
    if value.is_empty() { Ok(()) } else { check_label_characters(value) }
}

/// Letters, digits, `-`, `_` and `.`, with a letter or digit at both ends, at most 63.
fn check_label_characters(text: &str) -> Result<(), String> {
    if text.len() > LABEL_MAX {
        return Err(format!("has {} characters; at most {LABEL_MAX} are allowed", text.len()));
    }
    let bytes = text.as_bytes();
    let ends_ok = [bytes.first(), bytes.last()].into_iter().flatten().all(u8::is_ascii_alphanumeric);
    if ends_ok && bytes.iter().all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(octet)) {
        return Ok(());
    }
    Err("must consist of letters, digits, '-', '_' and '.', and begin and end with a letter or digit".to_owned())
}

/// Checks the name of an L4 port (RFC 6335 §5.1, as Kubernetes has it for container ports).
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the name.
pub fn check_port_name(name: &str) -> Result<(), String> {
    if name.len() > 15 {
        return Err(format!("has {} characters; at most 15 are allowed", name.len()));
    }
    check_dns_label(name)?;
    if name.contains("--") {
        return Err("must not contain '--'".to_owned());
    }
    if !name.bytes().any(|octet| octet.is_ascii_lowercase()) {
        return Err("must contain at least one letter".to_owned());
    }
    Ok(())
}

/// Checks the name of a network device (`dev_valid_name` of Linux).
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the name.
pub fn check_device_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > 15 {
        return Err(format!("has {} octets; a device name has at most 15", name.len()));
    }
    // '%' would make the kernel choose a number, and the name would not be known.
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if name.contains(bad) || name == "." || name == ".." {
        return Err("must not be '.' or '..' and not contain '/', ':', '%' or white space".to_owned());
    }
    Ok(())
}

/// How much one letter too much, too few, wrong or swapped is like the word.
const SLIP_SCORE: f64 = 0.9;

/// The candidate most like `word`, if one is like it at all.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    let scored = candidates.into_iter().map(|candidate| {
        let other = candidate.to_ascii_lowercase();
        let score = strsim::jaro_winkler(&lower, &other).max(strsim::normalized_damerau_levenshtein(&lower, &other));
        // In a short word a single slip is a large part: `tpc` is TCP.
        let slip = other.len() >= 3 && strsim::damerau_levenshtein(&lower, &other) == 1;
        (candidate, if slip { score.max(SLIP_SCORE) } else { score })
    });
    let best = scored.max_by(|a, b| a.1.total_cmp(&b.1))?;
    (best.1 >= 0.75).then_some(best.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_labels_and_subdomains() {
        for good in ["a", "web-0", "0", &"a".repeat(63)] {
            assert_eq!(check_dns_label(good), Ok(()), "{good}");
            assert_eq!(check_dns_subdomain(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ä", "a/b", &"a".repeat(64)] {
            assert!(check_dns_label(bad).is_err(), "{bad}");
        }
        assert_eq!(check_dns_subdomain("web.0.a-b"), Ok(()));
        for bad in ["", ".", "a.", ".a", "a..b", "a.-b", "a-.b", "a/b", "..", &"a.".repeat(127)] {
            assert!(check_dns_subdomain(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_keys_and_values() {
        for good in ["app", "app.kubernetes.io/name", "net.coreweave.cloud/attachLoadbalancerIP", "A_b.c-9"] {
            assert_eq!(check_label_key(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "A.b/c", "a/b/c", "-a", "a b", &"x".repeat(64)] {
            assert!(check_label_key(bad).is_err(), "{bad}");
        }
        assert_eq!(check_label_value(""), Ok(()));
        assert!(check_label_value("a b").is_err());
        assert!(check_label_value("_a").is_err());
    }

    #[test]
    fn device_and_port_names() {
        for bad in ["", "..", "a/b", "a b", "hw%d", "a:0", "sixteen-octets-x"] {
            assert!(check_device_name(bad).is_err(), "{bad}");
        }
        assert_eq!(check_device_name("hw-bastion"), Ok(()));
        for bad in ["", "80", "a--b", "Http", "sixteen-letters-"] {
            assert!(check_port_name(bad).is_err(), "{bad}");
        }
        assert_eq!(check_port_name("http"), Ok(()));
    }

    #[test]
    fn the_closest_word_is_found_or_none() {
        assert_eq!(closest("netwrok", ["network", "backend"]), Some("network"));
        assert_eq!(closest("adresses", ["addresses", "mac"]), Some("addresses"));
        assert_eq!(closest("tpc", ["TCP", "UDP", "SCTP"]), Some("TCP"));
        assert_eq!(closest("tcp", ["UDP", "IP"]), None);
        assert_eq!(closest("frobnicate", ["addresses", "mac"]), None);
    }
}
