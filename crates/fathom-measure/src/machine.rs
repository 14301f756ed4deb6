//! The hardware as the operating system describes it. Fields are `None` or empty if it does not
//! report them.

use std::fs;
use std::path::Path;

/// CPU model, caches and memory of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The CPU's model name.
    pub cpu: Option<String>,
    /// Cores this process may use.
    pub cores: Option<usize>,
    /// The data caches of core 0, smallest first.
    pub caches: Vec<Cache>,
    /// Total memory in bytes.
    pub memory: Option<u64>,
    /// Available memory in bytes.
    pub available: Option<u64>,
    /// Transparent huge pages: `always`, `madvise` (on request; Fathom requests them) or `never`.
    pub huge_pages: Option<String>,
}

/// A data cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Cache level, 1 being closest to the core.
    pub level: u8,
    /// Size in bytes.
    pub bytes: u64,
    /// Number of cores that share it.
    pub cores: usize,
}

impl Machine {
    /// Queries the operating system.
    pub fn detect() -> Machine {
        let read = |path: &str| fs::read_to_string(path).ok();
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let meminfo = read("/proc/meminfo").unwrap_or_default();
        let huge_pages = read("/sys/kernel/mm/transparent_hugepage/enabled");
        Machine {
            cpu: value_of(&cpuinfo, "model name").map(str::to_owned),
            cores: std::thread::available_parallelism().ok().map(usize::from),
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            memory: value_of(&meminfo, "MemTotal").and_then(size),
            available: value_of(&meminfo, "MemAvailable").and_then(size),
            huge_pages: huge_pages.as_deref().and_then(chosen).map(str::to_owned),
        }
    }

    /// Size in bytes of a buffer that exceeds all caches: when its end has been read, its start has
    /// been evicted.
    pub fn beyond_caches(&self) -> usize {
        const AT_LEAST: u64 = 128 << 20;
        let last = self.caches.last().map_or(0, |cache| cache.bytes);
        AT_LEAST.max(4 * last) as usize
    }
}

/// The value of a `name : value` line.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).next()
}

/// Parses a size such as `48K` or `24684092 kB`.
fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].trim() {
        "" => 0,
        "K" | "kB" => 10,
        "M" | "MB" => 20,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The bracketed choice of `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

/// The number of entries in a list such as `0-3,8,10-11`.
fn count(list: &str) -> Option<usize> {
    list.trim().split(',').try_fold(0, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        Some(sum + last.checked_sub(first)? + 1)
    })
}

fn caches(dir: &Path) -> Vec<Cache> {
    let cache = |index: usize| {
        let field = |name: &str| {
            let text = fs::read_to_string(dir.join(format!("index{index}")).join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        let holds_data = field("type")? != "Instruction";
        let level = field("level")?.parse().ok()?;
        let bytes = size(&field("size")?)?;
        let cores = count(&field("shared_cpu_list")?)?;
        Some((holds_data, Cache { level, bytes, cores }))
    };
    let all = (0..).map_while(cache);
    all.filter(|(holds_data, _)| *holds_data).map(|(_, cache)| cache).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_notations_are_read() {
        assert_eq!(size("48K"), Some(48 << 10));
        assert_eq!(size("24684092 kB"), Some(24_684_092 << 10));
        assert_eq!((size("x"), size("9 parsecs"), size("")), (None, None, None));
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(count("0-3,8,10-11\n"), Some(7));
        assert_eq!((count("3-1"), count("")), (None, None));
        assert_eq!(value_of("a\t: 1\nmodel name\t: X: Y\n", "model name"), Some("X: Y"));
    }

    #[test]
    fn caches_of_instructions_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let write = |index: usize, kind: &str, level: &str, size: &str, cores: &str| {
            let dir = dir.path().join(format!("index{index}"));
            fs::create_dir(&dir).unwrap();
            let fields =
                [("type", kind), ("level", level), ("size", size), ("shared_cpu_list", cores)];
            for (name, text) in fields {
                fs::write(dir.join(name), format!("{text}\n")).unwrap();
            }
        };
        write(0, "Data", "1", "48K", "0");
        write(1, "Instruction", "1", "32K", "0");
        write(2, "Unified", "3", "32768K", "0-1");
        let expected = [
            Cache { level: 1, bytes: 48 << 10, cores: 1 },
            Cache { level: 3, bytes: 32 << 20, cores: 2 },
        ];
        assert_eq!(caches(dir.path()), expected);
    }
}
