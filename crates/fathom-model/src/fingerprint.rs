//! Fingerprints that identify the checkpoint of a result.

use std::fs::File;
use std::io::{Read, Result as IoResult};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::weights::Shard;
use crate::{Checkpoint, Error, Result};

/// Bytes in each hashed block of a tensor.
const BLOCK: usize = 4096;

/// The SHA-256 of a file's bytes, as `sha256:` and hexadecimal digits.
///
/// # Errors
/// The file cannot be read.
pub fn file_fingerprint(path: &Path) -> Result<String> {
    let hash = || -> IoResult<String> {
        let mut file = File::open(path)?;
        let mut sha = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(format!("sha256:{:x}", sha.finalize())),
                read => sha.update(&buffer[..read]),
            }
        }
    };
    hash().map_err(Error::io(path, "cannot be read"))
}

impl Checkpoint {
    /// A SHA-256 over a sample of the weights, as `sampled-sha256:` and hexadecimal digits.
    ///
    /// It covers, for every safetensors file in the order of their names: name, size, header, and
    /// the first, middle and last 4096 bytes of every tensor (all of a tensor of at most three
    /// blocks) in the order of the file. Training and quantisation change almost every element of a
    /// tensor, so they change the fingerprint; a change of single elements may not. An adapter's
    /// config and tensors are hashed completely.
    pub fn fingerprint(&self) -> String {
        let mut sha = Sha256::new();
        for shard in &self.shards {
            let Shard { path, map, tensors } = shard;
            // Lengths precede variable parts, so that different checkpoints hash different bytes.
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            let header = tensors.first().map_or(map.len(), |first| first.range.start);
            sha.update((name.len() as u64).to_le_bytes());
            sha.update(name);
            sha.update((map.len() as u64).to_le_bytes());
            sha.update(&map[..header]);
            for tensor in tensors {
                let bytes = &map[tensor.range.clone()];
                if bytes.len() <= 3 * BLOCK {
                    sha.update(bytes);
                    continue;
                }
                let middle = (bytes.len() - BLOCK) / 2;
                for start in [0, middle, bytes.len() - BLOCK] {
                    sha.update(&bytes[start..start + BLOCK]);
                    // Reading a few bytes may map the megabytes around them.
                    shard.release();
                }
            }
        }
        let files = format!("sampled-sha256:{:x}", sha.finalize());
        match self.adapter() {
            None => files,
            Some(adapter) => adapter.fingerprint(&files),
        }
    }
}
