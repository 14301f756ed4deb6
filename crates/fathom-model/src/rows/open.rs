//! Opens a data file. Its format is detected from its first bytes, not from its name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use encoding_rs_io::DecodeReaderBytesBuilder;

use super::STDIN;
use super::array::Elements;
use super::parquet::ParquetRows;
use super::text::Lines;
use crate::file_check::check_file;
use crate::{Error, Result};

/// Number of bytes read to detect the format.
const HEAD: u64 = 64;
/// Decompressed bytes allowed for every file, regardless of its compression ratio.
const FREE_BYTES: u64 = 256 << 20;
/// Further decompressed bytes allowed per compressed byte. JSONL compresses about 10 times and
/// repetitive JSONL 50 times; a gzip bomb reaches 1000 times, and a zstd bomb much more.
const MAX_RATIO: u64 = 400;

/// Unsupported formats: their first bytes, and what the user can do.
const OTHERS: [(&[u8], &str); 5] = [
    (PARQUET, "is Parquet, which cannot be read from a pipe; name the file"),
    (b"BZh", "is bzip2-compressed; decompress it first (`bunzip2`)"),
    (b"\xfd7zXZ\0", "is xz-compressed; decompress it first (`unxz`)"),
    (b"PK\x03\x04", "is a zip archive; unpack it first (`unzip`)"),
    (b"ARROW1", "is an Arrow file; write it as Parquet or JSONL first"),
];

/// Magic bytes of Parquet. Its metadata is at the end of the file, so it cannot be read from a
/// pipe.
const PARQUET: &[u8] = b"PAR1";

/// The rows of one open file.
pub(super) enum Reader {
    Lines(Lines),
    Elements(Elements),
    Parquet(Box<ParquetRows>),
}

/// Raw or decompressed bytes of a file.
type Bytes = Box<dyn Read + Send>;
/// The decompressed file, with UTF-16 converted to UTF-8.
pub(super) type Text = BufReader<Bytes>;

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Reader> {
        if path.as_os_str() == STDIN {
            return Reader::from_stream(path, Box::new(io::stdin()));
        }
        check_file(path)?;
        let mut file = File::open(path).map_err(Error::io(path, "cannot be opened"))?;
        let metadata = file.metadata().map_err(Error::io(path, "cannot be read"))?;
        if metadata.is_dir() {
            return Err(Error::file(path, "is a directory, not a file"));
        }
        if metadata.is_file() {
            let mut head = Vec::new();
            let read = (&file).take(HEAD).read_to_end(&mut head).and_then(|_| file.rewind());
            read.map_err(Error::io(path, "cannot be read"))?;
            if head.starts_with(PARQUET) {
                return Ok(Reader::Parquet(Box::new(ParquetRows::open(path, file)?)));
            }
        }
        Reader::from_stream(path, Box::new(file))
    }

    /// Opens a stream, which cannot be rewound.
    fn from_stream(path: &Path, mut bytes: Bytes) -> Result<Reader> {
        let mut head = Vec::new();
        let read = (&mut bytes).take(HEAD).read_to_end(&mut head);
        read.map_err(Error::io(path, "cannot be read"))?;
        if let Some((_, problem)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(Error::file(path, *problem));
        }
        let kind = head.get(..4).unwrap_or_default().to_vec();
        let bytes: Bytes = Box::new(Cursor::new(head).chain(bytes));
        let plain = match &kind[..] {
            [0x1f, 0x8b, ..] => Ok(bounded(bytes, flate2::read::MultiGzDecoder::new)),
            [0x28, 0xb5, 0x2f, 0xfd] => zstd(bytes),
            _ => Ok(bytes),
        };
        let plain = plain.map_err(Error::io(path, "cannot be read"))?;
        let text = DecodeReaderBytesBuilder::new().utf8_passthru(true).build(plain);
        let mut text: Text = BufReader::new(Box::new(text));
        let array = begins_with_bracket(&mut text).map_err(Error::io(path, "cannot be read"))?;
        Ok(match array {
            true => Reader::Elements(Elements::new(path, text)),
            false => Reader::Lines(Lines::new(path, text)),
        })
    }

    pub(super) fn next_row(&mut self) -> Result<Option<(usize, String)>> {
        match self {
            Reader::Lines(lines) => lines.next_line(),
            Reader::Elements(elements) => elements.next_element(),
            Reader::Parquet(rows) => rows.next_row(),
        }
    }
}

/// Whether the first character of a text other than white space is `[`, so that it is an array.
fn begins_with_bracket(text: &mut Text) -> io::Result<bool> {
    // One buffer is enough: no real file begins with more white space than that.
    let buffer = text.fill_buf()?;
    let first = buffer.iter().find(|byte| !byte.is_ascii_whitespace());
    let first = match buffer.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) => rest.iter().find(|byte| !byte.is_ascii_whitespace()),
        None => first,
    };
    Ok(first == Some(&b'['))
}

fn zstd(bytes: Bytes) -> io::Result<Bytes> {
    // log2 of the largest window that `zstd -d` accepts, 128 MiB. The decoder allocates the window
    // size that a frame requests.
    const WINDOW_LOG: u32 = 27;
    let (counted, compressed) = Counted::new(bytes);
    let mut decoder = zstd::stream::read::Decoder::new(counted)?;
    decoder.window_log_max(WINDOW_LOG)?;
    Ok(Box::new(Bounded { bytes: decoder, compressed, produced: 0 }))
}

fn bounded<R: Read + Send + 'static>(bytes: Bytes, decoder: impl FnOnce(Counted) -> R) -> Bytes {
    let (counted, compressed) = Counted::new(bytes);
    Box::new(Bounded { bytes: decoder(counted), compressed, produced: 0 })
}

/// Counts the bytes read.
struct Counted {
    bytes: Bytes,
    read: Arc<AtomicU64>,
}

impl Counted {
    fn new(bytes: Bytes) -> (Counted, Arc<AtomicU64>) {
        let read = Arc::new(AtomicU64::new(0));
        (Counted { bytes, read: Arc::clone(&read) }, read)
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// A decompressing reader that fails if the output exceeds `FREE_BYTES` plus `MAX_RATIO` times the
/// input.
struct Bounded<R> {
    bytes: R,
    compressed: Arc<AtomicU64>,
    produced: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        self.produced += read as u64;
        let compressed = self.compressed.load(Ordering::Relaxed);
        if self.produced > FREE_BYTES + MAX_RATIO.saturating_mul(compressed) {
            let message = format!("it decompresses to more than {MAX_RATIO} times its size");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(read)
    }
}
