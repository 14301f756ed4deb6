//! Checkpoints: reading tensors, and every error for untrusted files.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use fathom_backend::DType;
use fathom_model::{Checkpoint, ModelConfig, file_fingerprint, parse_header, parse_index};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name)
}

/// A safetensors file of a header and `data` bytes of zeros.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A safetensors file of f32 tensors.
fn f32_file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, shape, values)| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        (*name, Owned(safetensors::Dtype::F32, shape.to_vec(), bytes))
    });
    safetensors::serialize(views, None).unwrap()
}

struct Owned(safetensors::Dtype, Vec<usize>, Vec<u8>);

impl safetensors::View for Owned {
    fn dtype(&self) -> safetensors::Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.2.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

fn dir_of(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The error message of opening a directory, without the path of the directory.
fn refusal(dir: &Path) -> String {
    let message = Checkpoint::open(dir).unwrap_err().to_string();
    message.replace(&format!("{}/", dir.display()), "")
}

#[test]
fn every_tensor_of_every_golden_is_what_safetensors_reads() {
    let mut compared = 0;
    for dir in
        fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.is_dir())
    {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        for path in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if !name.starts_with("model") || !name.ends_with(".safetensors") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            for (name, theirs) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let ours = checkpoint.tensor(&name).unwrap();
                assert_eq!(
                    (ours.shape, ours.bytes, ours.file),
                    (theirs.shape(), theirs.data(), &*path)
                );
                assert_eq!(ours.dtype, DType::Bf16);
                compared += 1;
            }
        }
        assert!(!checkpoint.contains("model.layers.99.mlp.up_proj.weight"));
    }
    assert!(compared > 300, "{compared}");
}

#[test]
fn vectors_widen_exactly_from_every_dtype() {
    let values = [0.0f32, -0.0, 1.0, -2.5, 0.333, 65504.0, 6e-8, -1e-30];
    let halves =
        |bits: fn(f32) -> u16| values.iter().flat_map(|&x| bits(x).to_le_bytes()).collect();
    let f32s = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors = [
        ("bf16", Owned(safetensors::Dtype::BF16, vec![8], halves(|x| bf16::from_f32(x).to_bits()))),
        ("f16", Owned(safetensors::Dtype::F16, vec![8], halves(|x| f16::from_f32(x).to_bits()))),
        ("f32", Owned(safetensors::Dtype::F32, vec![8], f32s)),
    ];
    let dir = dir_of(&[(SINGLE, safetensors::serialize(tensors, None).unwrap())]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.vector("bf16", 8).unwrap(), values.map(|x| bf16::from_f32(x).to_f32()));
    assert_eq!(checkpoint.vector("f16", 8).unwrap(), values.map(|x| f16::from_f32(x).to_f32()));
    assert_eq!(checkpoint.vector("f32", 8).unwrap(), values);
    let matrix = checkpoint.vector("f32", 8).unwrap();
    assert!(matrix[1].is_sign_negative());
}

/// Releasing drops pages but does not change contents.
#[test]
fn released_tensors_read_the_same() {
    let checkpoint = Checkpoint::open(&golden("codellama-sharded")).unwrap();
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let matrix = checkpoint.matrix(name, 328, 64).unwrap();
        let view = matrix.view();
        let before = view.bytes.to_vec();
        checkpoint.release();
        assert_eq!(view.bytes, before);
    }
}

