//! Names of places in a pass.

use fathom_lm::Site;
use pyo3::prelude::*;

use crate::errors;

/// The site that a name means, and the layer if the name has one.
#[pyfunction]
pub fn parse_site(py: Python<'_>, name: &str) -> PyResult<(&'static str, Option<usize>)> {
    match fathom_lm::parse_site(name) {
        Ok((site, layer)) => Ok((site.name(), layer)),
        Err(error) => Err(errors::to_python(py, &error)),
    }
}

/// Every site in the order of the forward pass: its name, and whether every layer has one.
#[pyfunction]
pub fn site_names() -> Vec<(&'static str, bool)> {
    Site::all().map(|site| (site.name(), site.per_layer())).collect()
}

/// TransformerLens' name of a place, if it records the same tensor.
#[pyfunction]
pub fn lens_name(py: Python<'_>, site: &str, layer: usize) -> PyResult<Option<String>> {
    let (site, _) = Site::parse(site).map_err(|error| errors::to_python(py, &error))?;
    Ok(site.lens_name_at(layer))
}
