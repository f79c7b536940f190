//! Looking at the mount, on a thread of its own: however long a look takes, keys are answered.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use statsfs::snapshot::{Changes, Snapshot};
use statsfs::tools::told;

use super::model::{History, Model, Pair, Wanted};
use crate::common::until_next;

/// When it is looked for the second time: nobody waits an interval for the first rates.
const SECOND: Duration = Duration::from_millis(300);

/// What is asked of the thread.
#[derive(Debug)]
pub enum Ask {
    /// Something else is shown.
    Show(Wanted),
    /// So long between two looks.
    Interval(Duration),
    /// No more looks, or looks again.
    Pause(bool),
    /// Totals from now on, or all that there is.
    Zero(bool),
    /// A look now.
    Look,
}

/// What the thread found.
#[derive(Debug)]
pub enum Found {
    /// What there is.
    Model(Box<Model>),
    /// Why there is nothing.
    Missing(String),
}

/// The thread's other end. It ends when this is dropped, after the look that it is at.
#[derive(Debug)]
pub struct Looker(Sender<Ask>);

impl Looker {
    /// Starts to look: `found` is told what there is.
    pub fn start(
        mount: PathBuf,
        interval: Duration,
        wanted: Wanted,
        found: impl FnMut(Found) -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (to, asked) = channel();
        let looks = Looks::new(mount);
        let look = Loop { looks, wanted, interval, paused: false, asked, found };
        thread::Builder::new().name("look".into()).spawn(move || look.run())?;
        Ok(Self(to))
    }

    /// Asks for something. Nothing comes of it if the thread has ended, of which the end of what it finds tells.
    pub fn ask(&self, ask: Ask) {
        let _ = self.0.send(ask);
    }
}

/// The last two looks, and what is remembered of those before.
#[derive(Debug)]
pub struct Looks {
    mount: PathBuf,
    last: Option<Snapshot>,
    now: Option<Snapshot>,
    zero: Option<Snapshot>,
    history: History,
    is_new: bool,
}

impl Looks {
    pub fn new(mount: PathBuf) -> Self {
        let history = History::default();
        Self { mount, last: None, now: None, zero: None, history, is_new: false }
    }

    /// Looks once more.
    pub fn look(&mut self) -> Result<(), String> {
        // Names are known all over the mount: where there are no guests yet, there is no `kvm` either.
        let now = statsfs::tools::look(&self.mount).map_err(|error| told(&error))?;
        self.last = self.now.replace(now);
        self.is_new = true;
        Ok(())
    }

    /// Takes the last look as the first.
    fn forget_last(&mut self) {
        self.last = None;
    }

    /// What is wanted of what was seen; none before the first look.
    pub fn model(&mut self, wanted: &Wanted) -> Option<Model> {
        let now = self.now.as_ref()?;
        let changes = between(self.last.as_ref(), now);
        let zero = between(self.zero.as_ref(), now);
        let pair = Pair { now, changes: changes.as_ref(), zero: zero.as_ref() };
        let is_new = std::mem::take(&mut self.is_new);
        Some(pair.model(wanted, &mut self.history, is_new))
    }

    /// What came between the last two looks; none before the second one.
    pub fn pair(&self) -> Option<(&Snapshot, Changes<'_>)> {
        let now = self.now.as_ref()?;
        Some((now, between(self.last.as_ref(), now)?))
    }

    fn zero(&mut self, set: bool) {
        self.zero = self.now.clone().filter(|_| set);
    }
}

/// What came in between; none if what is mounted there is another than it was.
fn between<'a>(before: Option<&'a Snapshot>, now: &'a Snapshot) -> Option<Changes<'a>> {
    Changes::between(before?, now).ok()
}

/// The thread.
struct Loop<F> {
    looks: Looks,
    wanted: Wanted,
    interval: Duration,
    paused: bool,
    asked: Receiver<Ask>,
    found: F,
}

impl<F: FnMut(Found) -> bool> Loop<F> {
    fn run(mut self) {
        let begin = Instant::now();
        let mut next = begin;
        let mut count = 0;
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            let asked = if self.paused {
                self.asked.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.asked.recv_timeout(wait)
            };
            match asked {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    if !self.look() {
                        return;
                    }
                    count += 1;
                    let pause = match count {
                        1 => SECOND.min(self.interval),
                        _ => until_next(begin.elapsed(), self.interval),
                    };
                    next = Instant::now() + pause;
                }
                Ok(ask) => {
                    // What was asked meanwhile is done at once, and shown once.
                    let mut shows = self.take(ask, &mut next);
                    while let Ok(ask) = self.asked.try_recv() {
                        shows |= self.take(ask, &mut next);
                    }
                    if shows && !self.show() {
                        return;
                    }
                }
            }
        }
    }

    /// Does what is asked, and answers whether something else is to be shown now.
    fn take(&mut self, ask: Ask, next: &mut Instant) -> bool {
        match ask {
            Ask::Show(wanted) => self.wanted = wanted,
            Ask::Zero(set) => self.looks.zero(set),
            Ask::Interval(interval) => {
                self.interval = interval;
                *next = (*next).min(Instant::now() + interval);
                return false;
            }
            Ask::Pause(paused) => {
                if !paused && self.paused {
                    // What came during the pause is in no rate.
                    let looked = self.looks.look();
                    self.looks.forget_last();
                    *next = Instant::now() + SECOND.min(self.interval);
                    if let Err(error) = looked {
                        (self.found)(Found::Missing(error));
                    }
                }
                self.paused = paused;
                return false;
            }
            Ask::Look => {
                *next = Instant::now();
                return false;
            }
        }
        true
    }

    fn look(&mut self) -> bool {
        match self.looks.look() {
            Ok(()) => self.show(),
            Err(error) => (self.found)(Found::Missing(error)),
        }
    }

    fn show(&mut self) -> bool {
        match self.looks.model(&self.wanted) {
            Some(model) => (self.found)(Found::Model(Box::new(model))),
            None => true,
        }
    }
}
