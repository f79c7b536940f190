//! The full screen: waits for keys, signals and looks, and draws.

use std::error::Error;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use crossterm::event;
use nix::sys::signal::{SigSet, Signal};

use super::app::App;
use super::input::{Action, Input, meaning};
use super::look::{Found, Looker};
use super::term::{Terminal, end_by, hold_signals};
use super::view::{self, Theme};

/// What comes.
enum Event {
    Input(event::Event),
    /// Nothing more can be typed.
    Deaf(io::Error),
    Signal(Signal),
    Found(Found),
}

/// How long what is on the screen may be without being drawn anew: it says how long something has been missing.
const DRAWN: Duration = Duration::from_secs(1);

pub fn run(mut app: App) -> Result<(), Box<dyn Error>> {
    let signals = hold_signals()?;
    let (to, events) = channel();
    let found = to.clone();
    let found = move |what| found.send(Event::Found(what)).is_ok();
    let looker = Looker::start(app.mount.clone(), app.interval, app.wanted(), found)?;
    let mut terminal = Terminal::enter()?;
    listen(&to, signals)?;
    let size = terminal.screen.size()?;
    app.act(Action::Size(size.width, size.height));
    let ended = show(&mut app, &mut terminal, &looker, &events);
    drop(terminal);
    match ended? {
        Some(signal) => Err(end_by(signal).into()),
        None => Ok(()),
    }
}

/// Has what is typed and signals come.
fn listen(to: &Sender<Event>, signals: SigSet) -> io::Result<()> {
    let typed = to.clone();
    thread::Builder::new().name("keys".into()).spawn(move || {
        loop {
            let event = match event::read() {
                Ok(event) => typed.send(Event::Input(event)),
                Err(error) => {
                    let _ = typed.send(Event::Deaf(error));
                    return;
                }
            };
            if event.is_err() {
                return;
            }
        }
    })?;
    let signalled = to.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if signalled.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Until the user wants no more, or a signal wants that this ends.
fn show(
    app: &mut App,
    terminal: &mut Terminal,
    looker: &Looker,
    events: &Receiver<Event>,
) -> Result<Option<Signal>, Box<dyn Error>> {
    let theme = Theme::of_environment();
    loop {
        terminal.screen.draw(|frame| view::draw(frame, app, theme))?;
        let mut next = match events.recv_timeout(DRAWN) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        };
        // All that has come is drawn once.
        while let Some(event) = next {
            match event {
                Event::Found(found) => app.found(found),
                Event::Deaf(error) => return Err(error.into()),
                Event::Signal(Signal::SIGTSTP) => terminal.suspend()?,
                Event::Signal(Signal::SIGCONT) => {
                    terminal.take_again()?;
                    let size = terminal.screen.size()?;
                    app.act(Action::Size(size.width, size.height));
                }
                Event::Signal(signal) => return Ok(Some(signal)),
                Event::Input(event) => match meaning(&event, app.is_typing) {
                    Some(Input::Suspend) => terminal.suspend()?,
                    Some(Input::Act(action)) => {
                        app.act(action).into_iter().for_each(|ask| looker.ask(ask));
                    }
                    None => {}
                },
            }
            if app.is_over {
                return Ok(None);
            }
            next = events.try_recv().ok();
        }
    }
}
