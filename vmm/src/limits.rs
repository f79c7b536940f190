//! The limits of the process.

/// Lets this process have as many open files as it may have at all: a vCPU takes three. The 1024 that a
/// process usually starts with are for programs that use select(2). If the limit stays, whatever needs a file
/// says so.
pub fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}
