//! The programs by which the kernel chooses who receives a frame: one of the packet sockets of a group (classic BPF), one of the
//! queues of a TAP device (extended BPF). Both say the same, a number of the frame's destination, of which the kernel takes
//! the remainder: its address, and its L4 port without the lower bits. An L4 port of a NAT address belongs to one mapping whoever
//! sends there, so what is for one mapping, and for the whole block of L4 ports that it is of, reaches one worker.
//!
//! Of fragments, of other protocols, and behind IPv6 extension headers it is the address alone. What is not IP is for the first.
//! Nothing depends on it but speed: any worker can take any frame.

use libc::sock_filter;

/// L4 ports that stay together, as a power of two: the smallest block of a NAT pool.
const TOGETHER: u32 = 6;

const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
/// More fragments, and the offset.
const V4_FRAGMENT: u32 = 0x3fff;
const TCP: u32 = 6;
const UDP: u32 = 17;
/// `linux/filter.h`: what is returned is the accumulator.
const BPF_A: u32 = 0x10;

/// For packet sockets (`PACKET_FANOUT_CBPF`).
pub(crate) fn of_sockets() -> Vec<sock_filter> {
    let step = |code: u32, jt: u8, jf: u8, k: u32| sock_filter { code: code as u16, jt, jf, k };
    let at = |offset: u32| (libc::SKF_NET_OFF as u32).wrapping_add(offset);
    let (byte, half, word) = (libc::BPF_LD | libc::BPF_B, libc::BPF_LD | libc::BPF_H, libc::BPF_LD | libc::BPF_W);
    let equals = |value: u32, jt: u8, jf: u8| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, value);
    let keep = step(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0);
    let whole = step(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 0, 0, TOGETHER);
    let add = step(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0, 0, 0);
    let answer = step(libc::BPF_RET | BPF_A, 0, 0, 0);
    vec![
        step(word | libc::BPF_ABS, 0, 0, (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32),
        equals(IPV4, 2, 0),
        equals(IPV6, 15, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        // IPv4: is there a whole TCP or UDP header?
        step(half | libc::BPF_ABS, 0, 0, at(6)),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 7, 0, V4_FRAGMENT),
        step(byte | libc::BPF_ABS, 0, 0, at(9)),
        equals(TCP, 1, 0),
        equals(UDP, 0, 4),
        step(libc::BPF_LDX | libc::BPF_MSH | libc::BPF_B, 0, 0, at(0)),
        step(half | libc::BPF_IND, 0, 0, at(2)),
        whole,
        step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        step(libc::BPF_LD | libc::BPF_IMM, 0, 0, 0),
        keep,
        step(word | libc::BPF_ABS, 0, 0, at(16)),
        add,
        answer,
        // IPv6.
        step(byte | libc::BPF_ABS, 0, 0, at(6)),
        equals(TCP, 1, 0),
        equals(UDP, 0, 3),
        step(half | libc::BPF_ABS, 0, 0, at(42)),
        whole,
        step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        step(libc::BPF_LD | libc::BPF_IMM, 0, 0, 0),
        keep,
        step(word | libc::BPF_ABS, 0, 0, at(36)),
        add,
        answer,
    ]
}

/// One instruction of extended BPF (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// What a load or a calculation ends up in, and what the program returns.
const R0: u8 = 0;
/// The frame, as the program gets it.
const R1: u8 = 1;
/// Where loads look for the frame.
const R6: u8 = 6;
/// The L4 port, once it is known. Loads leave it alone.
const R7: u8 = 7;

/// For queues of a TAP device (`TUNSETSTEERINGEBPF`), as a socket filter: its loads count from the Ethernet header on and read in
/// network byte order; one beyond the frame's end ends the program with 0.
pub(crate) fn of_queues() -> Vec<Instruction> {
    let step = |code: u32, destination: u8, source: u8, offset: i16, immediate: u32| Instruction {
        code: code as u8,
        registers: destination | source << 4,
        offset,
        immediate: immediate as i32,
    };
    let load = |size: u32, at: u32| step(libc::BPF_LD | libc::BPF_ABS | size, 0, 0, 0, at);
    let copy = |to: u8, from: u8| step(ALU64 | MOVE | libc::BPF_X, to, from, 0, 0);
    let set = |to: u8, value: u32| step(ALU64 | MOVE | libc::BPF_K, to, 0, 0, value);
    let change = |by: u32, register: u8, value: u32| step(ALU64 | by | libc::BPF_K, register, 0, 0, value);
    let jump = |when: u32, value: u32, over: i16| step(libc::BPF_JMP | when | libc::BPF_K, R0, 0, over, value);
    let add = step(ALU64 | libc::BPF_ADD | libc::BPF_X, R0, R7, 0, 0);
    let answer = step(libc::BPF_JMP | EXIT, 0, 0, 0, 0);
    let (byte, half, word) = (libc::BPF_B, libc::BPF_H, libc::BPF_W);
    vec![
        copy(R6, R1),
        set(R7, 0),
        load(half, 12),
        jump(libc::BPF_JEQ, IPV4, 3),
        jump(libc::BPF_JEQ, IPV6, 16),
        set(R0, 0),
        answer,
        // IPv4: is there a whole TCP or UDP header?
        load(half, ETHERNET + 6),
        jump(libc::BPF_JSET, V4_FRAGMENT, 9),
        load(byte, ETHERNET + 9),
        jump(libc::BPF_JEQ, TCP, 1),
        jump(NOT_EQUAL, UDP, 6),
        load(byte, ETHERNET),
        change(libc::BPF_AND, R0, 0xf),
        change(libc::BPF_LSH, R0, 2),
        step(libc::BPF_LD | libc::BPF_IND | half, 0, R0, 0, ETHERNET + 2),
        copy(R7, R0),
        change(libc::BPF_RSH, R7, TOGETHER),
        load(word, ETHERNET + 16),
        add,
        answer,
        // IPv6.
        load(byte, ETHERNET + 6),
        jump(libc::BPF_JEQ, TCP, 1),
        jump(NOT_EQUAL, UDP, 3),
        load(half, ETHERNET + 42),
        copy(R7, R0),
        change(libc::BPF_RSH, R7, TOGETHER),
        load(word, ETHERNET + 36),
        add,
        answer,
    ]
}

/// Octets of an Ethernet header.
const ETHERNET: u32 = 14;
/// `linux/bpf.h`.
const ALU64: u32 = 0x07;
const MOVE: u32 = 0xb0;
const EXIT: u32 = 0x90;
const NOT_EQUAL: u32 = 0x50;
