//! Remarks as Python sees them.

use fathom_lm::Remark;
use fathom_lm::fathom_model::About;

/// Kind, about (`input` or `advice`), file, line, text, number of lines it is about, and the whole
/// sentence.
pub type PyRemark = (String, &'static str, Option<String>, Option<usize>, String, usize, String);

pub fn to_python(remarks: &[Remark]) -> Vec<PyRemark> {
    let remark = |remark: &Remark| {
        let about = match remark.about {
            About::Input => "input",
            About::Advice => "advice",
        };
        let file = remark.file.as_ref().map(|file| file.display().to_string());
        let (kind, text) = (remark.kind.to_string(), remark.text.clone());
        (kind, about, file, remark.line, text, remark.count, remark.to_string())
    };
    remarks.iter().map(remark).collect()
}
