//! Variants of tensor names: wrappers (`torch.compile`, PEFT, data parallelism) add a prefix, and
//! exports of a model without its output head lack the leading `model.`.

/// Maps HuggingFace's names to those of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// Additional prefix of all names, before HuggingFace's name; may be empty.
    pub prefix: String,
    /// Whether names lack the leading `model.`.
    unprefixed: bool,
}

impl Naming {
    /// The naming of a checkpoint with these names.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Naming {
        let prefix = common_prefix(names.clone()).to_owned();
        let unprefixed = !names.clone().any(|name| name[prefix.len()..].starts_with("model."));
        Naming { prefix, unprefixed }
    }

    /// The names that the tensor called `name` in HuggingFace may have in the checkpoint, in order
    /// of preference.
    pub(super) fn candidates(&self, name: &str) -> impl Iterator<Item = String> + use<'_> {
        let bare = name.strip_prefix("model.").filter(|_| self.unprefixed);
        let name = Some(format!("{}{name}", self.prefix));
        name.into_iter().chain(bare.map(|bare| format!("{}{bare}", self.prefix)))
    }
}

/// The additional prefix that all names have before HuggingFace's name; `""` if there is none.
fn common_prefix<'a>(names: impl Iterator<Item = &'a str> + Clone) -> &'a str {
    // The embedding, or else a layer, shows where HuggingFace's name begins.
    let before = |part: &str| {
        let found = names.clone().filter_map(|name| {
            let at = name.match_indices(part).map(|(at, _)| at);
            let at = at.into_iter().find(|&at| at == 0 || name.as_bytes()[at - 1] == b'.')?;
            Some(&name[..at])
        });
        found.min_by_key(|before| (before.len(), *before))
    };
    let Some(before) = before("embed_tokens.").or_else(|| before("layers.")) else { return "" };
    let prefix = before.strip_suffix("model.").unwrap_or(before);
    let prefix = if prefix.is_empty() || prefix.ends_with('.') { prefix } else { before };
    match names.clone().all(|name| name.starts_with(prefix)) {
        true => prefix,
        false => "",
    }
}

/// The most similar name to `name`: the shortest one that contains the dotted parts of `name`,
/// without a leading `model.`, in order.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Longer names are not useful in a message.
    const MAX_LEN: usize = 200;
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let holds = |other: &&str| {
        let mut parts = other.split('.');
        other.len() <= MAX_LEN && bare.split('.').all(|part| parts.any(|other| other == part))
    };
    names.filter(holds).min_by_key(|other| (other.len(), *other))
}
