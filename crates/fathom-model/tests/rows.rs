//! Data files: the same rows from every format, and malicious files.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use fathom_model::{Trace, TraceContent, TraceReader};
use proptest::prelude::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/rows");

fn read(path: &Path) -> Result<Vec<Trace>, String> {
    let reader = TraceReader::open(path).map_err(|error| error.to_string())?;
    reader.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// The rows written by the generator of the test data.
fn expected() -> Vec<(u64, TraceContent)> {
    let content = |i: u64| TraceContent::Text {
        prompt: format!("What is {i} + {i}?"),
        output: format!("é😀 {}\n", 2 * i),
    };
    (0..6).map(|i| (i, content(i))).collect()
}

fn contents(traces: Vec<Trace>) -> Vec<(u64, TraceContent)> {
    traces.into_iter().map(|trace| (trace.index, trace.content)).collect()
}

#[test]
fn all_formats_have_the_same_rows() {
    let mut files = 0;
    for entry in fs::read_dir(DATA).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.extension().unwrap() != "py" {
            assert_eq!(contents(read(&path).unwrap()), expected(), "{}", path.display());
            files += 1;
        }
    }
    assert_eq!(files, 12);
}

#[test]
fn shards_are_one_data_set() {
    let shards = Path::new(DATA).join("shards");
    for path in [shards.clone(), shards.join("train-*.parquet")] {
        let traces = read(&path).unwrap();
        let places: Vec<_> = traces.iter().map(|trace| (trace.path.clone(), trace.line)).collect();
        let shard = |n: usize| shards.join(format!("train-{n:05}-of-00003.parquet"));
        let lines = [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2), (2, 3)];
        assert_eq!(places, lines.map(|(n, line)| (shard(n), line)));
        assert_eq!(contents(traces), expected());
    }
}

fn refused(path: &Path) -> String {
    let message = read(path).unwrap_err();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn directories_and_patterns_without_data_files() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(dir.path()).contains("is a directory without .jsonl, .json or .parquet files"));
    assert!(refused(&dir.path().join("*.jsonl")).contains("is a pattern that matches no files"));
    fs::write(dir.path().join("a.jsonl"), "{\"input_ids\": [1]}\n").unwrap();
    assert_eq!(read(&dir.path().join("?.jsonl")).unwrap().len(), 1);
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(refused(dir.path()).contains("is a directory with JSON and JSONL files"));
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn arrays() {
    for (text, rows) in [
        ("[]", 0),
        (" \n[ ]\n", 0),
        ("[{\"input_ids\": [1, 2]}]", 1),
        ("[{\"input_ids\": [1]},\n {\"input_ids\": [2], \"x\": \"],[{\\\"\"}]\n", 2),
    ] {
        let (_dir, path) = file("rows.json", text.as_bytes());
        assert_eq!(read(&path).unwrap().len(), rows, "{text}");
    }
    for (text, expected) in [
        ("[{\"input_ids\": [1]}", "line 1: ends in the middle of the array"),
        ("[{\"input_ids\": [1]}, 3]", "line 2: must be a JSON object"),
        ("[{\"input_ids\": [1]}] {}", "is followed by text after the end of the array"),
        ("[{\"input_ids\": [1}]", "line 1: "),
    ] {
        let (_dir, path) = file("rows.json", text.as_bytes());
        assert!(refused(&path).contains(expected), "{text}: {}", refused(&path));
    }
    // An error ends the file and is returned only once.
    let (_dir, path) = file("rows.json", b"[{\"input_ids\": [1]}");
    assert_eq!(TraceReader::open(&path).unwrap().count(), 1);
}

#[test]
fn decompression_bombs_are_refused() {
    let zeros = vec![b' '; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    (0..70).for_each(|_| gzip.write_all(&zeros).unwrap());
    let (_dir, path) = file("bomb.jsonl.gz", &gzip.finish().unwrap());
    assert!(refused(&path).contains("line 1: is longer than 64 MiB"));
    // Many short lines.
    let lines = b"\n".repeat(1 << 20);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    (0..450).for_each(|_| gzip.write_all(&lines).unwrap());
    let (_dir, path) = file("bomb.jsonl.gz", &gzip.finish().unwrap());
    assert!(refused(&path).contains("it decompresses to more than 400 times its size"));
}

#[test]
fn truncated_files_are_refused() {
    for name in ["rows.jsonl.gz", "rows.jsonl.zst", "pyarrow.parquet", "polars.parquet"] {
        let bytes = fs::read(Path::new(DATA).join(name)).unwrap();
        for length in (5..bytes.len()).step_by(7) {
            let (_dir, path) = file(name, &bytes[..length]);
            assert!(refused(&path).contains(name), "{name}, {length} bytes");
        }
    }
}

#[test]
fn a_line_that_cannot_be_read_does_not_hide_the_next() {
    let long = format!("{{\"input_ids\": [1], \"x\": \"{}\"}}", "a".repeat(65 << 20));
    let text = format!("nonsense\n{long}\n{{\"input_ids\": [7]}}\n");
    let (_dir, path) = file("rows.jsonl", text.as_bytes());
    let rows: Vec<_> = TraceReader::open(&path).unwrap().collect();
    assert_eq!(rows.len(), 3);
    assert!(rows[0].is_err() && rows[1].is_err());
    assert_eq!(rows[2].as_ref().unwrap().line, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A corrupt Parquet file gives rows or an error, but no panic.
    #[test]
    fn no_parquet_file_panics(
        name in prop_oneof![
            Just("pyarrow-zstd.parquet"),
            Just("duckdb.parquet"),
            Just("polars.parquet")
        ],
        faults in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = fs::read(Path::new(DATA).join(name)).unwrap();
        for (place, byte) in faults {
            let place = 4 + place.index(bytes.len() - 4);
            bytes[place] = byte;
        }
        let (_dir, path) = file(name, &bytes);
        let _ = read(&path);
    }

    #[test]
    fn no_array_panics(text in "\\[?[\\[\\]{}\",0-9a-z \\\\:]{0,60}") {
        let (_dir, path) = file("rows.json", text.as_bytes());
        let _ = read(&path);
    }
}
