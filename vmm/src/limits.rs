//! The limits of the process.

/// Makes the best of the limits that this process has: [open files](raise_open_files) as many as it may have,
/// and [files' sizes](outlive_file_size) that are told as errors.
pub fn make_the_best() {
    raise_open_files();
    outlive_file_size();
}

/// Lets this process have as many open files as it may have at all: a vCPU takes three. The 1024 that a
/// process usually starts with are for programs that use select(2). If the limit stays, whatever needs a file
/// says so.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}

/// Has a write past the largest size that this process's files may have (RLIMIT_FSIZE) fail with EFBIG, and not
/// end the process by SIGXFSZ: a log of the console that is full is no reason for the guest to end.
fn outlive_file_size() {
    // SAFETY: ignoring a signal installs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
