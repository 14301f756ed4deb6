//! Names of models and adapters, as users write them.

use crate::Remark;
use crate::sanitize::sanitize;

/// The display name of a model: `BASE`, or `BASE + ADAPTER` with the last part of the adapter's
/// path.
pub fn adapted_name(base: &str, adapter: Option<&str>) -> String {
    match adapter {
        None => base.to_owned(),
        Some(adapter) => format!("{base} + {}", last_part(adapter).unwrap_or(adapter)),
    }
}

/// A remark if an adapter was trained on a model called `trained` and is merged into one called
/// `name`. Only the last parts of the names are compared, because paths and organisations vary.
pub(super) fn other_base(trained: &str, name: &str) -> Option<Remark> {
    let model = name.split_once('@').map_or(name, |(model, _)| model);
    let (theirs, ours) = (last_part(trained)?, last_part(model)?);
    if theirs.eq_ignore_ascii_case(ours) {
        return None;
    }
    let text = format!(
        "the adapter was trained on `{}`, and is merged into `{}`; the shapes match, but is it the \
         same model?",
        sanitize(trained),
        sanitize(name)
    );
    Some(Remark::advice("other-base", text))
}

/// The last part of a path or a hub id that is a name.
fn last_part(path: &str) -> Option<&str> {
    let is_name = |part: &&str| !matches!(*part, "" | "." | "..");
    path.rsplit(['/', '\\']).find(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_with_adapters_have_short_names() {
        for (adapter, name) in [
            (None, "org/base"),
            (Some("runs/checkpoint-500/"), "org/base + checkpoint-500"),
            (Some("./a/."), "org/base + a"),
            (Some("org/lora@main"), "org/base + lora@main"),
            (Some(".."), "org/base + .."),
        ] {
            assert_eq!(adapted_name("org/base", adapter), name);
        }
    }

    #[test]
    fn another_base_is_recognized_by_its_last_part() {
        for (trained, name, differs) in [
            ("org/Base-1B", "./models/base-1b/", false),
            ("/data/base", "org/base@main", false),
            ("org/base", "org/base-instruct", true),
            ("org/base", ".", false),
            ("", "org/base", false),
        ] {
            assert_eq!(other_base(trained, name).is_some(), differs, "{trained} {name}");
        }
    }
}
