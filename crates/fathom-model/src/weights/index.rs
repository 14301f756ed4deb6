//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::sanitize::sanitize;
use crate::{Error, Result};

/// Parses an index into the shard of each tensor name. `path` is used in messages only.
///
/// # Errors
/// The text is not an index, names a tensor twice, or names a shard outside the directory.
pub fn parse_index(path: &Path, text: &str) -> Result<BTreeMap<String, String>> {
    let Index { weight_map: WeightMap(map) } = serde_json::from_str(text).map_err(|error| {
        let problem = format!("is not an index: {error}");
        Error::file(path, sanitize(&problem))
    })?;
    if map.is_empty() {
        return Err(Error::field(
            path,
            "weight_map",
            "is empty, expected the shard of each tensor",
        ));
    }
    for (tensor, shard) in &map {
        if !stays_inside(shard) {
            let shard = sanitize(shard);
            let problem = format!("is `{shard}`, expected the name of a file inside the directory");
            let field = format!("weight_map.{}", sanitize(tensor));
            return Err(Error::field(path, field, problem));
        }
    }
    Ok(map)
}

/// Whether a shard name stays inside the directory, judged by the name alone. Symbolic links are
/// allowed: the hub's cache consists of them.
fn stays_inside(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
        && !name.contains(['\\', '\0'])
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// A JSON object of strings without duplicate names.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that maps each tensor to its shard")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let mut shards = BTreeMap::new();
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            if shards.contains_key(&tensor) {
                return Err(A::Error::custom(format!("tensor `{tensor}` is in weight_map twice")));
            }
            shards.insert(tensor, shard);
        }
        Ok(WeightMap(shards))
    }
}
