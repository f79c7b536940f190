//! Getting a vCPU's thread out of KVM_RUN.
//!
//! KVM_RUN ends when its thread takes a signal. A signal that arrives just before KVM_RUN is called
//! would be lost; therefore the handler sets `immediate_exit` in the vCPU's run page, which makes the
//! next KVM_RUN return at once. It does so on the vCPU's own thread, so that nothing is shared between
//! threads, and through a mapping of its own, so that no reference of kvm-ioctls' mapping is bypassed.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Once, OnceLock};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, null if it runs none. Constant-initialised and
    /// without a destructor, so that the signal handler's access is a plain load.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is set by `RunPage::arm` only, into a mapping that outlives it being set
        // (`Armed` borrows the page and clears the pointer before it goes, on this same thread). The
        // kernel's accesses are not Rust's, and all of ours to this byte are atomic.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::Relaxed);
    }
}

/// Installs the handler of the kick signal, once per process.
///
/// # Errors
/// What sigaction(2) says.
pub fn install_handler() -> io::Result<()> {
    static ONCE: Once = Once::new();
    static FAILED: OnceLock<i32> = OnceLock::new();
    ONCE.call_once(|| {
        if let Err(error) = register_signal_handler(SIGRTMIN(), on_kick) {
            let _ = FAILED.set(error.errno());
        }
    });
    FAILED.get().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(*errno)))
}

/// Gets a vCPU's thread out of KVM_RUN, or out of another system call. Harmless if it has ended.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: a thread that is not joined, and this one's handle is here, keeps its pthread_t valid;
    // signalling one that has ended fails or does nothing.
    unsafe { libc::pthread_kill(thread.as_pthread_t() as libc::pthread_t, SIGRTMIN()) };
}

/// A mapping of a vCPU's run page besides that of kvm-ioctls: for `immediate_exit`, and for what
/// kvm-ioctls does not hand on.
#[derive(Debug)]
pub struct RunPage(NonNull<kvm_run>);

// SAFETY: the page belongs to the vCPU, not to a thread; all accesses go through `&self` methods that
// copy plain data out, or through the atomic flag.
unsafe impl Send for RunPage {}

/// KVM's own report of a failure inside (KVM_EXIT_INTERNAL_ERROR).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// KVM_INTERNAL_ERROR_*.
    pub suberror: u32,
    /// What KVM adds.
    pub data: Vec<u64>,
    /// The guest's instruction that could not be emulated, where that is the failure and KVM knows it.
    pub instruction: Vec<u8>,
}

impl RunPage {
    const SIZE: usize = size_of::<kvm_run>();

    /// Maps the run page of a vCPU.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice; the file checks the rest.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(Self).ok_or_else(|| io::Error::other("mapped at address 0"))
    }

    fn immediate_exit(&self) -> *mut u8 {
        // SAFETY: the page is mapped, and the field lies inside it; no reference is made.
        unsafe { &raw mut (*self.0.as_ptr()).immediate_exit }
    }

    /// Makes kicks of this thread end KVM_RUN of this vCPU, until the guard is dropped.
    pub fn arm(&self) -> Armed<'_> {
        IMMEDIATE_EXIT.set(self.immediate_exit());
        Armed { page: self, on_this_thread: std::marker::PhantomData }
    }

    /// Bytes of one access of the I/O exit that is being handled; its data may be several accesses long.
    pub fn io_size(&self) -> usize {
        // SAFETY: the page is mapped and initialised by KVM, all bit patterns of the fields are valid,
        // and KVM writes to the page only inside KVM_RUN, which this thread is not in.
        let size = unsafe { (*self.0.as_ptr()).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    /// KVM's report after an exit because of an internal error.
    pub fn internal_error(&self) -> InternalError {
        let run = self.0.as_ptr();
        // SAFETY: as for `io_size`; both views of the union are plain integers.
        let (internal, emulation) = unsafe {
            let exit = &raw const (*run).__bindgen_anon_1;
            ((*exit).internal, (*exit).emulation_failure)
        };
        let count = (internal.ndata as usize).min(internal.data.len());
        let mut instruction = Vec::new();
        // SAFETY: as above.
        let bytes = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
        if internal.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
            && count > 0
            && emulation.flags
                & u64::from(kvm_bindings::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
                != 0
        {
            let size = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
            instruction.extend_from_slice(&bytes.insn_bytes[..size]);
        }
        InternalError {
            suberror: internal.suberror,
            data: internal.data[..count].to_vec(),
            instruction,
        }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, with this size, and nothing refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), Self::SIZE) };
    }
}

/// While it lives, a kick of its thread ends KVM_RUN of its vCPU.
#[derive(Debug)]
pub struct Armed<'a> {
    page: &'a RunPage,
    /// The flag's address is kept per thread: the guard must stay on its own.
    on_this_thread: std::marker::PhantomData<*const ()>,
}

impl Armed<'_> {
    /// Lets KVM_RUN run again after a kick. The caller looks at what the kick was for *after* this.
    pub fn clear(&self) {
        // SAFETY: the byte is mapped as long as the page lives; all accesses of ours are atomic.
        unsafe { AtomicU8::from_ptr(self.page.immediate_exit()) }.store(0, Ordering::Relaxed);
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
