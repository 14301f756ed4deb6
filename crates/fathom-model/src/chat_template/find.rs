//! Finds the chat template among a checkpoint's files, like `AutoTokenizer.from_pretrained` of
//! transformers 5, with remarks about files whose template is not used. Templates with names other
//! than `default` and `tool_use` are ignored: transformers uses them only on request.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::special_tokens::read_json_object;
use crate::text_file::read_text_with_mark;
use crate::{Error, Remark, Result};

const JINJA: &str = "chat_template.jinja";
const ADDITIONAL: &str = "additional_chat_templates";
const CONFIG: &str = "tokenizer_config.json";
/// Read by the processors of multimodal models, not by tokenizers.
const PROCESSOR: &str = "chat_template.json";

/// The text of a template and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TemplateSource {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// The templates of a checkpoint; at least one of `default` and `tool_use` is set.
#[derive(Debug, Clone)]
pub(super) struct TemplateSources {
    /// Rendered when no tools are given, or when there is no `tool_use`.
    pub(super) default: Option<TemplateSource>,
    /// Rendered when tools are given.
    pub(super) tool_use: Option<TemplateSource>,
    pub(super) remarks: Vec<Remark>,
}

/// The templates of a directory.
pub(super) fn find(dir: &Path) -> Result<Option<TemplateSources>> {
    let mut named = from_files(dir)?;
    let config = from_config(dir)?;
    let mut remarks = Vec::new();
    let path = dir.join(CONFIG);
    if named.is_empty() {
        let Some(config) = config else { return Ok(None) };
        named = config;
        if let (1, Some((name, only))) = (named.len(), named.first_key_value())
            && !is_known(name)
        {
            let text = format!(
                "`chat_template` is a list of one template called `{name}`, which is used; \
                 transformers asks for one called `default`"
            );
            remarks.push(Remark::file("chat-template-name", &path, text));
            named = BTreeMap::from([("default".to_owned(), only.clone())]);
        }
    } else if let Some(config) = config
        && config.get("default").map(|source| &source.text)
            != named.get("default").map(|source| &source.text)
    {
        let winner = if named.contains_key("default") { JINJA } else { ADDITIONAL };
        let text = format!("`chat_template` is not read: {winner} exists and takes precedence");
        remarks.push(Remark::file("chat-template-unread", &path, text));
    }
    let tool_use = named.remove("tool_use");
    let sources = TemplateSources { default: named.remove("default"), tool_use, remarks };
    if sources.default.is_none() && sources.tool_use.is_none() {
        let names = named.into_keys().collect::<Vec<_>>().join("`, `");
        let problem = format!("holds templates called `{names}`, but none called `default`");
        return Err(Error::file(&dir.join(ADDITIONAL), problem));
    }
    checked(dir, sources).map(Some)
}

/// A remark about `chat_template.json`, if there is one.
pub(super) fn unread(dir: &Path) -> Vec<Remark> {
    let path = dir.join(PROCESSOR);
    if !path.is_file() {
        return Vec::new();
    }
    let text = format!(
        "is not read, as in transformers: a tokenizer's template is {JINJA} (or `chat_template` of \
         {CONFIG}); copy the template into {JINJA} to use it"
    );
    vec![Remark::file("chat-template-unread", &path, text)]
}

/// Rejects empty templates, and adds remarks about a byte order mark and `chat_template.json`.
fn checked(dir: &Path, mut sources: TemplateSources) -> Result<TemplateSources> {
    for source in [&sources.default, &sources.tool_use].into_iter().flatten() {
        if source.text.trim().is_empty() {
            let problem = "holds an empty chat template, which would render an empty prompt; \
                           remove it to use prompts as bare text";
            return Err(Error::file(&source.path, problem));
        }
        if source.text.starts_with('\u{feff}') {
            let text = "begins with a byte order mark, which is kept as text, as in transformers: \
                        every prompt begins with it";
            sources.remarks.push(Remark::file("byte-order-mark", &source.path, text));
        }
    }
    let same = |object: serde_json::Map<String, Value>| {
        let default = sources.default.as_ref().map(|source| source.text.as_str());
        default.is_some() && object.get("chat_template").and_then(Value::as_str) == default
    };
    // Errors in chat_template.json do not matter: it is not used.
    if !read_json_object(&dir.join(PROCESSOR)).ok().flatten().is_some_and(same) {
        sources.remarks.extend(unread(dir));
    }
    Ok(sources)
}

/// `chat_template.jinja` as `default`, and the files of `additional_chat_templates` by name.
fn from_files(dir: &Path) -> Result<BTreeMap<String, TemplateSource>> {
    let mut named = BTreeMap::new();
    let path = dir.join(JINJA);
    if let Some(text) = read_text_with_mark(&path)? {
        named.insert("default".to_owned(), TemplateSource { path, text });
    }
    let folder = dir.join(ADDITIONAL);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(named);
        }
        Err(error) => return Err(Error::io(&folder, "cannot be read")(error)),
    };
    for entry in entries {
        let path = entry.map_err(Error::io(&folder, "cannot be read"))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.strip_suffix(".jinja")).map(str::to_owned)
        else {
            continue;
        };
        if let Some(text) = read_text_with_mark(&path)? {
            named.insert(name, TemplateSource { path, text });
        }
    }
    Ok(named)
}

/// `chat_template` of `tokenizer_config.json`: a string, a list of `name` and `template`, or an
/// object.
fn from_config(dir: &Path) -> Result<Option<BTreeMap<String, TemplateSource>>> {
    let path = dir.join(CONFIG);
    let Some(object) = read_json_object(&path)? else { return Ok(None) };
    let wrong = |problem: &str| Error::field(&path, "chat_template", problem);
    let entries: Option<Vec<(&str, &str)>> = match object.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => Some(vec![("default", text)]),
        Some(Value::Array(list)) => list.iter().map(named_template).collect(),
        Some(Value::Object(map)) => {
            map.iter().map(|(name, text)| Some((name.as_str(), text.as_str()?))).collect()
        }
        Some(_) => return Err(wrong("must be a string or a list of `name` and `template`")),
    };
    let entries = entries.ok_or_else(|| {
        wrong("must have a `name` and a `template`, both strings, in each of its entries")
    })?;
    let named: BTreeMap<String, TemplateSource> = entries
        .into_iter()
        .map(|(name, text)| {
            (name.to_owned(), TemplateSource { path: path.clone(), text: text.to_owned() })
        })
        .collect();
    if named.len() != 1 && !named.keys().any(|name| is_known(name)) {
        return Err(wrong(
            "must be a list with a `{\"name\": \"default\", \"template\": ...}` or with a single \
             template",
        ));
    }
    Ok(Some(named))
}

fn named_template(entry: &Value) -> Option<(&str, &str)> {
    Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?))
}

fn is_known(name: &str) -> bool {
    matches!(name, "default" | "tool_use")
}
