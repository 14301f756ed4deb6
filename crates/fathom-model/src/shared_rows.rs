//! Keys and values that several sequences share: those of a common beginning.

use fathom_backend::{Backend, KeyMask};

use crate::{Sequence, SequenceOptions, Transformer};

/// The keys and values of the first tokens of a text, all layers.
pub struct SharedRows<B: Backend> {
    kv: B::Kv,
    len: usize,
    /// The rotary regime of the keys; see [`crate::RopeConfig::regime`].
    regime: u64,
}

impl<B: Backend> SharedRows<B> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<B: Backend> Transformer<B> {
    /// The rotary regime of the sequence's keys, or of its first ones if it has none yet. Only
    /// sequences of the same regime have the same keys for the same tokens.
    pub fn rotary_regime(&self, sequence: &Sequence<B>) -> u64 {
        match sequence.regime {
            Some(regime) if !sequence.is_empty() => regime,
            _ => self.regime_at(sequence, 0),
        }
    }

    /// The keys and values of the first `len` tokens of a sequence, which must not be longer than
    /// it. Both can be used independently of each other.
    pub fn share(&self, sequence: &Sequence<B>, len: usize) -> SharedRows<B> {
        let kv = self.backend.share_kv(&sequence.kv, len);
        SharedRows { kv, len, regime: self.rotary_regime(sequence) }
    }

    /// A sequence with the first `len` tokens of another, which must not be shorter. Both can be
    /// used independently of each other; whole blocks of keys and values are copied only when one
    /// of them writes there. `None` for a sequence that has more to accumulate than keys and values
    /// or hides keys.
    pub fn fork(&self, sequence: &Sequence<B>, len: usize) -> Option<Sequence<B>> {
        let options = SequenceOptions {
            planned_len: sequence.planned_len,
            layers: Some(sequence.layers),
            ..SequenceOptions::default()
        };
        let plain = sequence.column_sums.is_none() && sequence.key_mask == KeyMask::default();
        plain.then(|| Sequence {
            tokens: sequence.tokens[..len].to_vec(),
            kv: self.backend.share_kv(&sequence.kv, len),
            regime: sequence.regime,
            ..self.new_sequence(options)
        })
    }

    /// The first `len` of `rows`, which must not be fewer.
    pub fn beginning(&self, rows: &SharedRows<B>, len: usize) -> SharedRows<B> {
        let kv = self.backend.share_kv(&rows.kv, len);
        SharedRows { kv, len, regime: rows.regime }
    }

    /// Replaces the contents of a sequence by `tokens`, whose keys and values are in `rows`, as if
    /// it had computed them. Returns whether it did: not if the keys have another rotary regime
    /// than the sequence's would have, and not for a sequence that has more to accumulate than keys
    /// and values or hides keys.
    pub fn adopt(&self, sequence: &mut Sequence<B>, rows: &SharedRows<B>, tokens: &[u32]) -> bool {
        let SharedRows { kv, len, regime } = rows;
        let own_regime = self.regime_at(sequence, len.saturating_sub(1));
        let plain = sequence.column_sums.is_none()
            && sequence.key_mask == KeyMask::default()
            && sequence.layers == self.config.layers;
        if tokens.len() != *len || own_regime != *regime || !plain {
            return false;
        }
        sequence.kv = self.backend.share_kv(kv, *len);
        sequence.tokens.clear();
        sequence.tokens.extend_from_slice(tokens);
        sequence.regime = Some(*regime);
        sequence.reference_rows.truncate(0);
        true
    }
}
