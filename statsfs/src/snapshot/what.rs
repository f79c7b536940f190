//! What directories are of.

use std::fmt;

use super::Dir;
use crate::tree::by_name::BY_NAME;
use crate::tree::names::{MACHINES, vcpu_number};

/// What a directory is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// The mount.
    Mount,
    /// `by-name`, which has nothing but links.
    Links,
    /// All of one kind on the host, as `kvm`.
    Top,
    /// A virtual machine.
    Guest,
    /// A vCPU of one.
    Vcpu,
    /// A device of one, or a device as one vCPU used it.
    Device,
    /// What another program counts.
    Source,
}

impl What {
    /// Its name, in one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Links => "links",
            Self::Top => "top",
            Self::Guest => "guest",
            Self::Vcpu => "vcpu",
            Self::Device => "device",
            Self::Source => "source",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Dir<'_> {
    /// What it is of: its place says that.
    pub fn what(self) -> What {
        let path = self.path();
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
        match names[..] {
            [] => What::Mount,
            [BY_NAME] => What::Links,
            [_] => What::Top,
            [MACHINES, _] => What::Guest,
            [MACHINES, _, name] if vcpu_number(name).is_some() => What::Vcpu,
            [MACHINES, ..] => What::Device,
            _ => What::Source,
        }
    }
}
