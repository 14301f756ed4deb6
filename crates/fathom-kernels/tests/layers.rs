//! The module layering that `lib.rs` states: a module imports only lower layers.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the bottom up; modules of the same layer do not import each other.
const LAYERS: [(&str, usize); 11] = [
    ("memory", 0),
    ("simd", 1),
    ("gemm", 2),
    ("amx", 3),
    ("cpu", 4),
    ("linear", 5),
    ("ops", 6),
    ("attention", 7),
    ("backend", 8),
    ("peak", 8),
    ("reference", 8),
];

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().find(|(name, _)| *name == module);
    found.unwrap_or_else(|| panic!("`{module}` is missing from the list in lib.rs")).1
}

/// The code of a file without comments and tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    // Tests are at the end of a file.
    let end = text.find("\nmod tests");
    let lines = text[..end.unwrap_or(text.len())].lines();
    lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The identifiers that follow `prefix` in `code`.
fn names_after<'a>(code: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    code.split(prefix).skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

/// The modules of `src`, each with the names and the code of its files.
fn modules() -> BTreeMap<String, BTreeMap<String, String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut modules = BTreeMap::new();
    for path in fs::read_dir(src).unwrap().map(|entry| entry.unwrap().path()) {
        let files: Vec<_> = match path.is_dir() {
            true => fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect(),
            false => vec![path.clone()],
        };
        let files = files.iter().filter(|file| stem(file) != "tests" && stem(file) != "lib");
        let files: BTreeMap<_, _> = files.map(|file| (stem(file), code(file))).collect();
        if !files.is_empty() {
            modules.insert(stem(&path), files);
        }
    }
    modules
}

#[test]
fn a_module_imports_only_lower_layers() {
    let mut seen = BTreeSet::new();
    for (module, files) in modules() {
        for (file, code) in files {
            for name in names_after(&code, "crate::") {
                assert!(!name.is_empty(), "{module}/{file} imports from the crate's root");
                if name == module {
                    continue;
                }
                if (module.as_str(), name) == ("simd", "gemm") {
                    let mut of_gemm = names_after(&code, "crate::gemm::");
                    assert!(of_gemm.all(|name| name == "product"), "simd/{file}");
                    continue;
                }
                let below = layer(name) < layer(&module);
                assert!(below, "{module}/{file} imports {name}, which is not a lower layer");
                seen.insert((module.clone(), name.to_owned()));
            }
        }
    }
    // Guard against a test that reads nothing.
    assert!(seen.contains(&("backend".to_owned(), "attention".to_owned())));
    assert!(seen.len() > 20, "{seen:?}");
}

#[test]
fn the_files_of_a_module_do_not_import_each_other_in_a_cycle() {
    for (module, mut files) in modules() {
        // `mod.rs` declares the module's files; its imports are not considered.
        files.remove("mod");
        let own = format!("crate::{module}::");
        loop {
            let names: BTreeSet<String> = files.keys().cloned().collect();
            let imports_another = |file: &String, code: &String| {
                let mut imports = names_after(code, "super::").chain(names_after(code, &own));
                imports.any(|name| name != file && names.contains(name))
            };
            // A file that imports none of the remaining files is in no cycle.
            files.retain(|file, code| imports_another(file, code));
            if files.len() == names.len() {
                break;
            }
        }
        assert!(files.is_empty(), "{module}: {:?} import each other", files.keys());
    }
}
