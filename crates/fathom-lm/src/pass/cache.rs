//! What a pass showed.

use fathom_model::{Captured, Site};

use super::{Array, parse_place};

/// What a pass showed at the places that were named, in the order of the forward pass.
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

    /// What was captured under a name, as [`crate::Model::run_with_cache`] takes them, with a
    /// layer where the site has them: `resid_post.3` and `blocks.3.hook_resid_post` are the same.
    /// `None` where it was not asked for, or is no name.
    pub fn get(&self, name: &str) -> Option<&Array> {
        let (site, layer) = parse_place(name).ok()?;
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

    /// Names and arrays, to be kept elsewhere.
    pub fn into_arrays(self) -> impl Iterator<Item = (String, Array)> {
        let name = |(site, layer): (Site, usize)| site.name_at(layer);
        self.places.into_iter().map(name).zip(self.arrays)
    }

    /// The names: `resid_post.3`, `embed`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.places.iter().map(|(site, layer)| site.name_at(*layer))
    }

    /// How many arrays there are.
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
    /// [`Cache::get`] has nothing under this name.
    fn index(&self, name: &str) -> &Array {
        match self.get(name) {
            Some(array) => array,
            None => panic!("`{name}` was not captured"),
        }
    }
}
