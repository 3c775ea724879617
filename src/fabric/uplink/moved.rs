//! How often packets are told that addresses at the uplink were lost or regained: whoever claims and releases ours makes every
//! connection that crosses be looked at anew, but not more than once a second.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Between two times.
const APART: Duration = Duration::from_secs(1);

/// Addresses that were lost or regained since packets were last told.
#[derive(Default, Debug)]
pub struct Moved {
    waits: bool,
    regained: Vec<IpAddr>,
    told: Option<Instant>,
}

impl Moved {
    /// Addresses were lost, or these regained.
    pub fn note(&mut self, regained: impl IntoIterator<Item = IpAddr>) {
        self.regained.extend(regained);
        self.waits = true;
    }

    /// Those that were regained, if packets are to be told now.
    ///
    /// # Errors
    /// When they are to be told, if at all.
    pub fn take(&mut self, now: Instant) -> Result<Vec<IpAddr>, Option<Instant>> {
        let at = self.told.map_or(now, |told| told + APART);
        if !self.waits || now < at {
            return Err(self.waits.then_some(at));
        }
        (self.waits, self.told) = (false, Some(now));
        Ok(std::mem::take(&mut self.regained))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_at_once_and_then_once_a_second_of_all_that_came_meanwhile() {
        let (mut moved, start) = (Moved::default(), Instant::now());
        assert_eq!(moved.take(start), Err(None));
        let address = |v6: bool, last: u8| -> IpAddr {
            if v6 { std::net::Ipv6Addr::from([last; 16]).into() } else { [192, 0, 2, last].into() }
        };
        moved.note([]);
        assert_eq!(moved.take(start), Ok(Vec::new()), "a loss");
        let mut told = Vec::new();
        for tenth in 1..=30u8 {
            let now = start + Duration::from_millis(100) * tenth.into();
            moved.note([address(tenth % 2 == 0, tenth)]);
            match moved.take(now) {
                Ok(regained) => told.push((tenth, regained.len())),
                Err(at) => assert!(at.is_some_and(|at| at > now)),
            }
        }
        assert_eq!(told, [(10, 10), (20, 10), (30, 10)]);
        assert_eq!(moved.take(start + Duration::from_secs(9)), Err(None));
    }
}
