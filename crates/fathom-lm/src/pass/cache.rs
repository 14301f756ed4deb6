//! The activations captured in a pass.

use fathom_model::{Captured, Site};

use super::{Array, parse_site};

/// Activations captured in a pass, in the order of the forward pass.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    places: Vec<(Site, usize)>,
    arrays: Vec<Array>,
}

impl Cache {
    pub(super) fn new(captured: Vec<Captured>) -> Cache {
        let mut cache = Cache::default();
        for Captured { site, layer, shape, values } in captured {
            cache.places.push((site, layer));
            cache.arrays.push(Array { shape, values });
        }
        cache
    }

    /// The activations with this name, in the syntax of [`crate::Model::run_with_cache`], with the
    /// layer for sites that have layers. `resid_post.3` and `blocks.3.hook_resid_post` are the
    /// same. `None` if they were not captured, or the name is unknown.
    pub fn get(&self, name: &str) -> Option<&Array> {
        let (site, layer) = parse_site(name).ok()?;
        if site.per_layer() && layer.is_none() {
            return None;
        }
        let place = (site, layer.unwrap_or(0));
        let index = self.places.iter().position(|other| *other == place)?;
        self.arrays.get(index)
    }

    /// Names and arrays.
    pub fn iter(&self) -> impl Iterator<Item = (String, &Array)> {
        self.names().zip(&self.arrays)
    }

    /// Names and arrays, by value.
    pub fn into_arrays(self) -> impl Iterator<Item = (String, Array)> {
        let name = |(site, layer): (Site, usize)| site.name_at(layer);
        self.places.into_iter().map(name).zip(self.arrays)
    }

    /// The names: `resid_post.3`, `embed`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.places.iter().map(|(site, layer)| site.name_at(*layer))
    }

    /// The number of arrays.
    pub fn len(&self) -> usize {
        self.arrays.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.arrays.is_empty()
    }
}

impl std::ops::Index<&str> for Cache {
    type Output = Array;

    /// # Panics
    /// If [`Cache::get`] returns `None` for this name.
    fn index(&self, name: &str) -> &Array {
        match self.get(name) {
            Some(array) => array,
            None => panic!("`{name}` was not captured"),
        }
    }
}
