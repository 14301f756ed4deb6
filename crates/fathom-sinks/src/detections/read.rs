//! Parsing of detections files, which are untrusted input.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use fathom_model::{Error, Result};
use serde_json::{Map, Value};

use super::TraceDetection;
use crate::{Class, Clip, Measures, Phase, Sink};

/// Maximum line length: 64 MiB, enough for hundreds of thousands of sinks. Checked while reading.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Reads a detections file, published or Fathom's own.
///
/// # Errors
/// The file cannot be read or is empty, or a line is malformed; the error names the line.
pub fn read_detections(path: &Path) -> Result<Vec<TraceDetection>> {
    let file = File::open(path).map_err(Error::io(path, "cannot be opened"))?;
    let mut reader = BufReader::new(file);
    let mut traces = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let mut limited = (&mut reader).take(MAX_LINE_BYTES + 1);
        let read = limited.read_until(b'\n', &mut bytes);
        if read.map_err(Error::io(path, "cannot be read"))? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            let problem = format!("is longer than {} MiB", MAX_LINE_BYTES >> 20);
            return Err(Error::line(path, line, problem));
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| Error::line(path, line, "is not UTF-8 text"))?;
        if !text.trim().is_empty() {
            traces.push(TraceDetection::parse(path, line, text)?);
        }
    }
    if traces.is_empty() {
        return Err(Error::file(path, "holds no detections"));
    }
    Ok(traces)
}

impl TraceDetection {
    /// Parses one line.
    ///
    /// # Errors
    /// The line is malformed; the error names file, line and field.
    pub fn parse(path: &Path, line: usize, text: &str) -> Result<TraceDetection> {
        let fail = |problem: String| Error::line(path, line, problem);
        let value: Value = serde_json::from_str(text)
            .map_err(|error| fail(format!("is not valid JSON (column {})", error.column())))?;
        let Value::Object(object) = value else {
            return Err(fail("must be a JSON object, `{...}`".to_owned()));
        };
        detection(&object).map_err(fail)
    }
}

/// A problem, phrased to follow "line 3: ".
type Problem = String;

fn detection(object: &Map<String, Value>) -> Result<TraceDetection, Problem> {
    let count = |field: &str| -> Result<usize, Problem> {
        let value = object.get(field).ok_or_else(|| format!("`{field}` is missing"))?;
        whole(value).ok_or_else(|| format!("`{field}` must be a whole number ≥ 0"))
    };
    let (prompt_len, response_len) = (count("prompt_len")?, count("response_len")?);
    let full_text_len = count("full_text_len")?;
    let sinks = match object.get("candidate_sinks") {
        Some(Value::Object(sinks)) => sinks,
        Some(_) => return Err("`candidate_sinks` must be an object keyed by position".to_owned()),
        None => return Err("`candidate_sinks` is missing".to_owned()),
    };
    let sinks = sinks_by_position(sinks, full_text_len)?;
    let other_phases = match optional(object, "phases") {
        None => Vec::new(),
        Some(Value::Array(phases)) => phases
            .iter()
            .map(|value| phase(value, full_text_len))
            .collect::<Result<_, _>>()
            .map_err(|problem| format!("`phases` cannot be read: {problem}"))?,
        Some(_) => return Err("`phases` must be a list".to_owned()),
    };

    let scan = object.get("fathom").filter(|value| !value.is_null());
    let scan = scan.map(|value| serde_json::from_value(value.clone()));
    Ok(TraceDetection {
        sample_index: count("sample_index")? as u64,
        prompt_len,
        response_len,
        full_text_len,
        sinks,
        other_phases,
        scan: scan.transpose().map_err(|error| format!("`fathom` cannot be read: {error}"))?,
    })
}

fn sinks_by_position(
    sinks: &Map<String, Value>,
    full_text_len: usize,
) -> Result<Vec<Sink>, Problem> {
    let sinks = sinks.iter().map(|(key, value)| sink(key, value, full_text_len));
    let mut sinks: Vec<Sink> = sinks.collect::<Result<_, _>>()?;
    sinks.sort_by_key(|sink| sink.position);
    Ok(sinks)
}

