//! The guest's serial console on the VMM's standard input and output.

mod escape;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use devices::SerialPort;
use devices::stats::{SerialCounters, SerialInterrupt};
use devices::trigger::EventFdTrigger;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::lifecycle::Lifecycle;
use escape::{Escape, Quit};

/// The serial port as machines have it.
pub type Com = SerialPort<SerialInterrupt, SerialCounters, Output, EventFdTrigger>;

/// Where a serial port's output goes.
pub enum Output {
    /// To the VMM's standard output, byte by byte as the guest sends it.
    Stdout {
        /// The VMM's standard output.
        file: File,
        /// Tells when to stop trying.
        lifecycle: Arc<Lifecycle>,
        /// What it did not take.
        lost: Arc<Lost>,
    },
    /// Nowhere; it is counted all the same.
    Discard,
}

/// Output that could not be written: how much, and why the first of it.
#[derive(Debug, Default)]
pub struct Lost {
    bytes: AtomicU64,
    first: OnceLock<io::Error>,
}

impl Lost {
    fn add(&self, bytes: usize, error: &io::Error) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.first.get_or_init(|| match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(error.kind(), error.to_string()),
        });
    }

    /// What there is to say about it at the end; `None` if nothing was lost.
    pub fn message(&self) -> Option<String> {
        let (bytes, first) = (self.bytes.load(Ordering::Relaxed), self.first.get()?);
        let bytes = if bytes == 1 { "1 byte".into() } else { format!("{bytes} bytes") };
        Some(format!("{bytes} of the guest's console could not be written: {first}"))
    }
}

