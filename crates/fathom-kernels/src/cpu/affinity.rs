//! Which core a thread runs on.

use std::io;

/// Keeps the calling thread on `core` from now on. Threads it starts inherit that.
#[cfg(target_os = "linux")]
pub(super) fn pin_this_thread(core: usize) -> io::Result<()> {
    set(&only(core)?)
}

/// Whether a thread may be kept on `core`: goes there and back.
#[cfg(target_os = "linux")]
pub(super) fn check(core: usize) -> io::Result<()> {
    let before = get()?;
    let there = pin_this_thread(core);
    set(&before)?;
    there
}

#[cfg(not(target_os = "linux"))]
pub(super) fn pin_this_thread(_: usize) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "threads are kept on cores on Linux only"))
}

/// The cores the calling thread may use, in ascending order.
///
/// # Errors
/// An operating system that does not tell.
#[cfg(not(target_os = "linux"))]
pub fn cores() -> io::Result<Vec<usize>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "cores are told apart on Linux only"))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn check(core: usize) -> io::Result<()> {
    pin_this_thread(core)
}

#[cfg(target_os = "linux")]
fn empty() -> libc::cpu_set_t {
    // SAFETY: a `cpu_set_t` is an array of bits; all zeros is the empty set.
    unsafe { std::mem::zeroed() }
}

#[cfg(target_os = "linux")]
fn only(core: usize) -> io::Result<libc::cpu_set_t> {
    if core >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = empty();
    // SAFETY: `core` is one of the set's bits.
    unsafe { libc::CPU_SET(core, &mut set) };
    Ok(set)
}

#[cfg(target_os = "linux")]
fn set(cores: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the set lives through the call; 0 means the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(cores), cores) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(target_os = "linux")]
fn get() -> io::Result<libc::cpu_set_t> {
    let mut cores = empty();
    // SAFETY: as in `set`, and nobody else has the set.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&cores), &mut cores) };
    if result == 0 { Ok(cores) } else { Err(io::Error::last_os_error()) }
}

/// The cores the calling thread may use, in ascending order.
///
/// # Errors
/// An operating system that does not tell.
#[cfg(target_os = "linux")]
pub fn cores() -> io::Result<Vec<usize>> {
    let set = get()?;
    // SAFETY: each is one of the set's bits.
    let may_use = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    Ok((0..8 * size_of_val(&set)).filter(may_use).collect())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() -> io::Result<()> {
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
