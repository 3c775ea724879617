//! What a guest can do wrong in its rings. A fault stops the guest's own port, with a sentence that a person can act
//! on; the daemon and all other ports go on.

/// A broken ring. The port stays stopped until its VMM connects again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The driver made more descriptors available than the ring has.
    #[error(
        "the guest's driver moved its available index to {index}, which is {ahead} ahead of {next} in a ring of {size}"
    )]
    AvailableIndex {
        /// What it wrote.
        index: u16,
        /// What we expected next.
        next: u16,
        /// The difference.
        ahead: u16,
        /// Descriptors of the ring.
        size: u16,
    },
    /// A head in the available ring is no descriptor.
    #[error("the guest's driver made descriptor {head} available in a ring of {size}")]
    HeadOutOfRange {
        /// What it wrote.
        head: u16,
        /// Descriptors of the ring.
        size: u16,
    },
    /// `next` is no descriptor.
    #[error("a descriptor of the guest's driver goes on at {next} in a table of {size}")]
    NextOutOfRange {
        /// What it wrote.
        next: u16,
        /// Descriptors of the table.
        size: u16,
    },
    /// More descriptors in a chain than in the ring.
    #[error("a descriptor chain of the guest's driver does not end within {0} descriptors (a loop?)")]
    ChainTooLong(u16),
    /// A buffer is outside the shared memory.
    #[error(
        "a descriptor of the guest's driver points to {len} octets at guest address {address:#x}, outside the memory that its VMM shares"
    )]
    OutsideMemory {
        /// Guest physical address.
        address: u64,
        /// Octets.
        len: u32,
    },
    /// The table's length is zero, no multiple of 16, or more than the ring allows.
    #[error("an indirect descriptor table of {0} octets is not a multiple of 16, or is empty or too long")]
    IndirectLength(u32),
    /// An indirect table inside an indirect table.
    #[error("an indirect descriptor stands inside an indirect table, which VIRTIO 1.2 §2.7.5.3.1 forbids")]
    IndirectNested,
    /// INDIRECT together with NEXT.
    #[error("an indirect descriptor also has a next one, which VIRTIO 1.2 §2.7.5.3.1 forbids")]
    IndirectWithNext,
    /// INDIRECT was not negotiated.
    #[error("the guest's driver uses an indirect descriptor without having negotiated VIRTIO_RING_F_INDIRECT_DESC")]
    IndirectNotNegotiated,
    /// A transmit buffer for the device to write.
    #[error("a transmit chain of the guest's driver has a buffer that the device may write")]
    WritableInTransmit,
    /// A receive buffer that the device may not write.
    #[error("a receive chain of the guest's driver has a buffer that the device may not write")]
    ReadOnlyInReceive,
    /// A receive chain without room for a header.
    #[error("a receive chain of the guest's driver has room for only {0} octets, less than a virtio-net header")]
    ReceiveChainEmpty(u32),
    /// The shared memory file shrank.
    #[error("the shared memory file of the guest shrank while it was in use")]
    MemoryShrank,
}
