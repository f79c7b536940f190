//! The system calls that neither `std` nor `vm-memory` has: reading and writing files straight from and
//! to guest memory, several pieces at once, and the controls of tap interfaces.
//!
//! All unsafe code of this crate is here.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// Most pieces of one call: the kernel's own limit (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// What a piece of guest memory is for.
#[derive(Clone, Copy)]
enum Access {
    /// The kernel reads it.
    Read,
    /// The kernel writes it.
    Write,
}

/// What to do with more than [`MAX_PIECES`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Excess {
    /// Leave them out: the caller goes on from there.
    LeaveOut,
    /// Fail: it is all or nothing.
    Refuse,
}

/// Calls `call` with the pieces of guest memory, and `tail` after them, again if a signal interrupts it.
fn with_pieces<'m>(
    slices: impl Iterator<Item = VolatileSlice<'m>>,
    (access, excess): (Access, Excess),
    tail: &mut [u8],
    call: impl Fn(*const libc::iovec, libc::c_int) -> libc::ssize_t,
) -> io::Result<usize> {
    let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_PIECES];
    let mut count = 0;
    let guest = slices.map(|slice| {
        // The guards do nothing for memory that is simply mapped, which this crate's is.
        let iov_base = match access {
            Access::Read => slice.ptr_guard().as_ptr().cast_mut(),
            Access::Write => slice.ptr_guard_mut().as_ptr(),
        };
        libc::iovec { iov_base: iov_base.cast(), iov_len: slice.len() }
    });
    let tail = libc::iovec { iov_base: tail.as_mut_ptr().cast(), iov_len: tail.len() };
    for piece in guest.chain((tail.iov_len > 0).then_some(tail)) {
        match pieces.get_mut(count) {
            Some(place) => _ = place.write(piece),
            None if excess == Excess::LeaveOut => break,
            None => return Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
        }
        count += 1;
    }
    loop {
        match call(pieces.as_ptr().cast(), count as libc::c_int) {
            n if n >= 0 => return Ok(n as usize),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// An offset in a file, as the kernel takes it.
fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Reads from a file at `offset` into guest memory, as preadv(2), of which it may be the beginning only.
///
/// # Errors
/// What preadv(2) says, but for interruptions.
pub fn read_at<'m>(
    file: impl AsFd,
    slices: impl Iterator<Item = VolatileSlice<'m>>,
    offset: u64,
) -> io::Result<usize> {
    let (fd, offset) = (file.as_fd().as_raw_fd(), file_offset(offset)?);
    // SAFETY: the first `count` pieces are initialised; they are guest memory, which stays mapped as long
    // as the slices' lifetime, which outlives the call, and to which there are no references, since the
    // guest may change it at any time.
    with_pieces(slices, (Access::Write, Excess::LeaveOut), &mut [], |pieces, count| unsafe {
        libc::preadv(fd, pieces, count, offset)
    })
}

/// Writes guest memory to a file at `offset`, as pwritev(2), of which it may be the beginning only.
///
/// # Errors
/// What pwritev(2) says, but for interruptions.
pub fn write_at<'m>(
    file: impl AsFd,
    slices: impl Iterator<Item = VolatileSlice<'m>>,
    offset: u64,
) -> io::Result<usize> {
    let (fd, offset) = (file.as_fd().as_raw_fd(), file_offset(offset)?);
    // SAFETY: as in `read_at`, and the memory is only read.
    with_pieces(slices, (Access::Read, Excess::LeaveOut), &mut [], |pieces, count| unsafe {
        libc::pwritev(fd, pieces, count, offset)
    })
}

/// Reads from a file into guest memory, and what does not fit there into `tail`, as readv(2).
///
/// # Errors
/// What readv(2) says, but for interruptions; `EMSGSIZE` if there are more than [`MAX_PIECES`].
pub fn read<'m>(
    file: impl AsFd,
    slices: impl Iterator<Item = VolatileSlice<'m>>,
    tail: &mut [u8],
) -> io::Result<usize> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: as in `read_at`; the last piece is `tail`, which is borrowed for the call.
    with_pieces(slices, (Access::Write, Excess::Refuse), tail, |pieces, count| unsafe {
        libc::readv(fd, pieces, count)
    })
}

/// Writes guest memory to a file, as writev(2).
///
/// # Errors
/// What writev(2) says, but for interruptions; `EMSGSIZE` if there are more than [`MAX_PIECES`].
pub fn write<'m>(
    file: impl AsFd,
    slices: impl Iterator<Item = VolatileSlice<'m>>,
) -> io::Result<usize> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: as in `write_at`.
    with_pieces(slices, (Access::Read, Excess::Refuse), &mut [], |pieces, count| unsafe {
        libc::writev(fd, pieces, count)
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether there is a network interface of this name.
pub fn interface_exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: a C string that lives across the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Makes an opened `/dev/net/tun` the other end of a tap interface, whose frames have a vnet header.
///
/// # Errors
/// What the ioctl `TUNSETIFF` says; `EINVAL` if the name is too long.
pub fn tap_attach(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request is a valid `ifreq`, which is what TUNSETIFF reads and writes.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })
}

/// Sets the size of the vnet header of a tap interface's frames.
///
/// # Errors
/// What the ioctl `TUNSETVNETHDRSZ` says.
pub fn tap_set_header_size(tap: BorrowedFd<'_>, size: usize) -> io::Result<()> {
    let size = size as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })
}

/// Sets which offloads (`TUN_F_*`) the reader of a tap interface's frames understands.
///
/// # Errors
/// What the ioctl `TUNSETOFFLOAD` says.
pub fn tap_set_offload(tap: BorrowedFd<'_>, offload: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload))
    })
}

fn fallocate(file: impl AsFd, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let (fd, offset, len) = (file.as_fd().as_raw_fd(), file_offset(offset)?, file_offset(len)?);
    loop {
        // SAFETY: no memory is involved.
        match check(unsafe { libc::fallocate(fd, mode | libc::FALLOC_FL_KEEP_SIZE, offset, len) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Gives back the storage of a range of a file, which then reads as zeroes.
///
/// # Errors
/// What fallocate(2) says; `EOPNOTSUPP` if the file system can not.
pub fn punch_hole(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE, offset, len)
}

/// Makes a range of a file read as zeroes, keeping or getting storage for it.
///
/// # Errors
/// What fallocate(2) says; `EOPNOTSUPP` if the file system can not.
pub fn zero_range(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_ZERO_RANGE, offset, len)
}
