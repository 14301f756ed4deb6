//! What kind of file it is, by its bytes: a name can say anything.

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

/// Bytes looked at to tell what kind of file it is.
const HEAD: u64 = 64;
/// Decompressed bytes that are read of a file however small it is.
const FREE_BYTES: u64 = 256 << 20;
/// Decompressed bytes beyond that for each compressed one: JSONL shrinks to a tenth, repetitive
/// JSONL to a fiftieth; gzip can make a thousand of one, and zstd many more.
const MAX_RATIO: u64 = 400;

/// Files that cannot be read, by what they begin with, and what to do with them.
const OTHERS: [(&[u8], &str); 5] = [
    (PARQUET, "is Parquet, which cannot be read from a pipe; name the file"),
    (b"BZh", "is bzip2-compressed; decompress it first (`bunzip2`)"),
    (b"\xfd7zXZ\0", "is xz-compressed; decompress it first (`unxz`)"),
    (b"PK\x03\x04", "is a zip archive; unpack it first (`unzip`)"),
    (b"ARROW1", "is an Arrow file; write it as Parquet or JSONL first"),
];

/// How a Parquet file begins. It ends with its table of contents, so it cannot be read from a pipe.
const PARQUET: &[u8] = b"PAR1";

/// The rows of one open file.
pub(super) enum Reader {
    Lines(Lines),
    Elements(Elements),
    Parquet(Box<ParquetRows>),
}

/// Bytes as they come.
type Bytes = Box<dyn Read + Send>;
/// A file as UTF-8 text.
pub(super) type Text = BufReader<Bytes>;

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Reader> {
        if path.as_os_str() == STDIN {
            return Reader::of(path, Box::new(io::stdin()));
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
        Reader::of(path, Box::new(file))
    }

    /// Of bytes that are read once, from the first to the last.
    fn of(path: &Path, mut bytes: Bytes) -> Result<Reader> {
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

/// Whether the first thing in a text is a `[`: then it is one array. White space before it is
/// passed over.
fn begins_with_bracket(text: &mut Text) -> io::Result<bool> {
    // As much as one buffer holds is looked at; a file does not begin with more white space than
    // that.
    let buffer = text.fill_buf()?;
    let first = buffer.iter().find(|byte| !byte.is_ascii_whitespace());
    let first = match buffer.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) => rest.iter().find(|byte| !byte.is_ascii_whitespace()),
        None => first,
    };
    Ok(first == Some(&b'['))
}

fn zstd(bytes: Bytes) -> io::Result<Bytes> {
    // The largest window that `zstd -d` accepts, 128 MiB: what a frame asks for is allocated.
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

/// Counts what is read.
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

/// Refuses more than compressed text explains.
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
            let message = format!("more than {MAX_RATIO} bytes come out of each compressed one");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(read)
    }
}
