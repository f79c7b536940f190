//! Who may be connected at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::peer::Peer;
use super::socket::Connection;

/// Connections at a time. Prometheus makes one.
const CONNECTIONS: usize = 32;
/// Who has not asked after this long, gives way to others.
const SILENT: Duration = Duration::from_millis(500);

/// All connections, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: BTreeMap<u64, One>,
    so_far: u64,
}

#[derive(Debug)]
struct One {
    peer: Peer,
    since: Instant,
    has_asked: bool,
    connection: Arc<Connection>,
}

/// A connection's place among those that there may be.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for another connection, and whether one that had it was hung up on for that. None if nobody gives way.
    pub(super) fn take(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        peer: Peer,
    ) -> (Option<Place>, bool) {
        let mut taken = self.lock();
        let gives_way = if taken.all.len() >= CONNECTIONS { taken.gives_way(peer) } else { None };
        if let Some(number) = gives_way
            && let Some(one) = taken.all.remove(&number)
        {
            // Its thread finds that, and ends.
            one.connection.hang_up();
        }
        if taken.all.len() >= CONNECTIONS {
            return (None, false);
        }
        taken.so_far += 1;
        let number = taken.so_far;
        let (since, connection) = (Instant::now(), connection.clone());
        taken.all.insert(number, One { peer, since, has_asked: false, connection });
        (Some(Place { places: self.clone(), number }), gives_way.is_some())
    }
}

impl Taken {
    /// Who is hung up on for another of that peer: who has been silent for longest, or the first of those who have most
    /// places, if they still have as many as the other has then.
    fn gives_way(&self, peer: Peer) -> Option<u64> {
        let is_silent = |one: &One| !one.has_asked && one.since.elapsed() >= SILENT;
        if let Some((number, _)) = self.all.iter().find(|(_, one)| is_silent(one)) {
            return Some(*number);
        }
        let mut counts: BTreeMap<Peer, usize> = BTreeMap::new();
        self.all.values().for_each(|one| *counts.entry(one.peer).or_default() += 1);
        let (most, count) = counts.iter().max_by_key(|(_, count)| **count)?;
        let own = counts.get(&peer).copied().unwrap_or_default();
        let mut theirs = self.all.iter().filter(|(_, one)| one.peer == *most);
        if own + 1 < *count { theirs.next().map(|(number, _)| *number) } else { None }
    }
}

impl Place {
    /// Whoever has it has asked: they do not give way because they are silent any more. False if they have given it up.
    pub(super) fn has_asked(&self) -> bool {
        self.places.lock().all.get_mut(&self.number).map(|one| one.has_asked = true).is_some()
    }

    /// Whether whoever had it was hung up on.
    pub(super) fn is_lost(&self) -> bool {
        !self.places.lock().all.contains_key(&self.number)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn nobody_keeps_others_out_however_many_they_are() {
        let places = Arc::new(Places::default());
        let (one, others) = (Peer::User(1), [Peer::User(2), Peer::User(3), Peer::Unknown]);
        let mut streams = Vec::new();
        let mut come = |peer| {
            let (its, ours) = UnixStream::pair().unwrap();
            streams.push(its);
            let (place, _) = places.take(&Arc::new(Connection::Unix(ours)), peer);
            place.inspect(|place| assert!(place.has_asked()))
        };
        let mut taken: Vec<_> =
            (0..CONNECTIONS).map(|_| come(one).expect("there is room")).collect();
        assert!(come(one).is_none(), "it has all that there is");
        for peer in others {
            let place = come(peer).expect("who has most gives way");
            assert!(taken.remove(0).is_lost() && !taken[0].is_lost(), "the first of them");
            assert!(come(one).is_none() && !place.is_lost());
            taken.push(place);
        }
        // Each has an equal part, and no more.
        let second = (0..CONNECTIONS).filter_map(|_| come(others[0])).collect::<Vec<_>>();
        let count = |peer| places.lock().all.values().filter(|one| one.peer == peer).count();
        assert_eq!((count(one), count(others[0]), second.len()), (15, 15, 14));
        assert!(others[1..].iter().all(|peer| count(*peer) == 1));
        drop(taken);
        assert_eq!(places.lock().all.len(), 14);
    }
}
