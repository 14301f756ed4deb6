//! Short strings that say which checkpoint a result came from.

use std::fs::File;
use std::io::{Read, Result as IoResult};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::weights::Shard;
use crate::{Checkpoint, Error, Result};

/// Bytes hashed at each sampled place of a tensor.
const BLOCK: usize = 4096;

/// `sha256:` and the hash of a file's bytes, in hexadecimal.
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
    /// `sampled-sha256:` and a hash over the weights that need not read all of them, in
    /// hexadecimal.
    ///
    /// Hashed are, for every safetensors file in the order of their names: name, size, header, and
    /// of every tensor in the order of their bytes the first, the middle and the last 4096 bytes
    /// (all of it when it is no longer than the three together). Training or quantising changes
    /// every tensor it touches nearly everywhere, so such a change shows; a change of single
    /// elements need not. With an adapter, all of its config and its tensors are hashed as well.
    pub fn fingerprint(&self) -> String {
        let mut sha = Sha256::new();
        for shard in &self.shards {
            let Shard { path, map, tensors } = shard;
            // Lengths before variable parts, so that no two checkpoints hash the same bytes.
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
                    // A few bytes may have mapped megabytes around them.
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
