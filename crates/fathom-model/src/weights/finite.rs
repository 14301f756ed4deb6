//! Finding NaN and infinity in stored weights.

use fathom_kernels::DType;

/// Index of the first element that is NaN or infinite.
pub(super) fn first_non_finite(bytes: &[u8], dtype: DType) -> Option<usize> {
    match dtype {
        DType::Bf16 => find(bytes, |element| u16::from_le_bytes(element) & 0x7F80 == 0x7F80),
        DType::F16 => find(bytes, |element| u16::from_le_bytes(element) & 0x7C00 == 0x7C00),
        DType::F32 => {
            find(bytes, |element| u32::from_le_bytes(element) & 0x7F80_0000 == 0x7F80_0000)
        }
    }
}

/// Whole blocks are tested without leaving early, which the compiler turns into vector code; only the
/// block that holds the culprit is searched.
fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 4096;
    let (elements, _) = bytes.as_chunks::<N>();
    let block = elements
        .chunks(BLOCK)
        .position(|block| block.iter().fold(false, |found, &element| found | bad(element)))?;
    let start = block * BLOCK;
    elements[start..].iter().position(|&element| bad(element)).map(|i| start + i)
}
