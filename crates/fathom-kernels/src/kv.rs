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
                for (d, (&k, &v)) in k[columns.clone()].iter().zip(&v[columns]).enumerate() {
                    put(self.storage, key_panel, d, token % PANEL, k);
                    let value_panel = &mut values[d / PANEL * value_stride..][..value_stride];
                    put(self.storage, value_panel, token, d % PANEL, v);
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

/// Writes element `(k, lane)` of a panel.
fn put(storage: Storage, panel: &mut [u32], k: usize, lane: usize, x: f32) {
    match storage {
        Storage::F32 => panel[k * PANEL + lane] = x.to_bits(),
        Storage::Bf16 => {
            let word = &mut panel[k / 2 * PANEL + lane];
            *word = match k % 2 {
                0 => *word & 0xffff_0000 | bf16_bits(x),
                _ => *word & 0x0000_ffff | bf16_bits(x) << 16,
            };
        }
    }
}
