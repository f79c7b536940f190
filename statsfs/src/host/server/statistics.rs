//! Descriptors of what the kernel counts, which clients send: nobody's word is taken for whose they are.
//!
//! That it is one of KVM's statistics says the link that /proc has of it, which no file of any other kind can have:
//! `anon_inode:` is no path, and the rest is the kernel's own. Whose it is says the kernel in its id. What is neither
//! can hang whoever asks it anything else, and is not asked.
//!
//! Who sends one that is none is refused. One that is somebody else's, or for which there is no room, is closed, and
//! the client goes on without: its samples are there, up to a second old.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use nix::fcntl::readlink;

use super::limits::Amounts;
use super::run::{Server, is_beyond};
use super::stats::RefusedFor;
use super::worker::ClientId;
use crate::fd_groups::Opened;

/// What the link of a VM's statistics is, and how that of a vCPU's begins: `kvm_vm_ioctl_get_stats_fd` and
/// `kvm_vcpu_ioctl_get_stats_fd` in Linux' `virt/kvm/kvm_main.c`.
const OF_VM: &[u8] = b"anon_inode:kvm-vm-stats";
const OF_VCPU: &[u8] = b"anon_inode:kvm-vcpu-stats:";

/// Whether it is one of KVM's statistics; otherwise what it is, as far as can be told.
fn check_kind(fd: &impl AsFd) -> Result<(), String> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let link = readlink(link.as_str()).map_err(|error| format!("of an unknown kind: {error}"))?;
    let name = link.as_encoded_bytes();
    if name == OF_VM || name.starts_with(OF_VCPU) {
        return Ok(());
    }
    // It may be any path.
    Err(link.to_string_lossy().chars().filter(|c| !c.is_control()).take(100).collect())
}

/// The inode of the initial process id namespace: `PROC_PID_INIT_INO` in Linux' `include/linux/proc_ns.h`.
const INITIAL: u64 = 0xefff_fffc;

/// The thread that made the VM, by an id: `kvm-<tid>` or `kvm-<tid>/vcpu-<n>`.
fn maker(id: &str) -> Option<u32> {
    id.strip_prefix("kvm-")?.split('/').next()?.parse().ok()
}

/// Whether an id is of this process: the thread that made the VM is one of its. That is told as the initial process id
/// namespace has it, so whoever is in another one can not say.
fn is_of(id: &str, pid: u32) -> bool {
    let Some(tid) = maker(id) else { return false };
    let is_elsewhere = || {
        let namespace = std::fs::metadata("/proc/self/ns/pid");
        namespace.is_ok_and(|namespace| namespace.ino() != INITIAL)
    };
    tid == pid || Path::new(&format!("/proc/{pid}/task/{tid}")).exists() || is_elsewhere()
}

impl Server {
    /// Takes descriptors from a client, numbered from `first` on.
    pub(super) fn statistics(&mut self, id: ClientId, first: u32, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get(id) else { return };
        let who = client.who;
        if let Some(Err(what)) = fds.iter().map(check_kind).find(Result::is_err) {
            self.closer.close(who.uid, fds);
            let text = format!("a descriptor that should be of KVM's statistics is {what}");
            return self.refuse(id, RefusedFor::Protocol, text, false);
        }
        // What was left out before has to be closed first, however long that takes.
        if self.keep.closer().waiting(who.uid) > self.options.limits.descriptors {
            self.keep.closer().close(who.uid, fds);
            let text = "its user's statistics descriptors can not be closed as fast as they come";
            return self.refuse(id, RefusedFor::Limit, text.to_owned(), true);
        }
        let mut left_out = None;
        for (number, fd) in (first..).zip(fds) {
            let taken = self.statistic(id, number, fd);
            if let Err(why) = taken {
                self.own.server_descriptors_left_out.inc();
                left_out.get_or_insert(why);
            }
        }
        if let Some(why) = left_out
            && let Some(unsaid) = self.left_out.say(who.uid, Instant::now())
        {
            let (pid, uid) = (who.pid, who.uid);
            tracing::warn!(
                pid,
                uid,
                unsaid,
                "not all of its statistics descriptors are used: {why}"
            );
        }
    }

    /// Takes one. If it is not, it is closed, and this is why.
    fn statistic(&mut self, id: ClientId, number: u32, fd: OwnedFd) -> Result<(), String> {
        let Some(client) = self.clients.get(id) else { return Ok(()) };
        let (who, received) = (client.who, client.received.clone());
        let (uid, closer) = (who.uid, self.keep.closer().clone());
        let leave_out = |fd: OwnedFd, why: String| {
            closer.close(uid, vec![fd]);
            Err(why)
        };
        // The rest is for what no client can do without, whatever the shares of users are.
        if let Some(why) = is_beyond(&fd, |limit| limit / 4 * 3) {
            return leave_out(fd, why);
        }
        let descriptors = received.fd_groups().len() as u64 + 1;
        let one = Amounts { descriptors, ..client.has };
        if let Err(exceeded) = self.accounts.change(uid, &mut client.has, one) {
            return leave_out(fd, exceeded.to_string());
        }
        match Opened::new(fd) {
            Ok(opened) if is_of(opened.id(), who.pid) => {
                received.fd_groups().insert(number, opened);
                Ok(())
            }
            Ok(opened) => {
                let why = format!("one is of {}, and not of process {}", opened.id(), who.pid);
                closer.close(uid, vec![opened]);
                Err(why)
            }
            Err((error, fd)) => leave_out(fd, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_kernel_says_whose_they_are() {
        for (id, tid) in [
            ("kvm-42", Some(42)),
            ("kvm-42/vcpu-7", Some(42)),
            ("kvm-421", Some(421)),
            ("kvm-4", Some(4)),
            ("kvm-/vcpu-42", None),
            ("kvm-42-1", None),
            ("42", None),
            ("", None),
        ] {
            assert_eq!(maker(id), tid, "{id}");
        }
        let pid = std::process::id();
        assert!(is_of(&format!("kvm-{pid}/vcpu-0"), pid) && !is_of("kvm", pid));
        // SAFETY: no arguments and no effects.
        let tid = unsafe { libc::gettid() };
        assert!(is_of(&format!("kvm-{tid}"), pid), "this test's thread is one of the process");
    }

    #[test]
    fn what_is_none_of_kvms_statistics_is_told_by_its_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("anon_inode:kvm-vm-stats");
        let file = File::create(&path).unwrap();
        assert_eq!(check_kind(&file).unwrap_err(), path.to_str().unwrap());
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(check_kind(&reader).unwrap_err().starts_with("pipe:["));
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        assert_eq!(check_kind(&event).unwrap_err(), "anon_inode:[eventfd]");
    }
}
