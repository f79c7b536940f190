//! The limits of the process.

use std::error::Error;
use std::io;

use vmm_sys_util::errno;

/// Makes the best of the limits that this process has: open files as many as it may have,
/// and files' sizes that are told as errors.
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

/// The way out if a limit of the process or of the host is what an error comes from in the end.
pub fn way_out(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let errno = |error: &(dyn Error + 'static)| {
        let io = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        io.or_else(|| error.downcast_ref::<errno::Error>().map(|error| error.errno()))
    };
    let mut cause = error;
    let errno = loop {
        match errno(cause) {
            Some(errno) => break errno,
            None => cause = cause.source()?,
        }
    };
    statsfs::limits::way_out(&io::Error::from_raw_os_error(errno))
}

/// An error with the way out, if a limit is what it comes from, and the error does not name it.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let text = error.to_string();
    match way_out(error) {
        Some(way_out) if !text.ends_with(way_out) => format!("{text}: {way_out}"),
        _ => text,
    }
}