impl Output {
    /// To the VMM's standard output, until the machine ends.
    ///
    /// # Errors
    /// If there is no standard output.
    pub fn stdout(lifecycle: Arc<Lifecycle>, lost: Arc<Lost>) -> io::Result<Self> {
        // Past std's buffer: a guest's prompt has no newline.
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self::Stdout { file, lifecycle, lost })
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Discard => Ok(data.len()),
            Self::Stdout { file, lifecycle, lost } => write_until_end(file, lifecycle, data)
                .inspect_err(|error| lost.add(data.len(), error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to a reader who may not read, but must not keep the machine from ending: the kick at the end
/// interrupts the write.
fn write_until_end(file: &mut File, lifecycle: &Lifecycle, data: &[u8]) -> io::Result<usize> {
    // Kinds after which nobody tries again.
    let gone = || Err(io::Error::new(ErrorKind::TimedOut, "nobody took it until the guest's end"));
    loop {
        match file.write(data) {
            Ok(0) if !data.is_empty() => return Err(ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted && lifecycle.is_stopping() => {
                return gone();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody made the output non-blocking for us.
            Err(error) if error.kind() == ErrorKind::WouldBlock && lifecycle.is_stopping() => {
                return gone();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_writable(file),
            other => return other,
        }
    }
}

/// Waits until the file can be written, or a signal or a moment comes.
fn wait_writable(file: &File) {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd; whatever poll says, the caller tries again.
    unsafe { libc::poll(&mut poll, 1, 100) };
}

/// Feeds the VMM's standard input to a serial port, as fast as the guest takes it.
pub struct Input {
    port: Arc<Com>,
    /// The port's trigger: there is room again.
    room: EventFd,
    /// `None` after its end.
    stdin: Option<File>,
    /// Whether stdin is of a kind that can be waited for (a terminal, pipe or socket). Others (files,
    /// /dev/null) can always be read.
    can_wait: bool,
    /// Whether it is being waited for now.
    waits: bool,
    /// What was read but not taken by the port yet.
    pending: VecDeque<u8>,
    /// For a user at a terminal, who may speak to the VMM.
    escape: Option<Escape>,
    /// The user wants to end the guest.
    quit: Option<Quit>,
}

/// How much of what a user types waits for a guest that does not read.
const MAX_PENDING: usize = 1 << 20;

impl Input {
    /// An eventfd for a port to say that there is room for input.
    ///
    /// # Errors
    /// What eventfd(2) says.
    pub fn room_event() -> io::Result<EventFd> {
        EventFd::new(EFD_NONBLOCK)
    }

    /// From the VMM's standard input, if it has one, to `port`, whose trigger is `room`. If it is
    /// `interactive`, a user at a terminal can end the guest.
    pub fn new(port: Arc<Com>, room: EventFd, interactive: bool) -> Self {
        let stdin = io::stdin().as_fd().try_clone_to_owned().ok().map(File::from);
        Self {
            port,
            room,
            stdin,
            can_wait: true,
            waits: false,
            pending: VecDeque::new(),
            escape: interactive.then(Escape::default),
            quit: None,
        }
    }

    /// Whether the user wants to end the guest.
    pub fn wants_to_quit(&self) -> bool {
        self.quit.is_some()
    }

    fn stdin_events(file: &File) -> Events {
        Events::new(file, EventSet::IN)
    }

    fn wait(&mut self, wait: bool, ops: &mut EventOps) {
        let Some(stdin) = &self.stdin else { return };
        if !self.can_wait || self.waits == wait {
            return;
        }
        if wait {
            // Files and /dev/null can not be waited for (EPERM): they always have something, or their
            // end.
            self.can_wait = ops.add(Self::stdin_events(stdin)).is_ok();
        } else {
            // It was added, so it can be removed.
            let _ = ops.remove(Self::stdin_events(stdin));
        }
        self.waits = wait && self.can_wait;
    }

    /// Moves input from stdin to the port: once where reading again could block, else until the port is
    /// full. What a user types is read even then, since it may be for the VMM.
    fn feed(&mut self, ops: &mut EventOps) {
        loop {
            let room = self.port.input_room();
            let interactive = self.escape.is_some() && self.pending.len() < MAX_PENDING;
            if room == 0 && !interactive {
                // The port will say when there is room; until then stdin would only wake us in vain.
                return self.wait(false, ops);
            }
            if room > 0 && !self.pending.is_empty() {
                let taken = self.port.receive(self.pending.as_slices().0);
                self.pending.drain(..taken);
                continue;
            }
            self.wait(true, ops);
            let Some(stdin) = &mut self.stdin else { return };
            if self.can_wait && !is_readable(stdin) {
                return;
            }
            let mut bytes = [0; 64];
            let most = if interactive { bytes.len() } else { room.min(bytes.len()) };
            match stdin.read(&mut bytes[..most]) {
                // Offered in the next turn, when there may be less room than there was.
                Ok(n) if n > 0 => match &mut self.escape {
                    Some(escape) => self.quit = escape.filter(&bytes[..n], &mut self.pending),
                    None => self.pending.extend(&bytes[..n]),
                },
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                // A terminal that is not ours now, but may be later: whoever knows fires the trigger.
                Err(error) if interactive && error.raw_os_error() == Some(libc::EIO) => {
                    return self.wait(false, ops);
                }
                // The end, or an error that would only come again (a terminal that is not ours).
                Ok(_) | Err(_) => {
                    self.wait(false, ops);
                    self.stdin = None;
                    return;
                }
            }
            if self.quit.is_some() {
                return;
            }
        }
    }
}

/// Whether reading would not block.
fn is_readable(file: &File) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, and no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

impl MutEventSubscriber for Input {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.room.as_raw_fd() {
            // Only the wake-up matters, not how many there were.
            let _ = self.room.read();
        }
        self.feed(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // An eventfd can always be waited for.
        ops.add(Events::new(&self.room, EventSet::IN)).expect("an eventfd can be waited for");
        // What is there already is read in the loop's first turn, not here: nobody looks before that
        // turn's end whether the user wants to quit. It can only fail when the counter is full.
        let _ = self.room.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;
    use std::thread;
    use std::time::Duration;

    use event_manager::{EventManager, SubscriberOps};
    use statsfs::Slot;

    use super::*;
    use crate::kick;
    use crate::lifecycle::Ending;

    fn pipe() -> (File, File) {
        let mut fds = [0; 2];
        // SAFETY: room for the two descriptors.
        assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: both are new and nobody else's.
        fds.map(|fd| unsafe { File::from_raw_fd(fd) }).into()
    }

    #[test]
    fn a_reader_that_does_not_read_does_not_keep_the_machine_from_ending() {
        kick::install_handler().unwrap();
        let (_reader, writer) = pipe();
        let lifecycle = Arc::new(Lifecycle::new().unwrap());
        let mut output =
            Output::Stdout { file: writer, lifecycle: lifecycle.clone(), lost: Arc::default() };
        let thread = thread::spawn({
            let lifecycle = lifecycle.clone();
            move || {
                let _running = lifecycle.thread();
                let mut written = 0usize;
                while output.write_all(b"x").is_ok() {
                    written += 1;
                }
                written
            }
        });
        // Until the pipe is full, and for good measure.
        thread::sleep(Duration::from_millis(200));
        assert!(!thread.is_finished());
        kick::kick(&thread);
        thread::sleep(Duration::from_millis(20));
        assert!(!thread.is_finished(), "a kick alone loses no output");
        lifecycle.end(Ending::Stopped);
        lifecycle.wait_for_threads(|| kick::kick(&thread));
        assert_eq!(thread.join().unwrap(), 65536);
    }

    #[test]
    fn output_to_nobody_is_an_error_and_not_the_end() {
        let (reader, writer) = pipe();
        drop(reader);
        let lifecycle = Arc::new(Lifecycle::new().unwrap());
        let lost = Arc::new(Lost::default());
        let mut output = Output::Stdout { file: writer, lifecycle, lost: lost.clone() };
        assert_eq!(lost.message(), None);
        for n in ["1 byte", "2 bytes"] {
            assert_eq!(output.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
            let said = "of the guest's console could not be written: Broken pipe (os error 32)";
            assert_eq!(lost.message(), Some(format!("{n} {said}")));
        }
    }

    /// A port, and an event loop that feeds it from `stdin`.
    fn fed(stdin: File) -> (Arc<Com>, EventManager<Input>) {
        let room = Input::room_event().unwrap();
        let trigger = EventFdTrigger::new(room.try_clone().unwrap());
        let counters = SerialCounters::new(Slot::dummy());
        let port = Arc::new(SerialPort::new(
            SerialInterrupt::not_connected(),
            counters,
            Output::Discard,
            trigger,
        ));
        let input = Input {
            port: port.clone(),
            room,
            stdin: Some(stdin),
            can_wait: true,
            waits: false,
            pending: VecDeque::new(),
            escape: None,
            quit: None,
        };
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(input);
        (port, events)
    }

    /// What a guest reads that polls the port until nothing comes any more.
    fn read_all(port: &Com, events: &mut EventManager<Input>) -> Vec<u8> {
        use devices::BusDevice;
        let register = |n| {
            let mut data = [0];
            port.read(n, &mut data);
            data[0]
        };
        let mut all = Vec::new();
        loop {
            while register(5) & 1 != 0 {
                all.push(register(0));
            }
            if events.run_with_timeout(20).unwrap() == 0 && register(5) & 1 == 0 {
                return all;
            }
        }
    }

    #[test]
    fn a_file_is_read_wholly_as_fast_as_the_guest_takes_it() {
        let text: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let (port, mut events) = fed(File::open(file.path()).unwrap());
        assert_eq!(read_all(&port, &mut events), text);
    }

    #[test]
    fn a_pipe_is_read_as_it_comes_and_to_its_end() {
        let (reader, mut writer) = pipe();
        let (port, mut events) = fed(reader);
        assert_eq!(read_all(&port, &mut events), b"");
        let text: Vec<u8> = (0..500u32).map(|i| i as u8).collect();
        writer.write_all(&text).unwrap();
        assert_eq!(read_all(&port, &mut events), text);
        writer.write_all(b"end").unwrap();
        drop(writer);
        assert_eq!(read_all(&port, &mut events), b"end");
        // The end of the pipe, which stays readable for ever, no longer wakes anybody.
        assert_eq!(events.run_with_timeout(20).unwrap(), 0);
    }

    #[test]
    fn dev_null_is_no_input() {
        let (port, mut events) = fed(File::open("/dev/null").unwrap());
        assert_eq!(read_all(&port, &mut events), b"");
    }
}
