//! Classic BPF, the language in which we tell the kernel what to do with a segment. There is one function for each
//! instruction.

use socket2::SockFilter;

/// Offsets from this number on count from the network header (`SKF_NET_OFF`).
const NETWORK_HEADER: u32 = 0xfff0_0000;
/// The offset at which a random number is read (`SKF_AD_OFF` + `SKF_AD_RANDOM`).
const RANDOM: u32 = 0xffff_f000 + 56;

pub(crate) fn load_byte(at: u32) -> SockFilter {
    instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at)
}

/// Loads two bytes, `at` bytes behind the beginning of the IP header.
pub(crate) fn load_half_from_network_header(at: u32) -> SockFilter {
    let at = NETWORK_HEADER + at;
    instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, at)
}

pub(crate) fn load_random() -> SockFilter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM)
}

pub(crate) fn and(value: u32) -> SockFilter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, value)
}

pub(crate) fn modulo(value: u32) -> SockFilter {
    instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, value)
}

/// If the loaded value is `value`, the program ends with `result`; else it goes on after these two instructions.
pub(crate) fn return_if_equal(value: u32, result: u32) -> [SockFilter; 2] {
    let skip = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    [SockFilter::new(skip, 0, 1, value), ret(result)]
}

pub(crate) fn ret(result: u32) -> SockFilter {
    instruction(libc::BPF_RET | libc::BPF_K, result)
}

fn instruction(bits: u32, value: u32) -> SockFilter {
    SockFilter::new(code(bits), 0, 0, value)
}

#[allow(clippy::cast_possible_truncation, reason = "instructions of 16 bits")]
fn code(bits: u32) -> u16 {
    bits as u16
}
