//! How a checkpoint writes tensor names: wrappers (`torch.compile`, PEFT, data parallelism) put a
//! prefix in front of them, and exports of the model without its output head lack `model.`.

/// From HuggingFace's names to those of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// What all names begin with; not part of HuggingFace's.
    pub prefix: String,
    /// Whether names lack the `model.` in front.
    unprefixed: bool,
}

impl Naming {
    /// The naming of a checkpoint with these names.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Naming {
        let prefix = common_prefix(names.clone()).to_owned();
        let unprefixed = !names.clone().any(|name| name[prefix.len()..].starts_with("model."));
        Naming { prefix, unprefixed }
    }

    /// Names under which a checkpoint may hold the tensor of a HuggingFace name, the first that is
    /// there.
    pub(super) fn candidates(&self, name: &str) -> impl Iterator<Item = String> + use<'_> {
        let bare = name.strip_prefix("model.").filter(|_| self.unprefixed);
        let name = Some(format!("{}{name}", self.prefix));
        name.into_iter().chain(bare.map(|bare| format!("{}{bare}", self.prefix)))
    }
}

/// What all names begin with before HuggingFace's part; `""` if they share nothing.
fn common_prefix<'a>(names: impl Iterator<Item = &'a str> + Clone) -> &'a str {
    // Where HuggingFace's part begins is seen at the embedding, or else at a layer.
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

/// The name that most likely means the tensor `name`: the shortest one in which its parts occur in
/// their order, `model.` or not.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Longer names are not worth being told.
    const LONGEST: usize = 200;
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let holds = |other: &&str| {
        let mut parts = other.split('.');
        other.len() <= LONGEST && bare.split('.').all(|part| parts.any(|other| other == part))
    };
    names.filter(holds).min_by_key(|other| (other.len(), *other))
}
