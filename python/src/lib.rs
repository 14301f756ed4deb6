//! The compiled half of the Python package `fathom_lm`: bindings of the library `fathom-lm`. The
//! package's public interface is `python/fathom_lm/`; the types of this module are in its
//! `_native.pyi`.

mod arrays;
mod config;
mod dlpack;
mod encode;
mod errors;
mod explain;
mod generate;
mod hooks;
mod model;
mod options;
mod progress;
mod remarks;
mod run;
mod sampling;
mod signals;
mod sites;
mod tables;
mod traces;

use std::ffi::OsString;

use fathom_lm::Analysis;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// Runs the command line `fathom`; `arguments` start with the program's name.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| fathom_lm::cli::run(arguments))
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    let analyses = PyTuple::new(module.py(), Analysis::ALL.map(Analysis::name))?;
    module.add("ANALYSES", analyses)?;
    let by_default = Analysis::by_default().into_iter().map(Analysis::name);
    module.add("DEFAULT_ANALYSES", PyTuple::new(module.py(), by_default.collect::<Vec<_>>())?)?;
    module.add_class::<model::NativeModel>()?;
    module.add_class::<traces::NativeTraces>()?;
    module.add_class::<run::NativeRun>()?;
    module.add_class::<tables::NativeTable>()?;
    module.add_class::<generate::NativeGenerator>()?;
    module.add_class::<generate::NativeTexts>()?;
    module.add_function(wrap_pyfunction!(tables::arrow_rows, module)?)?;
    module.add_function(wrap_pyfunction!(run::scan, module)?)?;
    module.add_function(wrap_pyfunction!(run::table, module)?)?;
    module.add_function(wrap_pyfunction!(run::report, module)?)?;
    module.add_function(wrap_pyfunction!(explain::explain, module)?)?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(sites::parse_site, module)?)?;
    module.add_function(wrap_pyfunction!(sites::site_names, module)?)?;
    module.add_function(wrap_pyfunction!(sites::lens_name, module)?)?;
    module.add_function(wrap_pyfunction!(dlpack::bf16_capsule, module)?)?;
    Ok(())
}
