//! System calls that fail, by seccomp.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Has a system call fail with these arguments (or any, if there are none), for the calling thread, and for those that it
/// starts.
pub(crate) fn deny(call: i64, arguments: &[(u8, i32)], error: i32) {
    seccompiler::apply_filter(&program(call, arguments, error)).unwrap();
}

/// As [`deny`], for every thread of this process.
pub(crate) fn deny_everywhere(call: i64, error: i32) {
    seccompiler::apply_filter_all_threads(&program(call, &[], error)).unwrap();
}

/// As a service is denied it, by systemd's `RestrictAddressFamilies`.
pub(crate) fn deny_netlink() {
    let is_netlink = [(0, libc::AF_NETLINK)];
    deny(libc::SYS_socket, &is_netlink, libc::EAFNOSUPPORT);
}

fn program(call: i64, arguments: &[(u8, i32)], error: i32) -> BpfProgram {
    let is = |(index, value): &(u8, i32)| {
        let value = value.cast_unsigned().into();
        SeccompCondition::new(*index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap()
    };
    let conditions: Vec<_> = arguments.iter().map(is).collect();
    // Without a rule it is any call of that number.
    let rule = (!conditions.is_empty()).then(|| SeccompRule::new(conditions).unwrap());
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, rule.into_iter().collect())]),
        SeccompAction::Allow,
        SeccompAction::Errno(error.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    filter.unwrap().try_into().unwrap()
}
