//! From Python's text, messages and ids to the library's input, and back.

use fathom_lm::fathom_model::parse_template_kwargs;
use fathom_lm::{Conversation, Encoded, Error, Input, Message, Result};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::arrays::ids_to_numpy;
use crate::remarks::{self, PyRemark};

/// Ids `int64[T]`, how many of them are the prompt, the text that was encoded, and remarks.
pub type PyEncoded<'py> = (Bound<'py, PyArray1<i64>>, usize, Option<String>, Vec<PyRemark>);

pub fn to_python(py: Python<'_>, encoded: Encoded) -> PyEncoded<'_> {
    let Encoded { ids, prompt_len, text, remarks } = encoded;
    (ids_to_numpy(py, &ids), prompt_len, text, remarks::to_python(&remarks))
}

/// A conversation from its messages and template variables, both JSON.
pub fn conversation(messages: &str, variables: Option<&str>) -> Result<Input> {
    let messages: Vec<Message> = serde_json::from_str(messages)
        .map_err(|error| Error::Request(format!("messages: {error}")))?;
    if messages.is_empty() {
        return Err(Error::Request("there are no messages; expected at least one".to_owned()));
    }
    let variables = variables.map(parse_template_kwargs).transpose()?.unwrap_or_default();
    Ok(Input::from(Conversation { messages, variables }))
}

/// Token ids in the library's type.
///
/// # Errors
/// A negative id, or one that does not fit 32 bits.
pub fn ids(ids: &PyReadonlyArray1<'_, i64>) -> Result<Vec<u32>> {
    let id = |(position, id): (usize, &i64)| {
        u32::try_from(*id).map_err(|_| {
            Error::Request(format!("token id {id} at position {position} is no token id"))
        })
    };
    ids.as_array().iter().enumerate().map(id).collect()
}
