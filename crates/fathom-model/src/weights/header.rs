//! The header of a safetensors file.
//!
//! The first eight bytes are the length of a JSON object with each tensor's dtype, shape and byte
//! range in the rest of the file. The errors of the `safetensors` crate do not name the tensor, and
//! it accepts duplicate names, so untrusted headers are parsed here.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use fathom_backend::DType;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::sanitize::sanitize;
use crate::{Error, Result};

/// Maximum header length in bytes, the same as that of the `safetensors` crate.
const MAX_HEADER: usize = 100_000_000;

/// Element types of the format and their bits. Only BF16, F16 and F32 can be weights, but unused
/// tensors may have any type.
const DTYPES: [(&str, usize); 20] = [
    ("BF16", 16),
    ("F16", 16),
    ("F32", 32),
    ("F64", 64),
    ("C64", 64),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F4", 4),
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("U16", 16),
    ("I16", 16),
    ("U32", 32),
    ("I32", 32),
    ("U64", 64),
    ("I64", 64),
];

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// HuggingFace tensor name.
    pub name: String,
    /// Name of the element type in the format (`"BF16"`).
    pub dtype: &'static str,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// The element type, if weights can have it.
    pub fn weight_dtype(&self) -> Option<DType> {
        match self.dtype {
            "BF16" => Some(DType::Bf16),
            "F16" => Some(DType::F16),
            "F32" => Some(DType::F32),
            _ => None,
        }
    }
}

/// Parses the header of a safetensors file with the bytes `file`; `path` is used in messages only.
/// Tensors are returned in the order of their bytes, which cover the file to its end without gap or
/// overlap.
///
/// # Errors
/// The file is too short for its header or its tensors, or the header is invalid.
pub fn parse_header(path: &Path, file: &[u8]) -> Result<Vec<TensorInfo>> {
    let json = header_text(path, file)?;
    let HeaderEntries(entries) = serde_json::from_str(json).map_err(|error| {
        let problem = format!("has a header that cannot be read: {error}");
        Error::file(path, sanitize(&problem))
    })?;
    let data = 8 + json.len();
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        tensors.push(entry.check(path, name, data, file.len())?);
    }
    check_coverage(path, &mut tensors, data, file.len())?;
    check_names(path, &tensors)?;
    Ok(tensors)
}

/// The JSON text of the header.
fn header_text<'a>(path: &Path, file: &'a [u8]) -> Result<&'a str> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        let problem = format!("is {} bytes long, too short for a safetensors file", file.len());
        return Err(Error::file(path, problem));
    };
    let declared = u64::from_le_bytes(*length);
    let header = usize::try_from(declared).ok().filter(|&length| length <= MAX_HEADER);
    let Some(header) = header else {
        let problem =
            format!("declares a header of {declared} bytes, expected at most {MAX_HEADER}");
        return Err(Error::file(path, problem));
    };
    let Some(header) = rest.get(..header) else {
        let problem =
            format!("declares a header of {declared} bytes, but only {} follow", rest.len());
        return Err(Error::file(path, problem));
    };
    let text = std::str::from_utf8(header).map_err(|error| {
        let problem = format!("has a header that is not UTF-8 text (byte {})", error.valid_up_to());
        Error::file(path, problem)
    })?;
    match text.starts_with('{') {
        true => Ok(text),
        false => Err(Error::file(path, "has a header that is not a JSON object")),
    }
}

/// One tensor's JSON object.
#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl HeaderEntry {
    /// Checks dtype, shape and offsets against each other and against the file. `data` is the
    /// offset of the first tensor byte, `file` the length of the file in bytes.
    fn check(self, path: &Path, name: String, data: usize, file: usize) -> Result<TensorInfo> {
        let wrong = |problem: String| Err(Error::tensor(path, sanitize(&name), sanitize(&problem)));
        let Some(&(dtype, bits)) = DTYPES.iter().find(|(dtype, _)| *dtype == self.dtype) else {
            return wrong(format!("has the unknown dtype `{}`", self.dtype));
        };
        let [start, end] = self.data_offsets;
        if start > end || end > file - data {
            let held = file - data;
            return wrong(format!(
                "has the offsets {start} to {end}, expected a range within the {held} bytes that \
                 follow the header (is the file truncated?)"
            ));
        }
        let elements =
            self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bytes = elements
            .and_then(|elements| elements.checked_mul(bits))
            .filter(|bits| bits.is_multiple_of(8))
            .map(|bits| bits / 8);
        if bytes != Some(end - start) {
            let needed =
                bytes.map_or("a size that no file has".into(), |bytes| format!("{bytes} bytes"));
            return wrong(format!(
                "has the offsets {start} to {end}, but shape {:?} of {dtype} takes {needed}",
                self.shape
            ));
        }
        Ok(TensorInfo { name, dtype, shape: self.shape, range: data + start..data + end })
    }
}

/// Sorts tensors by position and checks that they cover every byte from `data` on exactly once.
fn check_coverage(path: &Path, tensors: &mut [TensorInfo], data: usize, file: usize) -> Result<()> {
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut covered = data;
    let mut previous = "";
    for TensorInfo { name, range, .. } in tensors.iter() {
        if range.start < covered {
            let problem = format!(
                "overlaps tensor `{}` by {} bytes",
                sanitize(previous),
                covered - range.start
            );
            return Err(Error::tensor(path, sanitize(name), problem));
        }
        if range.start > covered {
            let problem =
                format!("starts {} bytes after what precedes it ends", range.start - covered);
            return Err(Error::tensor(path, sanitize(name), problem));
        }
        covered = range.end;
        previous = name;
    }
    match file - covered {
        0 => Ok(()),
        rest => Err(Error::file(path, format!("has {rest} bytes that belong to no tensor"))),
    }
}

fn check_names(path: &Path, tensors: &[TensorInfo]) -> Result<()> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(Error::tensor(path, sanitize(pair[0]), "is in the header twice")),
    }
}

/// The tensors in the order of the JSON object, with duplicates.
struct HeaderEntries(Vec<(String, HeaderEntry)>);

impl<'de> Deserialize<'de> for HeaderEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderEntriesVisitor)
    }
}

struct HeaderEntriesVisitor;

impl<'de> Visitor<'de> for HeaderEntriesVisitor {
    type Value = HeaderEntries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderEntries, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = map.next_value();
            let entry =
                entry.map_err(|error| A::Error::custom(format!("tensor `{name}`: {error}")))?;
            entries.push((name, entry));
        }
        Ok(HeaderEntries(entries))
    }
}
