//! What was made last, for all who ask.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::places::Place;

/// How long a text is answered that was made, at least, and how many times as long as it took to make: whoever asks all
/// the time has none made for it, and little of the server's time.
const MADE_FOR: Duration = Duration::from_millis(50);
const TIMES_AS_LONG: u32 = 5;

/// The text in one format, made by one who asks for it while others wait.
#[derive(Debug, Default)]
pub(super) struct Text {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Made>,
    is_being_made: bool,
}

/// A text, and when it was made.
#[derive(Debug)]
struct Made {
    at: Instant,
    took: Duration,
    /// None if it could not be made, which takes as long.
    text: Option<Arc<Vec<u8>>>,
}

/// Whoever makes it; however that ends, somebody else may then.
struct Making<'a>(&'a Text);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.lock().is_being_made = false;
        self.0.changed.notify_all();
    }
}

impl Text {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text of now, or of just before, for whoever has that place, as `make` makes it; none if it can not be made, or
    /// the place is lost.
    pub(super) fn get(
        &self,
        place: &Place,
        make: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Arc<Vec<u8>>> {
        let mut state = self.lock();
        loop {
            let is_new = |made: &&Made| made.at.elapsed() < MADE_FOR.max(made.took * TIMES_AS_LONG);
            if let Some(made) = state.last.as_ref().filter(is_new) {
                return made.text.clone();
            }
            if !state.is_being_made {
                break;
            }
            // Those who were hung up on are not to pile up here.
            if place.is_lost() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_being_made = true;
        drop(state);
        let making = Making(self);
        let at = Instant::now();
        let text = make().map(Arc::new);
        self.lock().last = Some(Made { at, took: at.elapsed(), text: text.clone() });
        drop(making);
        text
    }

    /// Has those who wait see whether they have lost their places.
    pub(super) fn wake(&self) {
        // Not between their look and their sleep.
        let _state = self.lock();
        self.changed.notify_all();
    }
}