/// Pages of a file do not stay in memory after its tensors were packed.
#[cfg(target_os = "linux")]
#[test]
fn released_files_and_fingerprints_hold_no_memory() {
    let values = vec![1.0; 1 << 21];
    let tensors = [("a", [2048, 1024]), ("b", [1024, 2048])];
    let tensors = tensors.each_ref().map(|(name, shape)| (*name, &shape[..], &values[..]));
    let dir = dir_of(&[(SINGLE, f32_file(&tensors))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    // `Rss:` of the file's mapping, in KiB.
    let path = dir.path().join(SINGLE).display().to_string();
    let resident = || -> usize {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(&path));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    };
    checkpoint.matrix("a", 2048, 1024).unwrap();
    assert!(resident() >= 8 << 10, "{}", resident());
    checkpoint.release();
    assert_eq!(resident(), 0);
    checkpoint.fingerprint();
    assert_eq!(resident(), 0);
}

/// In exports of a model without its head, names lack the leading `model.`.
#[test]
fn names_without_the_model_prefix_are_found() {
    let dir = dir_of(&[(SINGLE, f32_file(&[("norm.weight", &[2], &[1.0, 2.0])]))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.contains("model.norm.weight"));
    assert_eq!(checkpoint.vector("model.norm.weight", 2).unwrap(), [1.0, 2.0]);
    // If any name has the prefix, names without it are different tensors.
    let mixed = f32_file(&[("model.a", &[1], &[1.0]), ("norm.weight", &[1], &[1.0])]);
    let dir = dir_of(&[(SINGLE, mixed)]);
    assert!(!Checkpoint::open(dir.path()).unwrap().contains("model.norm.weight"));
}

/// If a tied config's checkpoint has a different head, HuggingFace uses that head.
#[test]
fn a_different_head_is_used_despite_tying() {
    let config = |tied: bool| {
        let path = golden("qwen2/config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["tie_word_embeddings"] = json!(tied);
        ModelConfig::parse(&path, &config.to_string()).unwrap()
    };
    let ties = |head: Option<&[f32]>, tied| {
        let mut tensors: Vec<(&str, &[usize], &[f32])> =
            vec![("model.embed_tokens.weight", &[1, 2], &[1.0, 2.0])];
        tensors.extend(head.map(|head| ("lm_head.weight", &[1, 2][..], head)));
        let dir = dir_of(&[(SINGLE, f32_file(&tensors))]);
        Checkpoint::open(dir.path()).unwrap().ties_word_embeddings(&config(tied)).unwrap()
    };
    assert!(ties(None, true));
    assert!(ties(Some(&[1.0, 2.0]), true));
    assert!(!ties(Some(&[1.0, 3.0]), true));
    assert!(!ties(Some(&[1.0, 2.0]), false));
}

#[test]
fn invalid_tensors_are_refused_when_they_are_read() {
    let data = [1.0, 2.0, f32::NAN, 4.0, f32::NEG_INFINITY, 6.0];
    let mut tensors = vec![(
        "nan",
        Owned(
            safetensors::Dtype::F32,
            vec![3, 2],
            data.iter().flat_map(|x: &f32| x.to_le_bytes()).collect(),
        ),
    )];
    tensors.push(("ids", Owned(safetensors::Dtype::I64, vec![1], vec![0; 8])));
    tensors.push((
        "inf",
        Owned(safetensors::Dtype::F16, vec![2], f16::INFINITY.to_le_bytes().repeat(2)),
    ));
    let mut long = bf16::ONE.to_le_bytes().repeat(10_000);
    long[2 * 9_999..].copy_from_slice(&bf16::NAN.to_le_bytes());
    tensors.push(("long", Owned(safetensors::Dtype::BF16, vec![10_000], long)));
    let dir = dir_of(&[(SINGLE, safetensors::serialize(tensors, None).unwrap())]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let path = dir.path().join(SINGLE);
    let message =
        |tensor: &str, problem: &str| format!("{}: tensor `{tensor}` {problem}", path.display());
    let matrix =
        |name, rows, columns| checkpoint.matrix(name, rows, columns).unwrap_err().to_string();
    let vector = |name, len| checkpoint.vector(name, len).unwrap_err().to_string();

    assert_eq!(matrix("absent", 1, 1), message("absent", "is missing"));
    assert_eq!(matrix("nan", 2, 3), message("nan", "has shape [3, 2], expected [2, 3]"));
    assert_eq!(vector("nan", 6), message("nan", "has shape [3, 2], expected [6]"));
    assert_eq!(
        matrix("nan", 3, 2),
        message("nan", "is NaN or infinite at [1, 0], expected finite numbers")
    );
    assert_eq!(
        vector("inf", 2),
        message("inf", "is NaN or infinite at [0], expected finite numbers")
    );
    assert_eq!(
        vector("long", 10_000),
        message("long", "is NaN or infinite at [9999], expected finite numbers")
    );
    assert_eq!(vector("ids", 1), message("ids", "is of dtype I64, expected BF16, F16 or F32"));
}

#[test]
fn broken_files_are_refused() {
    let header = |a: Value, b: Value| json!({"a": a, "b": b}).to_string();
    let tensor = |shape: Value, from: usize, to: usize| -> Value {
        json!({"dtype": "F32", "shape": shape, "data_offsets": [from, to]})
    };
    let mut not_utf8 = file("{\"a\": 1}", 0);
    not_utf8[10] = 0xFF;
    let truncated = {
        let bytes = fs::read(golden("llama2/model.safetensors")).unwrap();
        bytes[..bytes.len() - 100].to_vec()
    };
    let a = tensor(json!([2]), 0, 8);
    let a_twice = format!(r#"{{"a":{a},"a":{}}}"#, tensor(json!([2]), 8, 16));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "is empty, expected a safetensors file"),
        (vec![1, 2, 3], "is 3 bytes long, too short for a safetensors file"),
        (
            u64::MAX.to_le_bytes().to_vec(),
            "declares a header of 18446744073709551615 bytes, expected at most 100000000",
        ),
        (1000u64.to_le_bytes().to_vec(), "declares a header of 1000 bytes, but only 0 follow"),
        (not_utf8, "has a header that is not UTF-8 text (byte 2)"),
        (file("[]", 0), "has a header that is not a JSON object"),
        (
            file("{", 0),
            "has a header that cannot be read: EOF while parsing an object at line 1 column 1",
        ),
        (
            file(r#"{"a":{"dtype":"F32"}}"#, 0),
            "has a header that cannot be read: tensor `a`: missing field `shape` at line 1 column \
             20",
        ),
        (
            file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#, 0),
            "has a header that cannot be read: tensor `a`: invalid value: integer `-1`, expected \
             usize at line 1 column 31",
        ),
        (
            file(
                &header(a.clone(), json!({"dtype": "F31", "shape": [1], "data_offsets": [8, 12]})),
                12,
            ),
            "tensor `b` has the unknown dtype `F31`",
        ),
        (
            file(&header(a.clone(), tensor(json!([1]), 12, 8)), 12),
            "tensor `b` has the offsets 12 to 8, expected a range within the 12 bytes that follow \
             the header (is the file truncated?)",
        ),
        (
            file(&header(a.clone(), tensor(json!([1]), 8, 12)), 11),
            "tensor `b` has the offsets 8 to 12, expected a range within the 11 bytes that follow \
             the header (is the file truncated?)",
        ),
        (
            file(&header(a.clone(), tensor(json!([3]), 8, 12)), 12),
            "tensor `b` has the offsets 8 to 12, but shape [3] of F32 takes 12 bytes",
        ),
        (
            file(&header(a.clone(), tensor(json!([u64::MAX, u64::MAX]), 8, 12)), 12),
            "tensor `b` has the offsets 8 to 12, but shape [18446744073709551615, \
             18446744073709551615] of F32 takes a size that no file has",
        ),
        (
            file(&header(a.clone(), tensor(json!([2]), 4, 12)), 12),
            "tensor `b` overlaps tensor `a` by 4 bytes",
        ),
        (file(&header(a.clone(), a.clone()), 8), "tensor `b` overlaps tensor `a` by 8 bytes"),
        (
            file(&header(a.clone(), tensor(json!([1]), 12, 16)), 16),
            "tensor `b` starts 4 bytes after what precedes it ends",
        ),
        (
            file(&header(a.clone(), tensor(json!([1]), 8, 12)), 20),
            "has 8 bytes that belong to no tensor",
        ),
        (file(&a_twice, 16), "tensor `a` is in the header twice"),
        (
            truncated,
            "tensor `model.norm.weight` has the offsets 422912 to 423040, expected a range within \
             the 422940 bytes that follow the header (is the file truncated?)",
        ),
    ];
    for (bytes, problem) in cases {
        let dir = dir_of(&[(SINGLE, bytes)]);
        assert_eq!(refusal(dir.path()), format!("{SINGLE}: {problem}"));
    }
}

/// Untrusted names cannot flood or control the terminal.
#[test]
fn hostile_names_make_short_messages_of_one_line() {
    let name = "\u{1b}[2J\n".to_owned() + &"x".repeat(1_000_000);
    let entry =
        |dtype: &str, shape: Value| json!({"dtype": dtype, "shape": shape, "data_offsets": [0, 4]});
    let index =
        |tensor: &str, shard: &str| json!({"weight_map": {tensor: shard}}).to_string().into_bytes();
    let single = |header: Value| (SINGLE, file(&header.to_string(), 4));
    for files in [
        single(json!({&name: entry("F32", json!([2]))})),
        single(json!({"a": entry(&name, json!([1]))})),
        single(json!({"a": entry("F32", json!(&name))})),
        single(json!({&name: entry("F32", json!([1])), "b": entry("F32", json!([1]))})),
        (INDEX, index(&name, "../s0")),
        (INDEX, index("a", &format!("../{name}"))),
        (INDEX, json!({"weight_map": &name}).to_string().into_bytes()),
    ] {
        let message = refusal(dir_of(&[files]).path());
        assert!(message.len() < 500, "{} bytes", message.len());
        assert!(!message.contains(char::is_control), "{message:?}");
    }
}

#[test]
fn broken_indices_are_refused() {
    let shard = || f32_file(&[("a", &[1], &[1.0])]);
    let index =
        |map: &str| format!(r#"{{"metadata":{{"total_size":4}},"weight_map":{map}}}"#).into_bytes();
    let outside = |name: &str| {
        format!(
            "{INDEX}: `weight_map.a` is `{name}`, expected the name of a file inside the directory"
        )
    };
    let cases = [
        (
            index(r#"{"a":"s1"}"#),
            "s1: does not exist, although model.safetensors.index.json names it".into(),
        ),
        (
            index(r#"{"a":"s0","b":"s0"}"#),
            "s0: tensor `b` is missing, although model.safetensors.index.json places it there"
                .into(),
        ),
        (index(r#"{"a":"../../s0"}"#), outside("../../s0")),
        (index(r#"{"a":"x/../../s0"}"#), outside("x/../../s0")),
        (index(r#"{"a":"/etc/passwd"}"#), outside("/etc/passwd")),
        (index(r#"{"a":"C:\\s0"}"#), outside("C:\\s0")),
        (index(r#"{"a":".."}"#), outside("..")),
        (index(r#"{"a":""}"#), outside("")),
        (index(r#"{"a":"s0\u0000"}"#), outside("s0\\u{0}")),
        (
            index(r#"{"a":"s0","a":"s0"}"#),
            format!(
                "{INDEX}: is not an index: tensor `a` is in weight_map twice at line 1 column 61"
            ),
        ),
        (index("{}"), format!("{INDEX}: `weight_map` is empty, expected the shard of each tensor")),
        (
            index("[]"),
            format!(
                "{INDEX}: is not an index: invalid type: sequence, expected an object that maps \
                 each tensor to its shard at line 1 column 42"
            ),
        ),
        (
            b"{}".to_vec(),
            format!("{INDEX}: is not an index: missing field `weight_map` at line 1 column 2"),
        ),
        (b"\xff".to_vec(), format!("{INDEX}: is not UTF-8 text (byte 0)")),
    ];
    for (index, message) in cases {
        let dir = dir_of(&[("s0", shard()), (INDEX, index)]);
        assert_eq!(refusal(dir.path()), message);
    }
}

/// The single file takes precedence, as in HuggingFace. Shards may be in subdirectories, and links
/// may point outside, as in the hub's cache.
#[test]
fn single_files_shards_in_subdirectories_and_links_are_opened() {
    let value = |dir: &Path| Checkpoint::open(dir).unwrap().vector("a", 1).unwrap()[0];
    let index = json!({"weight_map": {"a": "sub/s0"}}).to_string().into_bytes();
    let dir = dir_of(&[(INDEX, index)]);
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/s0"), f32_file(&[("a", &[1], &[1.0])])).unwrap();
    assert_eq!(value(dir.path()), 1.0);

    let blobs = dir_of(&[("blob", f32_file(&[("a", &[1], &[2.0])]))]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(blobs.path().join("blob"), dir.path().join(SINGLE)).unwrap();
        assert_eq!(value(dir.path()), 2.0);
    }
}

#[test]
fn the_error_for_a_directory_without_weights_names_the_expected_files() {
    let expected = "has no weights, expected model.safetensors or model.safetensors.index.json";
    let message = |dir: &Path| Checkpoint::open(dir).unwrap_err().to_string();
    let dir = dir_of(&[("config.json", vec![])]);
    assert_eq!(message(dir.path()), format!("{}: {expected}", dir.path().display()));
    for other in ["pytorch_model.bin", "model-q4.gguf", "consolidated.safetensors"] {
        let dir = dir_of(&[(other, vec![])]);
        let instead = format!("`{other}` is not read, only safetensors of these names are");
        assert_eq!(message(dir.path()), format!("{}: {expected}; {instead}", dir.path().display()));
    }
    let absent = dir.path().join("absent");
    assert_eq!(
        message(&absent),
        format!(
            "{}: cannot be read as a directory: No such file or directory (os error 2)",
            absent.display()
        )
    );
}

#[test]
fn unreadable_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SINGLE);
    fs::create_dir(&path).unwrap();
    assert_eq!(refusal(dir.path()), "model.safetensors: is not a regular file");

    #[cfg(unix)]
    {
        use std::os::unix::fs::{PermissionsExt, symlink};
        fs::remove_dir(&path).unwrap();
        symlink(SINGLE, &path).unwrap();
        let looping =
            "model.safetensors: cannot be read: Too many levels of symbolic links (os error 40)";
        assert_eq!(refusal(dir.path()), looping);

        fs::remove_file(&path).unwrap();
        fs::write(&path, f32_file(&[("a", &[1], &[1.0])])).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        // The superuser can read the file anyway.
        if fs::File::open(&path).is_err() {
            let denied = "model.safetensors: cannot be read: Permission denied (os error 13)";
            assert_eq!(refusal(dir.path()), denied);
        }
    }
}

#[test]
fn fingerprints_tell_checkpoints_apart() {
    let print = |bytes: Vec<u8>| {
        let dir = dir_of(&[(SINGLE, bytes)]);
        Checkpoint::open(dir.path()).unwrap().fingerprint()
    };
    let long: Vec<f32> = (0..10_000).map(|i| i as f32).collect();
    let base = f32_file(&[("a", &[10_000], &long), ("b", &[2], &[1.0, 2.0])]);
    let reference = print(base.clone());
    assert_eq!(print(base), reference);
    assert_eq!(reference.len(), "sampled-sha256:".len() + 64);
    assert!(reference.starts_with("sampled-sha256:"));

    let mut changed = long.clone();
    changed.iter_mut().for_each(|x| *x += 1.0);
    for other in [
        f32_file(&[("a", &[10_000], &changed), ("b", &[2], &[1.0, 2.0])]),
        f32_file(&[("a", &[10_000], &long), ("b", &[2], &[1.0, 3.0])]),
        f32_file(&[("a", &[100, 100], &long), ("b", &[2], &[1.0, 2.0])]),
        f32_file(&[("c", &[10_000], &long), ("b", &[2], &[1.0, 2.0])]),
    ] {
        assert_ne!(print(other), reference);
    }

    // The known SHA-256 of "abc" (FIPS 180-2).
    let dir = dir_of(&[("config.json", b"abc".to_vec())]);
    assert_eq!(
        file_fingerprint(&dir.path().join("config.json")).unwrap(),
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

proptest! {
    /// The bytes of a real file, partly overwritten and truncated: parsed or refused, and parsed
    /// tensors are inside the file.
    #[test]
    fn no_bytes_can_break_the_header_parser(
        edits in prop::collection::vec((0usize..6000, any::<u8>()), 0..8),
        cut in 0usize..3000,
    ) {
        let mut bytes = fs::read(golden("llama2/model.safetensors")).unwrap();
        for (place, byte) in edits {
            bytes[place] = byte;
        }
        bytes.truncate(bytes.len() - cut);
        if let Ok(tensors) = parse_header(Path::new("x"), &bytes) {
            prop_assert!(tensors.iter().all(|tensor| tensor.range.end <= bytes.len()));
        }
    }

    /// A header of a few tensors is accepted only if the safetensors crate accepts it too.
    #[test]
    fn accepted_headers_are_accepted_by_the_safetensors_crate(
        entries in prop::collection::vec(
            (0usize..5, 0usize..3, prop::collection::vec(0usize..4, 0..3)), 0..4,
        ),
        nudge in prop::sample::select(&[0usize, 0, 0, 1, 4][..]),
        data in 0usize..40,
    ) {
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, dtype, shape) in entries {
            let (dtype, size) = [("F32", 4), ("BF16", 2), ("U8", 1)][dtype];
            let start = end + nudge;
            end = start + shape.iter().product::<usize>() * size;
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            header.insert(format!("t{name}"), entry);
        }
        let bytes = file(&Value::from(header).to_string(), if data < 20 { end } else { data });
        let ours = parse_header(Path::new("x"), &bytes);
        let theirs = SafeTensors::deserialize(&bytes);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs.err());
    }

    #[test]
    fn no_text_can_break_the_index_parser(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..6),
    ) {
        let path = golden("codellama-sharded").join(INDEX);
        let mut text: Vec<char> = fs::read_to_string(&path).unwrap().chars().collect();
        for (place, char) in edits {
            let place = place.index(text.len());
            text[place] = char;
        }
        if let Ok(map) = parse_index(&path, &text.into_iter().collect::<String>()) {
            prop_assert!(map.values().all(|shard| !shard.contains("..") || !shard.contains('/')));
        }
    }
}

/// Stops loading at its `left`-th check.
struct Stop {
    left: usize,
    layers: usize,
}

impl fathom_model::LoadProgress for Stop {
    fn layer(&mut self, done: usize, _: usize) {
        self.layers = done;
    }

    fn check(&mut self) -> fathom_model::Result<()> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return Err(fathom_model::Error::Request("stopped".to_owned())),
        }
        Ok(())
    }
}

#[test]
fn loading_stops_before_any_tensor() {
    let dir = golden("qwen3");
    let load = |left: usize| {
        let mut progress = Stop { left, layers: 0 };
        let cpu = fathom_kernels::Cpu::new(fathom_kernels::CpuOptions::default()).unwrap();
        let loaded = fathom_model::Transformer::load_adapted(&dir, None, cpu, &mut progress);
        (loaded.map_err(|error| error.to_string()).map(|model| model.config().layers), progress)
    };
    // Embedding, final norm and head, and eleven tensors of each of the 4 layers.
    let tensors = 3 + 4 * 11;
    for left in 0..tensors {
        let (loaded, progress) = load(left);
        assert_eq!(loaded, Err("stopped".to_owned()), "{left}");
        assert_eq!(progress.layers, left.saturating_sub(3) / 11, "{left}");
    }
    let (loaded, progress) = load(tensors);
    assert_eq!((loaded, progress.layers, progress.left), (Ok(4), 4, 0));
}
