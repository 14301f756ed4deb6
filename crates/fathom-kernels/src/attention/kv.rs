//! The paged KV cache of one sequence.
//!
//! A page holds [`BLOCK`] consecutive tokens of all layers and heads. Each (layer, head) is stored
//! as two packed matrices, so that attention can use the micro-kernel of linear layers:
//! - Keys `[BLOCK keys, head_dim]`: scores are `q · Kᵀ`, one column per key.
//! - Values `[head_dim, BLOCK keys]`, with the key as k: the result is `p · V`, one column per
//!   component.

use std::ops::Range;
use std::sync::Arc;

use fathom_backend::{KvShape, Precision, Result};

use crate::gemm::{PANEL, Storage, bf16_bits};
use crate::memory::{Aligned, Rows};

/// Tokens per page, and keys per attention block. Blocks begin at multiples of it from position 0
/// for any chunk, so that a row's online softmax takes the same steps in any chunking.
pub(crate) const BLOCK: usize = 128;

/// The KV cache of one sequence, all layers.
pub struct Kv {
    layout: Layout,
    /// A page that another cache shares is copied before this one writes to it.
    pages: Vec<Arc<Aligned<u32>>>,
    len: usize,
}

impl Kv {
    pub(crate) fn new(shape: KvShape, precision: Precision) -> Kv {
        let layout = Layout { shape, storage: Storage::of_cache(precision) };
        Kv { layout, pages: Vec::new(), len: 0 }
    }

    pub(super) fn storage(&self) -> Storage {
        self.layout.storage
    }

    /// Elements of a token's keys, or values, per layer: `kv_heads · head_dim`.
    pub(super) fn width(&self) -> usize {
        self.layout.shape.kv_heads * self.layout.shape.head_dim
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pages.iter().map(|page| size_of_val(&***page)).sum()
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "truncate a cache of {} tokens to {len}", self.len);
        self.len = len;
        self.pages.truncate(len.div_ceil(BLOCK));
    }

    /// A cache with the first `len` tokens of this one, in the same pages.
    pub(crate) fn share(&self, len: usize) -> Kv {
        assert!(len <= self.len, "share {len} tokens of a cache of {}", self.len);
        Kv { layout: self.layout, pages: self.pages[..len.div_ceil(BLOCK)].to_vec(), len }
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        assert!(self.len <= self.pages.len() * BLOCK, "advance beyond what was appended");
    }

    /// Allocates pages for the batch rows `rows` and returns their slots, page by page, so that
    /// several threads can write them: touching fresh memory takes longer than filling it.
    ///
    /// # Errors
    /// A page could not be allocated.
    pub(super) fn append_slots(&mut self, rows: Range<usize>) -> Result<Vec<PageSlots<'_>>> {
        let (layout, start, end) = (self.layout, self.len, self.len + rows.len());
        while self.pages.len() * BLOCK < end {
            self.pages.push(Arc::new(layout.new_page()?));
        }
        let pages = start / BLOCK..end.div_ceil(BLOCK);
        let slots = self.pages[pages.clone()].iter_mut().zip(pages).map(|(page, i)| {
            let tokens = start.max(i * BLOCK)..end.min((i + 1) * BLOCK);
            let rows = rows.start + (tokens.start - start)..rows.start + (tokens.end - start);
            let (page, first_token) = (layout.own(page)?, tokens.start % BLOCK);
            Ok(PageSlots { layout, page, first_token, rows })
        });
        slots.collect()
    }

    /// Keys of block `block`: `[BLOCK / 32]` panels of [`Kv::keys_stride`] words.
    pub(super) fn keys(&self, layer: usize, head: usize, block: usize) -> &[u32] {
        &self.pages[block][self.layout.at(layer, head)..][..self.layout.keys_words()]
    }

    /// Values of block `block`: `[head_dim / 32]` panels of [`Kv::values_stride`] words.
    pub(super) fn values(&self, layer: usize, head: usize, block: usize) -> &[u32] {
        let at = self.layout.at(layer, head) + self.layout.keys_words();
        &self.pages[block][at..][..self.layout.values_words()]
    }

    /// Distance in words (wrapping) from block `block` to the same place in the next block; 0 if
    /// there is none.
    #[inline(always)]
    pub(super) fn words_to_next_block(&self, block: usize) -> usize {
        let start = |page: &Arc<Aligned<u32>>| page.as_ptr().addr();
        let next = self.pages.get(block + 1).map(start);
        next.map_or(0, |next| next.wrapping_sub(start(&self.pages[block])) / size_of::<u32>())
    }

    /// Words of a panel of keys.
    pub(super) fn keys_stride(&self) -> usize {
        self.layout.keys_stride()
    }

    /// Words of a panel of values.
    pub(super) fn values_stride(&self) -> usize {
        self.layout.values_stride()
    }
}

