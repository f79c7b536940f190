//! The terminal, which is given back as it was, however this ends.

use std::io::{self, Stdout, Write, stdout};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::event::{DisableMouseCapture, EnableMouseCapture};
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise};
use nix::unistd::getpid;
use ratatui::backend::CrosstermBackend;

/// Whether the terminal is ours.
static IS_OURS: AtomicBool = AtomicBool::new(false);
/// What the status of a program that panicked is.
const PANICKED: i32 = 101;

/// A terminal that is drawn to.
pub struct Terminal {
    pub screen: ratatui::Terminal<CrosstermBackend<Stdout>>,
}

impl Terminal {
    /// Takes the terminal.
    pub fn enter() -> io::Result<Self> {
        // Whoever panics, on whichever thread, is read on the screen that was there before.
        let said = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            leave();
            said(info);
            std::process::exit(PANICKED);
        }));
        // First of all, so that what is done of the following is undone.
        let mut terminal =
            Self { screen: ratatui::Terminal::new(CrosstermBackend::new(stdout()))? };
        terminal.take()?;
        Ok(terminal)
    }

    fn take(&mut self) -> io::Result<()> {
        IS_OURS.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(stdout(), EnterAlternateScreen, EnableMouseCapture, cursor::Hide)?;
        // All is drawn anew. (To clear it would ask the terminal where the cursor is, and wait for whoever reads keys.)
        let size = self.screen.size()?;
        self.screen.resize(ratatui::layout::Rect::from((ratatui::layout::Position::ORIGIN, size)))
    }

    /// Gives the terminal back, stops until somebody continues this process, and takes it again.
    pub fn suspend(&mut self) -> io::Result<()> {
        leave();
        kill(getpid(), Signal::SIGSTOP)?;
        self.take()
    }

    /// Takes the terminal again after somebody else may have changed it.
    pub fn take_again(&mut self) -> io::Result<()> {
        leave();
        self.take()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives the terminal back.
fn leave() {
    if IS_OURS.swap(false, Ordering::SeqCst) {
        // If it is gone there is nothing to be given back.
        let _ = execute!(stdout(), cursor::Show, DisableMouseCapture, LeaveAlternateScreen);
        let _ = stdout().flush();
        let _ = disable_raw_mode();
    }
}

/// The signals that end this or change who has the terminal.
fn signals() -> SigSet {
    use Signal::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
    [SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP].into_iter().collect()
}

/// Has those signals wait until they are taken, on this thread and those that it starts.
pub fn hold_signals() -> io::Result<SigSet> {
    let signals = signals();
    signals.thread_block()?;
    Ok(signals)
}

/// Ends this process by a signal that it held: who waits for it learns that.
pub fn end_by(signal: Signal) -> io::Error {
    leave();
    let mut all = signals();
    all.extend([signal]);
    let _ = all.thread_swap_mask(SigmaskHow::SIG_UNBLOCK);
    // It is not caught.
    let _ = raise(signal);
    io::Error::from(io::ErrorKind::Interrupted)
}
