//! Large pages for much memory that is about to be filled: most of what it takes to fill new memory is to get it page by page.

/// Less is not worth a system call.
const MUCH: usize = 4 << 20;
/// The smallest page.
const PAGE: usize = 4096;

/// Tells the kernel that all of this memory, which is new, will be filled.
pub(crate) fn will_be_filled<T>(memory: &[T]) {
    let len = size_of_val(memory);
    if len < MUCH {
        return;
    }
    let start = memory.as_ptr().cast::<u8>();
    let before = start.align_offset(PAGE);
    let len = len.saturating_sub(before) / PAGE * PAGE;
    // It may be refused, where there are none; then it takes longer.
    // SAFETY: whole pages within the slice, and the advice changes nothing of what is in them.
    unsafe {
        libc::madvise(start.wrapping_add(before).cast_mut().cast(), len, libc::MADV_HUGEPAGE)
    };
}
