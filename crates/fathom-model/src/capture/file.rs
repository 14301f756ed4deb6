//! Captured values in a safetensors file.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fathom_backend::Backend;
use serde_json::{Map, Value, json};

use super::{CaptureRequest, CaptureStore, TensorSpec};
use crate::{Error, Result, Transformer};

/// A safetensors file of known shapes, filled in the order in which the pass computes the values.
pub(super) struct CaptureFile {
    /// Byte offset of each tensor in the file.
    offsets: Vec<u64>,
    file: File,
    partial: PathBuf,
    out: PathBuf,
}

impl CaptureFile {
    pub fn create<B: Backend>(
        model: &Transformer<B>,
        ids: &[u32],
        request: &CaptureRequest,
        tensors: &[TensorSpec],
        out: &Path,
    ) -> Result<CaptureFile> {
        if out.exists() {
            return Err(Error::file(out, "already exists; choose another name or remove it"));
        }
        let precision = model.backend().precision().name();
        let positions =
            request.positions.as_ref().map_or("all".to_owned(), |kept| json!(kept).to_string());
        let mut header = Map::new();
        let mut metadata = json!({
            "format": "pt",
            "fathom_version": env!("CARGO_PKG_VERSION"),
            "precision": precision,
            "input_ids": Value::from(ids).to_string(),
            "positions": positions,
        });
        if !request.edits.is_empty() {
            let edits: Vec<String> = request.edits.iter().map(ToString::to_string).collect();
            metadata["edits"] = json!(edits.join("; "));
        }
        header.insert("__metadata__".to_owned(), metadata);
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut end = 0u64;
        for TensorSpec { site, layer, shape, .. } in tensors {
            let offset = end;
            end += shape.iter().map(|n| *n as u64).product::<u64>() * 4;
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
            header.insert(site.name_at(*layer), entry);
            offsets.push(offset);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let data = 8 + header.len() as u64;
        offsets.iter_mut().for_each(|offset| *offset += data);

        let partial = out.with_added_extension("partial");
        let mut file = File::create(&partial).map_err(Error::io(&partial, "cannot be written"))?;
        let written = file
            .write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&header))
            .and_then(|()| file.set_len(data + end));
        let file = CaptureFile { offsets, file, partial, out: out.to_owned() };
        written.map_err(Error::io(&file.partial, "cannot be written"))?;
        Ok(file)
    }

    /// Renames the complete file to its final name.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.partial, "cannot be written"))?;
        fs::rename(&self.partial, &self.out).map_err(Error::io(&self.out, "cannot be written"))
    }
}

impl CaptureStore for CaptureFile {
    fn put(&mut self, tensor: usize, index: usize, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let offset = self.offsets[tensor] + index as u64 * 4;
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(&bytes))
            .map_err(Error::io(&self.partial, "cannot be written"))
    }
}

impl Drop for CaptureFile {
    fn drop(&mut self) {
        // After `finish` no file has this name; after an error it is an incomplete capture.
        let _ = fs::remove_file(&self.partial);
    }
}
