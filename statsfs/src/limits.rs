//! Limits of the process or of the host as what an error comes from.

use std::io;

/// The way out if a limit is the reason of `error`: what to raise, and by which command. The errors of this crate
/// say it by themselves.
pub fn way_out(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EMFILE => Some("raise this process's limit of open files (`ulimit -n`)"),
        libc::ENFILE => Some("raise the host's limit of open files (`sysctl fs.file-max`)"),
        // What pthread_create(3) says, also when there is no address space for a stack: nothing here can be
        // had later.
        libc::EAGAIN => Some(
            "raise the limit of processes and threads (`ulimit -u`) or of address space (`ulimit -v`)",
        ),
        libc::EFBIG => Some("raise this process's limit of file sizes (`ulimit -f`)"),
        libc::ENOMEM => {
            Some("raise this process's limit of address space (`ulimit -v`), or free memory")
        }
        _ => None,
    }
}

/// An error and the way out, if a limit is the reason, else the error alone.
pub(crate) fn told(error: &io::Error) -> String {
    way_out(error).map_or_else(|| error.to_string(), |way_out| format!("{error}: {way_out}"))
}
