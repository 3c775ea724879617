//! A cursor that builds a message of ours in a fixed buffer: replies of DHCP, router advertisements, DNS names.
//!
//! It never grows and never panics: what does not fit is refused with [`Full`], and the caller drops the message or
//! leaves the option out. It knows no protocol; the domain name encoding (RFC 1035 §3.1) stands here because DHCPv4
//! option 119, DHCPv6 option 24 and the DNSSL option of a router advertisement share it.

/// The message does not fit its buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Writes from the start of a buffer.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// A writer at the start of `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// Octets written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Octets that still fit.
    pub fn room(&self) -> usize {
        self.buffer.len() - self.len
    }

    /// What was written.
    pub fn written(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Appends octets.
    ///
    /// # Errors
    /// When they do not fit; then nothing was written.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let end = self.len.checked_add(bytes.len()).ok_or(Full)?;
        self.buffer.get_mut(self.len..end).ok_or(Full)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// Appends one octet.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn u8(&mut self, value: u8) -> Result<(), Full> {
        self.bytes(&[value])
    }

    /// Appends 16 bits in network order.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn u16(&mut self, value: u16) -> Result<(), Full> {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends 32 bits in network order.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn u32(&mut self, value: u32) -> Result<(), Full> {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends `count` zero octets.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn zeros(&mut self, count: usize) -> Result<(), Full> {
        let end = self.len.checked_add(count).ok_or(Full)?;
        self.buffer.get_mut(self.len..end).ok_or(Full)?.fill(0);
        self.len = end;
        Ok(())
    }

    /// Overwrites 16 bits that were written before, such as a length known only now. Does nothing beyond the end.
    pub fn patch_u16(&mut self, at: usize, value: u16) {
        if let Some(field) = self.buffer[..self.len].get_mut(at..at.saturating_add(2)) {
            field.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// Takes back everything after `len` octets: an option that turned out not to fit.
    pub fn rewind(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends what `fill` writes to a writer of its own, which counts from its own first octet.
    ///
    /// # Errors
    /// When it does not fit; then nothing was written.
    pub fn nested(&mut self, fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Result<(), Full> {
        let mut inner = Writer::new(&mut self.buffer[self.len..]);
        fill(&mut inner)?;
        self.len += inner.len;
        Ok(())
    }

    /// Appends a domain name in uncompressed wire form (RFC 1035 §3.1), label by label.
    ///
    /// # Errors
    /// When it does not fit, or is no domain name: an empty label, one over 63 octets, or over 255 octets in all.
    pub fn name<'n>(&mut self, labels: impl IntoIterator<Item = &'n str>) -> Result<(), Full> {
        let start = self.len;
        let result = labels.into_iter().try_for_each(|label| self.label(label)).and_then(|()| self.u8(0));
        if result.is_err() || self.len - start > DOMAIN_LEN_MAX {
            self.rewind(start);
            return Err(Full);
        }
        Ok(())
    }

    fn label(&mut self, label: &str) -> Result<(), Full> {
        if label.is_empty() || label.len() > LABEL_LEN_MAX {
            return Err(Full);
        }
        self.u8(label.len() as u8)?;
        self.bytes(label.as_bytes())
    }
}

/// Octets of a label (RFC 1035 §2.3.4).
const LABEL_LEN_MAX: usize = 63;
/// Octets of a name with its length octets (RFC 1035 §2.3.4).
const DOMAIN_LEN_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_written() {
        let mut buffer = [0xa5; 4];
        let mut writer = Writer::new(&mut buffer);
        writer.u16(0x0102).unwrap();
        assert_eq!(writer.bytes(&[3, 4, 5]), Err(Full));
        assert_eq!(writer.zeros(3), Err(Full));
        assert_eq!((writer.written(), writer.room()), (&[1u8, 2][..], 2));
        writer.patch_u16(0, 0x0908);
        writer.patch_u16(1, 0xffff);
        writer.u16(0x0304).unwrap();
        assert_eq!(writer.written(), [9, 8, 3, 4]);
    }

    #[test]
    fn domain_names_are_labels_and_bad_ones_leave_nothing() {
        let mut buffer = [0xa5; 300];
        let mut writer = Writer::new(&mut buffer);
        writer.name(["cluster", "local"]).unwrap();
        assert_eq!(writer.written(), b"\x07cluster\x05local\x00");
        let len = writer.len();
        let long_label = "a".repeat(64);
        let long_name = vec!["a".repeat(63); 4].join(".");
        for bad in ["", ".", "a..b", ".a", &long_label, &long_name] {
            assert_eq!(writer.name(bad.split('.')), Err(Full), "{bad}");
            assert_eq!(writer.len(), len);
        }
        writer.name(["a"]).unwrap();
        assert_eq!(&writer.written()[len..], b"\x01a\x00");
    }
}
