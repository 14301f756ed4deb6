//! The formats in which models write calls of tools.

use fathom_model::ChatTemplate;

/// The format in which a model writes calls, known from its chat template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM3.
    Hermes,
    /// `[TOOL_CALLS]` and a list of `{"name": …, "arguments": …}`: Mistral.
    Mistral,
    /// The whole text is `{"name": …, "parameters": …}`: Llama 3.
    Llama,
}

impl ToolFormat {
    /// The format of the model of `template`. `None` if it is not a known one.
    pub fn of(template: &ChatTemplate) -> Option<ToolFormat> {
        // Qwen3-Coder writes XML between the same tags.
        if template.contains("<tool_call>") {
            return (!template.contains("<function=")).then_some(ToolFormat::Hermes);
        }
        if template.contains("[TOOL_CALLS]") {
            return Some(ToolFormat::Mistral);
        }
        let llama = template.contains("<|start_header_id|>") && template.contains("\"parameters\"");
        llama.then_some(ToolFormat::Llama)
    }
}
