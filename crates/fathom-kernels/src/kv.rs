//! Keys and values of one sequence, in pages.
//!
//! A page holds [`BLOCK`] consecutive tokens of all layers and heads, each (layer, head) as two packed
//! matrices, so that attention is made of the same products as a linear:
//! - keys `[BLOCK keys, head_dim]`: scores are `q · Kᵀ`, a column for every key;
//! - values `[head_dim, BLOCK keys]`, k being the key: the result is `p · V`, a column for every
//!   component.

use crate::aligned::Aligned;
use crate::microkernel::PANEL;
use crate::pack::{Storage, bf16_bits};
use crate::{KvShape, Precision};

/// Tokens of a page, and keys of a block of attention: blocks lie at multiples of it from position 0,
/// whatever the chunk, so that a row's online softmax takes the same steps in any chunking.
pub(crate) const BLOCK: usize = 128;

/// Keys and values of one sequence, all layers.
pub struct Kv {
    shape: KvShape,
    pub(crate) storage: Storage,
    pages: Vec<Aligned<u32>>,
    len: usize,
}

impl Kv {
    pub(crate) fn new(shape: KvShape, precision: Precision) -> Kv {
        Kv { shape, storage: Storage::of_cache(precision), pages: Vec::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pages.iter().map(|page| size_of_val(&**page)).sum()
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "truncate a cache of {} tokens to {len}", self.len);
        self.len = len;
        self.pages.truncate(len.div_ceil(BLOCK));
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        assert!(self.len <= self.pages.len() * BLOCK, "advance beyond what was appended");
    }

    /// Writes keys and values `[n, kv_heads · head_dim]` at positions `len .. len + n` of a layer.
    pub(crate) fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let KvShape { layers, kv_heads, head_dim } = self.shape;
        assert!(layer < layers, "layer {layer} of {layers}");
        assert_eq!(k.len(), v.len(), "as many keys as values");
        let width = kv_heads * head_dim;
        let tokens = k.len() / width;
        assert_eq!(tokens * width, k.len(), "rows of {kv_heads} heads of {head_dim}");
        let page_words = layers * kv_heads * (self.keys_words() + self.values_words());
        while self.pages.len() * BLOCK < self.len + tokens {
            self.pages.push(Aligned::zeroed(page_words));
        }
        for (i, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
            let (page, token) = ((self.len + i) / BLOCK, (self.len + i) % BLOCK);
            for head in 0..kv_heads {
                let columns = head * head_dim..(head + 1) * head_dim;
                let at = self.at(layer, head);
                let (keys_words, values_words) = (self.keys_words(), self.values_words());
                let (key_stride, value_stride) = (self.keys_stride(), self.values_stride());
                let words = &mut self.pages[page][at..][..keys_words + values_words];
                let (keys, values) = words.split_at_mut(keys_words);
                let key_panel = &mut keys[token / PANEL * key_stride..][..key_stride];
                put_key(self.storage, key_panel, token % PANEL, &k[columns.clone()]);
                let value_panels = values.chunks_exact_mut(value_stride);
                for (panel, v) in value_panels.zip(v[columns].chunks(PANEL)) {
                    put_values(self.storage, panel, token, v);
                }
            }
        }
    }

    /// Keys of block `block`: `[BLOCK / 32]` panels of [`Kv::keys_stride`] words.
    pub(crate) fn keys(&self, layer: usize, head: usize, block: usize) -> &[u32] {
        &self.pages[block][self.at(layer, head)..][..self.keys_words()]
    }

    /// Values of block `block`: `[head_dim / 32]` panels of [`Kv::values_stride`] words.
    pub(crate) fn values(&self, layer: usize, head: usize, block: usize) -> &[u32] {
        &self.pages[block][self.at(layer, head) + self.keys_words()..][..self.values_words()]
    }

    /// Words from any key or value of block `block` to the one in its place in the next block, wherever
    /// that lies; 0 if there is none.
    #[inline(always)]
    pub(crate) fn words_to_next_block(&self, block: usize) -> usize {
        let start = |page: &Aligned<u32>| page.as_ptr().addr();
        let next = self.pages.get(block + 1).map(start);
        next.map_or(0, |next| next.wrapping_sub(start(&self.pages[block])) / size_of::<u32>())
    }

    /// Words of a panel of keys.
    pub(crate) fn keys_stride(&self) -> usize {
        self.storage.steps(self.shape.head_dim) * PANEL
    }

    /// Words of a panel of values.
    pub(crate) fn values_stride(&self) -> usize {
        self.storage.steps(BLOCK) * PANEL
    }

    fn keys_words(&self) -> usize {
        BLOCK / PANEL * self.keys_stride()
    }

    fn values_words(&self) -> usize {
        self.shape.head_dim.div_ceil(PANEL) * self.values_stride()
    }

    fn at(&self, layer: usize, head: usize) -> usize {
        (layer * self.shape.kv_heads + head) * (self.keys_words() + self.values_words())
    }
}

/// Writes a key as a column of its panel.
fn put_key(storage: Storage, panel: &mut [u32], lane: usize, key: &[f32]) {
    let words = panel[lane..].iter_mut().step_by(PANEL);
    match storage {
        Storage::F32 => words.zip(key).for_each(|(word, k)| *word = k.to_bits()),
        Storage::Bf16 => {
            // Rounded some at a time, in vectors, before each goes to its place.
            const AT_ONCE: usize = 32;
            let mut words = words;
            for key in key.chunks(AT_ONCE) {
                let mut bits = [0; AT_ONCE];
                bits.iter_mut().zip(key).for_each(|(bits, &k)| *bits = bf16_bits(k));
                let pairs = bits.chunks_exact(2).take(key.len().div_ceil(2));
                // Pairs first: a zip takes from its first even if the second is at its end.
                pairs.zip(&mut words).for_each(|(pair, word)| *word = pair[0] | pair[1] << 16);
            }
        }
    }
}

/// Writes some components of token `token`'s value: part of a step of their panel. What the step holds of a
/// later token is of no further use.
fn put_values(storage: Storage, panel: &mut [u32], token: usize, values: &[f32]) {
    let words = panel[token / storage.k_per_word() * PANEL..].iter_mut().zip(values);
    match (storage, token % storage.k_per_word()) {
        (Storage::F32, _) => words.for_each(|(word, v)| *word = v.to_bits()),
        (Storage::Bf16, 0) => words.for_each(|(word, &v)| *word = bf16_bits(v)),
        (Storage::Bf16, _) => {
            words.for_each(|(word, &v)| *word = *word & 0x0000_ffff | bf16_bits(v) << 16);
        }
    }
}
