//! What the server gives up once it has what it needs: capabilities(7), which each thread has its own of and
//! passes on to those that it starts.

use crate::host::protocol::set_capabilities;
use crate::threads::{ThreadKind, ThreadStart};

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;

/// To see processes of others where /proc hides them.
const TO_LOOK: u64 = 1 << CAP_SYS_PTRACE;
/// To unmount in the end, and to remove what was made, wherever that is.
const TO_END: u64 = 1 << CAP_SYS_ADMIN | 1 << CAP_DAC_OVERRIDE;

/// Has this thread, and those that it starts from now on, give up what only the beginning needs.
pub(super) fn give_up_those_to_begin() {
    give_up_all_but(TO_END | TO_LOOK);
}

/// Has this thread give up what only the end needs as well.
pub(super) fn give_up_those_to_end() {
    give_up_all_but(TO_LOOK);
}

/// Has the threads that answer readers give up all but the right to look at processes, before what they were to
/// do first anyway.
pub(super) fn given_up_by(start: ThreadStart) -> ThreadStart {
    ThreadStart::new(move |kind| {
        // The others are started by these.
        if kind != ThreadKind::Request {
            give_up_those_to_end();
        }
        start.call(kind);
    })
}

fn give_up_all_but(these: u64) {
    if let Err(error) = set_capabilities(these) {
        tracing::warn!(%error, "rights that are not needed stay");
    }
}