fn phase(value: &Value, full_text_len: usize) -> Result<Phase, Problem> {
    let field = |name: &str| value.get(name).ok_or_else(|| format!("`{name}` is missing"));
    let layer_at =
        |name: &str| layer(field(name)?).ok_or_else(|| format!("`{name}` must be a layer number"));
    let number = |name: &str| {
        let number = field(name)?.as_f64();
        number.map(|x| x as f32).ok_or_else(|| format!("`{name}` must be a number"))
    };
    let clip = Clip { start: layer_at("start")?, end: layer_at("end")? };
    if clip.layers().is_empty() {
        return Err("`end` must be above `start`".to_owned());
    }
    let sinks = field("sinks")?.as_object().ok_or("`sinks` must be an object keyed by position")?;
    Ok(Phase {
        clip,
        rise: number("rise")?,
        peak: number("peak")?,
        sinks: sinks_by_position(sinks, full_text_len)?,
    })
}

fn sink(key: &str, value: &Value, full_text_len: usize) -> Result<Sink, Problem> {
    // Canonical form only: "7", but neither "+7" nor "07".
    let position = key.parse::<usize>().ok().filter(|position| position.to_string() == key);
    let position = position
        .ok_or_else(|| format!("`candidate_sinks` has a key `{key}` that is not a position"))?;
    if position >= full_text_len {
        return Err(format!(
            "`candidate_sinks` has position {position}, beyond `full_text_len` {full_text_len}"
        ));
    }
    let wrong = |field: &str, expected: &str| {
        format!("`candidate_sinks.{position}.{field}` must be {expected}")
    };
    let Value::Object(object) = value else {
        return Err(format!("`candidate_sinks.{position}` must be an object"));
    };

    let layers = object.get("layer").and_then(Value::as_array);
    let layers = layers.and_then(|layers| layers.iter().map(layer).collect::<Option<Vec<_>>>());
    let layers = layers
        .filter(|layers| !layers.is_empty() && layers.is_sorted_by(|a, b| a < b))
        .ok_or_else(|| wrong("layer", "a list of layer numbers, ascending and not empty"))?;
    let token_id = object.get("token_id").and_then(whole).and_then(|id| u32::try_from(id).ok());
    let class = object.get("sink_type").and_then(Value::as_str).and_then(Class::from_sink_type);
    Ok(Sink {
        position,
        token_id: token_id.ok_or_else(|| wrong("token_id", "a token id"))?,
        token_text: optional(object, "token_text")
            .map(|text| {
                text.as_str().map(str::to_owned).ok_or_else(|| wrong("token_text", "a string"))
            })
            .transpose()?,
        layers,
        class: class
            .ok_or_else(|| wrong("sink_type", "`bos_sink`, `secondary` (or `cliff`) or `noise`"))?,
        measures: measures(object)
            .map_err(|error| format!("`candidate_sinks.{position}` cannot be read: {error}"))?,
        sink_score: optional(object, "sink_score")
            .map(|scores| serde_json::from_value(scores.clone()))
            .transpose()
            .map_err(|_| wrong("sink_score", "a list of numbers"))?,
    })
}

/// Fathom's measures: either all or none are present.
fn measures(object: &Map<String, Value>) -> serde_json::Result<Option<Measures>> {
    match object.contains_key("min_cosine") {
        true => serde_json::from_value(Value::Object(object.clone())).map(Some),
        false => Ok(None),
    }
}

/// A field that may be absent or null.
fn optional<'a>(object: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    object.get(field).filter(|value| !value.is_null())
}

fn whole(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

/// A layer number below 65536, which bounds memory on untrusted input.
fn layer(value: &Value) -> Option<usize> {
    Some(usize::from(u16::try_from(value.as_u64()?).ok()?))
}
