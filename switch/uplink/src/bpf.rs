//! Programs of extended BPF in the kernel (bpf(2)): loading them, as far as TAP devices need it. No maps, no compiler.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::steering::Instruction;

/// `linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The beginning of `union bpf_attr`, as loading uses it. The kernel takes what is missing for zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// Loads a socket filter. It goes when nobody has its file descriptor and no device uses it. Needs CAP_BPF where
/// `kernel.unprivileged_bpf_disabled` is set.
pub(crate) fn load_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..9].copy_from_slice(b"hostweave");
    let request = Load {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name,
    };
    // SAFETY: the kernel reads the request, `count` instructions and a text that ends with zero, all of which live until it
    // returns, and keeps copies. JUSTIFICATION: `nix` does not know this call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const request, size_of::<Load>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this file descriptor for us; nobody else knows it. JUSTIFICATION: it arrives as a number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
