//! The signals that end the VMM, as events.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::signal::create_sigset;

/// The signals that end the VMM in an orderly way.
const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Receives SIGINT, SIGTERM, SIGHUP and SIGQUIT as events instead of letting them end the process, and SIGCONT.
#[derive(Debug)]
pub struct Signals {
    file: File,
    received: Option<u8>,
    continued: bool,
}

impl Signals {
    /// Starts receiving. Must be called before any thread is started, so that none takes a signal in
    /// the old way.
    ///
    /// # Errors
    /// What sigprocmask(2) or signalfd(2) says.
    pub fn receive() -> io::Result<Self> {
        let ending = ENDING.into_iter().filter(|s| !is_nohup(*s));
        let signals: Vec<_> = ending.chain([libc::SIGCONT]).collect();
        let set = create_sigset(&signals).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        // SAFETY: `set` is an initialised signal set, and the old one is not asked for.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // A terminal that is not ours to read from gives EIO then, instead of stopping the machine.
        // SAFETY: ignoring a signal installs no code.
        unsafe { libc::signal(libc::SIGTTIN, libc::SIG_IGN) };
        // SAFETY: a new descriptor for an initialised signal set.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self { file: unsafe { File::from_raw_fd(fd) }, received: None, continued: false })
    }

    /// The last signal received that is to end the VMM, if there was one.
    pub fn received(&mut self) -> Option<u8> {
        self.receive_all();
        self.received
    }

    /// Whether the VMM was stopped and goes on, or came to the foreground, since this was last asked.
    pub fn take_continued(&mut self) -> bool {
        self.receive_all();
        std::mem::take(&mut self.continued)
    }

    fn receive_all(&mut self) {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        let mut info = [0; SIZE];
        while matches!(self.file.read(&mut info), Ok(SIZE)) {
            // The structure begins with the signal's number.
            let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            if number == libc::SIGCONT as u32 {
                self.continued = true;
            } else {
                self.received = u8::try_from(number).ok();
            }
        }
    }
}

/// Whether this is SIGHUP and we were started to ignore it, as by nohup(1).
fn is_nohup(signal: libc::c_int) -> bool {
    // SAFETY: all zeroes is a valid `sigaction` to be overwritten.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is installed, and `old` is valid for the call.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &mut old) };
    signal == libc::SIGHUP && asked == 0 && old.sa_sigaction == libc::SIG_IGN
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.receive_all();
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.file, EventSet::IN)).expect("a signalfd can be waited for");
    }
}