/// The layout of a page.
#[derive(Clone, Copy)]
struct Layout {
    shape: KvShape,
    storage: Storage,
}

impl Layout {
    fn new_page(self) -> Result<Aligned<u32>> {
        Aligned::try_zeroed(self.page_words(), "keys and values")
    }

    /// A page to write to: a copy if others share it.
    fn own(self, page: &mut Arc<Aligned<u32>>) -> Result<&mut [u32]> {
        if Arc::get_mut(page).is_none() {
            let mut copy = self.new_page()?;
            copy.copy_from_slice(page);
            *page = Arc::new(copy);
        }
        let Some(page) = Arc::get_mut(page) else { unreachable!("this cache alone has the copy") };
        Ok(page)
    }

    fn page_words(self) -> usize {
        self.shape.layers * self.shape.kv_heads * (self.keys_words() + self.values_words())
    }

    fn at(self, layer: usize, head: usize) -> usize {
        (layer * self.shape.kv_heads + head) * (self.keys_words() + self.values_words())
    }

    fn keys_stride(self) -> usize {
        self.storage.steps(self.shape.head_dim) * PANEL
    }

    fn values_stride(self) -> usize {
        self.storage.steps(BLOCK) * PANEL
    }

    fn keys_words(self) -> usize {
        BLOCK / PANEL * self.keys_stride()
    }

    fn values_words(self) -> usize {
        self.shape.head_dim.div_ceil(PANEL) * self.values_stride()
    }
}

/// The slots of one page that a batch appends to.
pub(super) struct PageSlots<'a> {
    layout: Layout,
    page: &'a mut [u32],
    /// Index of the first token in the page.
    first_token: usize,
    /// The tokens' rows of the batch.
    rows: Range<usize>,
}

impl PageSlots<'_> {
    /// Writes a layer's keys and values, each `[batch rows, kv_heads · head_dim]`.
    pub(super) fn write(&mut self, layer: usize, k: &Rows, v: &Rows) {
        let KvShape { layers, head_dim, .. } = self.layout.shape;
        assert!(layer < layers, "layer {layer} of {layers}");
        let (storage, keys_words) = (self.layout.storage, self.layout.keys_words());
        let (key_stride, value_stride) = (self.layout.keys_stride(), self.layout.values_stride());
        for (token, row) in (self.first_token..).zip(self.rows.clone()) {
            let heads = k.row(row).chunks_exact(head_dim).zip(v.row(row).chunks_exact(head_dim));
            for (head, (k, v)) in heads.enumerate() {
                let words = &mut self.page[self.layout.at(layer, head)..];
                let (keys, values) = words.split_at_mut(keys_words);
                let key_panel = &mut keys[token / PANEL * key_stride..][..key_stride];
                put_key(storage, key_panel, token % PANEL, k);
                let value_panels = values.chunks_exact_mut(value_stride);
                for (panel, v) in value_panels.zip(v.chunks(PANEL)) {
                    put_values(storage, panel, token, v);
                }
            }
        }
    }
}

/// Writes a key as a column of its panel.
fn put_key(storage: Storage, panel: &mut [u32], lane: usize, key: &[f32]) {
    let words = panel[lane..].iter_mut().step_by(PANEL);
    match storage {
        Storage::F32 => words.zip(key).for_each(|(word, k)| *word = k.to_bits()),
        Storage::Bf16 => {
            // Round a chunk at a time, which vectorizes, before the scattered writes.
            const AT_ONCE: usize = 32;
            let mut words = words;
            for key in key.chunks(AT_ONCE) {
                let mut bits = [0; AT_ONCE];
                bits.iter_mut().zip(key).for_each(|(bits, &k)| *bits = bf16_bits(k));
                let pairs = bits.chunks_exact(2).take(key.len().div_ceil(2));
                // `pairs` must come first: `zip` advances its first iterator before it finds that
                // the second has ended, so `words` would lose a word.
                pairs.zip(&mut words).for_each(|(pair, word)| *word = pair[0] | pair[1] << 16);
            }
        }
    }
}

/// Writes components of token `token`'s value into their panel. In bfloat16 the first token of a
/// pair clears the second's half of the word, which a later token overwrites.
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
