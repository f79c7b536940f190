//! What virtio devices a machine is to have, as the command line says it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::net::Mac;
use thiserror::Error;

/// A disk: a file that the guest sees as a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file: an image of the disk's bytes, or a block device.
    pub path: PathBuf,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

/// Why a text names no disk.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a disk is the path of a file, which may be followed by ,ro or ,rw")]
pub struct DiskConfigError;

impl FromStr for DiskConfig {
    type Err = DiskConfigError;

    /// `PATH[,ro|,rw]`. Only the end is looked at: a path may contain commas, and one that itself ends in
    /// `,ro` is followed by `,ro` or `,rw`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, read_only) = match text.rsplit_once(',') {
            Some((path, "ro")) => (path, true),
            Some((path, "rw")) => (path, false),
            _ => (text, false),
        };
        if path.is_empty() {
            return Err(DiskConfigError);
        }
        Ok(Self { path: path.into(), read_only })
    }
}

/// Longest name of a network interface.
const MAX_INTERFACE_NAME: usize = 15;

/// A network interface of the guest, connected to a tap interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The tap interface's name.
    pub tap: String,
    /// The guest's address; if there is none, it is [`default_mac`]'s.
    pub mac: Option<Mac>,
}

/// Why a text names no network interface.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NetConfigError {
    /// It is not of the form.
    #[error("a network interface is tap=NAME[,mac=02:00:00:00:00:01], not {0:?}")]
    Form(String),
    /// An interface of the host can not be called so.
    #[error(
        "{0:?} is not the name of a network interface: it has 1 to {MAX_INTERFACE_NAME} bytes without / : or white space"
    )]
    Tap(String),
    /// The address is none.
    #[error("{0:?} is not the address of one interface, such as 02:00:00:00:00:01")]
    Mac(String),
}

impl FromStr for NetConfig {
    type Err = NetConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || NetConfigError::Form(text.to_string());
        let (mut tap, mut mac) = (None, None);
        for option in text.split(',') {
            let (key, value) = option.split_once('=').ok_or_else(form)?;
            let place = match key {
                "tap" => &mut tap,
                "mac" => &mut mac,
                _ => return Err(form()),
            };
            if place.replace(value).is_some() {
                return Err(form());
            }
        }
        let tap = tap.ok_or_else(form)?;
        if !is_interface_name(tap) {
            return Err(NetConfigError::Tap(tap.to_string()));
        }
        let mac = mac
            .map(|mac| mac.parse().map_err(|_| NetConfigError::Mac(mac.to_string())))
            .transpose()?;
        Ok(Self { tap: tap.to_string(), mac })
    }
}

/// Whether the kernel would call an interface so (`dev_valid_name`), and not take it for a pattern.
fn is_interface_name(name: &str) -> bool {
    (1..=MAX_INTERFACE_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.bytes().any(|b| b"/:%".contains(&b) || b.is_ascii_whitespace() || b == 0)
}

/// The address of a guest's interface that nobody gave one: the same whenever the guest is started, and
/// another for another tap interface or another host, as far as 40 bits can tell.
pub fn default_mac(tap: &str) -> Mac {
    // Where it is missing, the name alone decides.
    let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    mac_of(host.trim(), tap)
}

fn mac_of(host: &str, tap: &str) -> Mac {
    // FNV-1a, 64 bits: the same in every build.
    let hash = host.bytes().chain([0]).chain(tap.bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3_u64)
    });
    let [.., a, b, c, d, e] = hash.to_be_bytes();
    // Locally administered, of one interface.
    Mac::new([0x02, a, b, c, d, e])
}

/// The virtio devices of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtioConfig {
    /// `blk0`, `blk1` and so on.
    pub disks: Vec<DiskConfig>,
    /// `net0`, `net1` and so on.
    pub nets: Vec<NetConfig>,
    /// Whether there is `rng0`, a source of random bytes.
    pub rng: bool,
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { "ro" } else { "rw" };
        write!(f, "{},{access}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_path_whose_end_may_say_how_it_is_used() {
        for (text, path, read_only) in [
            ("a.img", "a.img", false),
            ("a.img,ro", "a.img", true),
            ("a.img,rw", "a.img", false),
            ("a,b.img", "a,b.img", false),
            ("a,b.img,ro", "a,b.img", true),
            ("a,ro,rw", "a,ro", false),
            ("a,ro,ro", "a,ro", true),
            ("a,RO", "a,RO", false),
            ("/x y/ü", "/x y/ü", false),
        ] {
            let disk: DiskConfig = text.parse().unwrap();
            assert_eq!((disk.path.to_str().unwrap(), disk.read_only), (path, read_only), "{text}");
            assert_eq!(disk.to_string().parse(), Ok(disk), "{text}");
        }
        for text in ["", ",ro", ",rw"] {
            assert_eq!(text.parse::<DiskConfig>(), Err(DiskConfigError), "{text}");
        }
    }

    #[test]
    fn a_network_interface_is_a_tap_and_perhaps_an_address() {
        let mac = Mac::new([2, 0, 0, 0xab, 0, 1]);
        for (text, tap, mac) in [
            ("tap=tap0", "tap0", None),
            ("tap=vm-1.net,mac=02:00:00:ab:00:01", "vm-1.net", Some(mac)),
            ("mac=02:00:00:AB:00:01,tap=t", "t", Some(mac)),
        ] {
            assert_eq!(text.parse(), Ok(NetConfig { tap: tap.into(), mac }), "{text}");
        }
        for text in
            ["", "tap0", "tap", "mac=02:00:00:00:00:01", "tap=a,tap=b", "tap=a,ro=1", "tap=a,"]
        {
            assert_eq!(text.parse::<NetConfig>(), Err(NetConfigError::Form(text.into())), "{text}");
        }
        for tap in ["", "a/b", "a b", "a:1", "tap%d", "..", "a234567890123456"] {
            let error = format!("tap={tap}").parse::<NetConfig>();
            assert_eq!(error, Err(NetConfigError::Tap(tap.into())));
        }
        for mac in ["", "02:00:00:00:00", "02:00:00:00:00:0g", "03:00:00:00:00:01"] {
            let error = format!("tap=a,mac={mac}").parse::<NetConfig>();
            assert_eq!(error, Err(NetConfigError::Mac(mac.into())));
        }
    }

    #[test]
    fn the_default_address_is_stable_and_tells_taps_and_hosts_apart() {
        assert_eq!(default_mac("tap0"), default_mac("tap0"));
        assert_eq!(mac_of("", "tap0"), mac_of("", "tap0"));
        let all =
            [mac_of("a", "tap0"), mac_of("a", "tap1"), mac_of("b", "tap0"), mac_of("atap", "0")];
        for (i, mac) in all.iter().enumerate() {
            assert!(!all[..i].contains(mac), "{mac}");
            assert!(mac.to_string().starts_with("02:"), "{mac}");
            assert_eq!(mac.to_string().parse(), Ok(*mac));
        }
    }
}
