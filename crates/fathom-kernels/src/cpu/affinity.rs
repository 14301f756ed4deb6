//! Thread pinning.

use std::io;

/// Pins the calling thread to `core`. Threads it spawns inherit that.
#[cfg(target_os = "linux")]
pub(super) fn pin_this_thread(core: usize) -> io::Result<()> {
    set(&only(core)?)
}

/// Checks that a thread may be pinned to `core`, by pinning the calling thread and then restoring
/// its affinity.
#[cfg(target_os = "linux")]
pub(super) fn check(core: usize) -> io::Result<()> {
    let before = get()?;
    let pinned = pin_this_thread(core);
    set(&before)?;
    pinned
}

#[cfg(not(target_os = "linux"))]
pub(super) fn pin_this_thread(_: usize) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "threads can be pinned to cores on Linux only"))
}

/// The cores the calling thread may use, in ascending order.
///
/// # Errors
/// The operating system does not report them.
#[cfg(not(target_os = "linux"))]
pub fn cores() -> io::Result<Vec<usize>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "cores can be listed on Linux only"))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn check(core: usize) -> io::Result<()> {
    pin_this_thread(core)
}

#[cfg(target_os = "linux")]
fn empty() -> libc::cpu_set_t {
    // SAFETY: a `cpu_set_t` is an array of integers used as a bit set, for which all zeros is
    // valid.
    unsafe { std::mem::zeroed() }
}

#[cfg(target_os = "linux")]
fn only(core: usize) -> io::Result<libc::cpu_set_t> {
    if core >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = empty();
    // SAFETY: `core` is within the bits of the set, as checked above.
    unsafe { libc::CPU_SET(core, &mut set) };
    Ok(set)
}

#[cfg(target_os = "linux")]
fn set(cores: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: `cores` is a live reference of the size passed; thread 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(cores), cores) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(target_os = "linux")]
fn get() -> io::Result<libc::cpu_set_t> {
    let mut cores = empty();
    // SAFETY: `cores` is a local of the size passed, borrowed mutably; thread 0 is the calling
    // thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&cores), &mut cores) };
    if result == 0 { Ok(cores) } else { Err(io::Error::last_os_error()) }
}

/// The cores the calling thread may use, in ascending order.
///
/// # Errors
/// The operating system does not report them.
#[cfg(target_os = "linux")]
pub fn cores() -> io::Result<Vec<usize>> {
    let set = get()?;
    // SAFETY: `core` is below the number of bits of the set.
    let may_use = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    Ok((0..8 * size_of_val(&set)).filter(may_use).collect())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn checking_a_core_restores_the_affinity() -> io::Result<()> {
        let before = cores()?;
        for &core in &before {
            check(core)?;
            assert_eq!(cores()?, before);
        }
        assert!(check(usize::MAX).is_err());
        assert_eq!(cores()?, before);
        Ok(())
    }
}
