//! Memory that was freed goes back to the system.

/// From this size on, in bytes, memory is given back as soon as it is freed: the smallest buffers of which there
/// are many at once have it.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 * 1024;

/// Has memory in large pieces returned to the system when it is freed. To be called when a program begins.
///
/// The allocator of glibc does so with pieces of 128 KiB and more only until the first of them was freed; then it
/// takes what is as large from memory that it keeps. The tables of one stage of an import would still be
/// resident in the next one, which has tables of its own. Other allocators are left as they are.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, touches no memory of ours, and refuses what it doesn't know.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}
