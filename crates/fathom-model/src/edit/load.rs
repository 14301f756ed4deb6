//! Loading a vector from a capture.

use std::path::Path;

use crate::weights::Shard;
use crate::{Error, Result};

/// Row `row` of an f32 tensor `[rows, width]` in a safetensors file, such as a capture.
pub(super) fn row(path: &Path, tensor: &str, row: usize) -> Result<Vec<f32>> {
    let shard = Shard::open(path.to_owned())?;
    let wrong = |problem: String| Err(Error::tensor(path, tensor, problem));
    let Some(info) = shard.tensors.iter().find(|info| info.name == tensor) else {
        return wrong("is missing".to_owned());
    };
    let &[rows, width] = info.shape.as_slice() else {
        return wrong(format!("has {} dimensions, expected 2", info.shape.len()));
    };
    if info.dtype != "F32" {
        return wrong(format!("is of dtype {}, expected F32", info.dtype));
    }
    if row >= rows {
        return wrong(format!("has {rows} rows, there is no row {row}"));
    }
    let start = info.range.start + row * width * 4; // in bounds: the header was checked
    let bytes = shard.map[start..start + width * 4].as_chunks().0;
    Ok(bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
