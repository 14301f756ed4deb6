//! The requests: their fields as documented in `/openapi.json`, and how they are read.

pub mod chat;
pub mod choices;
pub mod completion;
pub mod fathom;
pub mod fields;
pub mod message;
pub mod response_format;
pub mod sampling;
pub mod tokens;
pub mod tools;

use crate::error::ApiError;
use crate::model::ServedModel;
use fields::Fields;

/// Reads `model`.
///
/// # Errors
/// Another model than the one served.
pub fn model(fields: &mut Fields, served: &ServedModel) -> Result<Option<String>, ApiError> {
    let asked = fields.string("model")?;
    match &asked {
        Some(name) if *name != served.name => {
            Err(ApiError::unknown_model(&fields::shortened(name), &served.name))
        }
        _ => Ok(asked),
    }
}
