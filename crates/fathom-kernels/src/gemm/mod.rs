//! Building blocks of matrix products: layouts, packing, the micro-kernel.
//!
//! This module is single-threaded; `crate::linear` and `crate::attention` divide products among
//! threads.

mod layout;
mod microkernel;
mod pack;
pub(crate) mod product;
mod vector_products;

pub(crate) use layout::{CACHE_LINE, PANEL, ROW_STRIDE, ROW_WORDS, Storage, even_parts};
pub(crate) use pack::{Panels, bf16_bits, element, pack_row, pack_weights, store_packed};
pub(crate) use product::{Product, Tile, k_block};
pub(crate) use vector_products::{ForProduct, ProductKernel, is_pairs, product_name};
