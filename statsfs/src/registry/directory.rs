//! The names that stand in a source's directory: what it shows of itself and of what is below.

use std::collections::{HashMap, HashSet};

use super::names::Meaning;
use super::state::{GroupKey, State};
use crate::error::SourceError;
use crate::segment::layout::ROOT_ID;

impl State {
    /// The error if one of `names` can not be in a source's directory.
    pub(super) fn check_names<'a>(
        &self,
        source: u64,
        names: impl IntoIterator<Item = &'a (String, Meaning)>,
    ) -> Result<(), SourceError> {
        let node = &self.nodes[&source];
        for (name, meaning) in names {
            if !node.names.admits(name, *meaning) {
                return Err(SourceError::AlreadyExists {
                    name: name.clone(),
                    directory: node.name.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The error if one of a group's values would stand beside one of another group of the same source.
    /// Even if they have the same identity, as in two versions of a group, they are two.
    pub(super) fn check_own_names(&self, source: u64, key: GroupKey) -> Result<(), SourceError> {
        let node = &self.nodes[&source];
        let others = node.groups.keys().flat_map(|other| &self.known[*other].own);
        let there: HashSet<&str> = others.map(|(name, _)| &**name).collect();
        match self.known[key].own.iter().find(|(name, _)| there.contains(&**name)) {
            Some((name, _)) => Err(SourceError::AlreadyExists {
                name: name.clone(),
                directory: node.name.to_string(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn add_names(&mut self, source: u64, names: &[(String, Meaning)]) {
        let node = self.node(source);
        names.iter().for_each(|(name, meaning)| node.names.add(name, *meaning));
    }

    pub(super) fn remove_names(&mut self, source: u64, names: &[(String, Meaning)]) {
        let node = self.node(source);
        names.iter().for_each(|(name, _)| node.names.remove(name));
    }

    /// Counts `groups` in or out (`add`) of what is below each of `ancestors`, with their names.
    pub(crate) fn count_below(
        &mut self,
        ancestors: &[u64],
        groups: &HashMap<GroupKey, usize>,
        add: bool,
    ) {
        for &ancestor in ancestors {
            for (&key, &n) in groups {
                let node = self.node(ancestor);
                let below = node.below.entry(key).or_default();
                *below = if add { *below + n } else { *below - n };
                let none = *below == 0;
                if none {
                    node.below.remove(&key);
                }
                // The name of a total that stays belongs to it for good.
                let stays = node.accumulators.contains_key(&key);
                let (appears, disappears) =
                    (add && node.named.insert(key), none && !stays && node.named.remove(&key));
                // The root is no source: it shows no values.
                if ancestor != ROOT_ID && (appears || disappears) {
                    let names = std::mem::take(&mut self.known[key].aggregates);
                    if appears {
                        self.add_names(ancestor, &names);
                    } else {
                        self.remove_names(ancestor, &names);
                    }
                    self.known[key].aggregates = names;
                }
            }
        }
    }

    /// The names that a source gives to the directory that shows it: its own, or, if it is hidden,
    /// those of its subordinates.
    pub(crate) fn shown_as(&self, id: u64) -> Vec<(String, Meaning)> {
        let node = &self.nodes[&id];
        if !node.hidden {
            return vec![(node.name.to_string(), Meaning::Source(id))];
        }
        node.children.iter().flat_map(|child| self.shown_as(*child)).collect()
    }

    /// The source in whose directory the subordinates of `id` appear: the nearest that is not hidden,
    /// itself included; `None` if a hidden one has no parent yet. Those in between, which keep the names
    /// until they are attached, are named too.
    pub(crate) fn shown_in(&self, id: u64) -> Vec<u64> {
        let mut all = vec![id];
        let mut at = id;
        while self.nodes[&at].hidden {
            let Some(parent) = self.nodes[&at].parent else { break };
            all.push(parent);
            at = parent;
        }
        all
    }

    /// Takes the names of a subtree out of the directories above it.
    pub(crate) fn remove_shown(&mut self, parent: u64, child: u64) {
        let shown = self.shown_as(child);
        for directory in self.shown_in(parent) {
            self.remove_names(directory, &shown);
        }
    }
}
