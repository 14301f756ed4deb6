//! Names of models and adapters, as users write them.

use crate::Remark;
use crate::brief::brief;

/// What a model is called: by itself as it is, with an adapter `BASE + ADAPTER`, of which the last
/// part of its path is enough.
pub fn adapted_name(base: &str, adapter: Option<&str>) -> String {
    match adapter {
        None => base.to_owned(),
        Some(adapter) => format!("{base} + {}", last_part(adapter).unwrap_or(adapter)),
    }
}

/// A remark where an adapter was trained on a model called `trained`, and the one at hand is called
/// `name`: paths and organisations differ from place to place, so only the last parts are compared.
pub(super) fn other_base(trained: &str, name: &str) -> Option<Remark> {
    let model = name.split_once('@').map_or(name, |(model, _)| model);
    let (theirs, ours) = (last_part(trained)?, last_part(model)?);
    if theirs.eq_ignore_ascii_case(ours) {
        return None;
    }
    let text = format!(
        "the adapter was trained on `{}`, and is merged into `{}`; they fit in shape, but is it the \
         same model?",
        brief(trained),
        brief(name)
    );
    Some(Remark::advice("other-base", text))
}

/// The last part of a path or a hub id that says something.
fn last_part(path: &str) -> Option<&str> {
    let says = |part: &&str| !matches!(*part, "" | "." | "..");
    path.rsplit(['/', '\\']).find(says)
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
    fn another_base_is_told_by_its_last_part() {
        for (trained, name, told) in [
            ("org/Base-1B", "./models/base-1b/", false),
            ("/data/base", "org/base@main", false),
            ("org/base", "org/base-instruct", true),
            ("org/base", ".", false),
            ("", "org/base", false),
        ] {
            assert_eq!(other_base(trained, name).is_some(), told, "{trained} {name}");
        }
    }
}
