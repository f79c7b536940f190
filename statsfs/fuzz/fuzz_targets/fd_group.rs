//! Arbitrary bytes as a descriptor of what the kernel counts, and others in their place later: what is taken is shown,
//! and no counter falls.
#![no_main]

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use statsfs::{Registry, RegistryOptions};

fuzz_target!(|input: &[u8]| {
    // SAFETY: the name is a string with its NUL.
    let fd = unsafe { libc::memfd_create(c"counted".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create");
    // SAFETY: the kernel has just made it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(input).expect("there is memory");
    let options = RegistryOptions { segment_size: 1 << 20, ..RegistryOptions::default() };
    let registry = Registry::with_options(options).expect("a registry");
    let source = registry.create_source("vm").expect("a source");
    source.register().expect("it is the first");
    let counted = file.try_clone().expect("a descriptor");
    if source.add_fd_group("kernel", counted.into()).is_err() {
        return;
    }
    let tree = registry.tree().expect("a tree");
    let shown = || {
        let mut text = Vec::new();
        tree.flat(&mut text);
        let text = String::from_utf8(text).expect("paths and numbers");
        text.lines().map(|line| line.rsplit_once(' ').expect("a path and a number")).fold(
            HashMap::new(),
            |mut all, (path, number)| {
                let number: i128 = number.parse().expect("a number");
                assert!(all.insert(path.to_owned(), number).is_none(), "{path} is there twice");
                all
            },
        )
    };
    let before = shown();
    // What was read of it stays what it says it is.
    for at in (0..input.len()).step_by(8) {
        file.write_all_at(&[0; 8], at as u64).expect("it is as long");
    }
    let after = shown();
    assert_eq!(before.len(), after.len());
    // Of a histogram, all counts are of what only grows.
    for (path, number) in before.iter().filter(|(path, _)| path.contains("/buckets/")) {
        assert!(after[path] >= *number, "{path}: {} after {number}", after[path]);
    }
});
