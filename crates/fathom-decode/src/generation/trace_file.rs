//! Generated texts in a file: one line each, in the order of the tasks, each synced before the
//! next.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use serde_json::{Map, Value};

use super::{Generation, InOrder, Task, TraceLine};

/// An output file in progress. Texts may end in any order; lines are written in the order of the
/// tasks. A file that is interrupted at any time can be resumed.
#[derive(Debug)]
pub struct TraceFile {
    path: PathBuf,
    /// Open and locked, so that no other process writes to it.
    file: File,
    line: TraceLine,
    lines: InOrder<String>,
}

impl TraceFile {
    /// Checks that `path` can be created, before models are loaded.
    ///
    /// # Errors
    /// A file that exists, or a missing directory.
    pub fn check_new(path: &Path) -> Result<()> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::file(
                path,
                "exists already: give another file, or `--resume` to continue it",
            ));
        }
        match path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
            Some(parent) => Err(Error::file(parent, "is not a directory to write to")),
            None => Ok(()),
        }
    }

    /// Creates a new file.
    ///
    /// # Errors
    /// A file that exists or cannot be created.
    pub fn create(path: &Path, line: TraceLine) -> Result<TraceFile> {
        TraceFile::check_new(path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(Error::io(path, "cannot be created"))?;
        TraceFile::locked(path, file, line)
    }

    /// Resumes the file at `path`, or creates it. Complete lines are kept and must be those of the
    /// first `tasks`; an incomplete last line is removed.
    ///
    /// # Errors
    /// A line of other tasks, another model or other parameters, or a file that another process is
    /// writing.
    pub fn resume(path: &Path, line: TraceLine, tasks: &[Task]) -> Result<TraceFile> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::io(path, "cannot be opened for writing"))?;
        let mut resumed = TraceFile::locked(path, file, line)?;
        let (lines, bytes) = resumed.check_lines(tasks)?;
        resumed.lines = InOrder::starting_at(lines);
        let file = &mut resumed.file;
        file.set_len(bytes)
            .and_then(|()| file.seek(io::SeekFrom::End(0)))
            .and_then(|_| file.sync_all())
            .map_err(Error::io(path, "cannot be written"))?;
        Ok(resumed)
    }

    fn locked(path: &Path, file: File, line: TraceLine) -> Result<TraceFile> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(path, "is being written by another process"));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::io(path, "cannot be locked")(error));
            }
        }
        Ok(TraceFile { path: path.to_owned(), file, line, lines: InOrder::starting_at(0) })
    }

    /// Checks the complete lines of the file. Returns their number and their bytes.
    fn check_lines(&self, tasks: &[Task]) -> Result<(u64, u64)> {
        let mut reader = BufReader::new(&self.file);
        let (mut lines, mut complete) = (0, 0);
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let read = reader
                .read_until(b'\n', &mut bytes)
                .map_err(Error::io(&self.path, "cannot be read"))?;
            if !bytes.ends_with(b"\n") {
                break; // end of file, or an incomplete line
            }
            let refuse = |problem: String| Err(Error::line(&self.path, number, problem));
            let Some(task) = tasks.get(number - 1) else {
                return refuse(format!("is one more than the {} texts of this run", tasks.len()));
            };
            let Ok(line) = serde_json::from_slice::<Map<String, Value>>(&bytes) else {
                return refuse("is not a line of a generation that can be resumed".to_owned());
            };
            if let Some(field) = self.different_field(&line, task) {
                return refuse(format!(
                    "was generated with another `{field}` than that of this run: give another \
                     file, or the options of the run that was interrupted"
                ));
            }
            complete += read as u64;
            lines += 1;
        }
        Ok((lines, complete))
    }

    /// The first field in which `line` differs from the line of `task`.
    fn different_field(&self, line: &Map<String, Value>, task: &Task) -> Option<String> {
        let head = self.line.head(task);
        // Fields that only runs with other parameters write.
        let mut more =
            TraceLine::RARE_PARAMS.into_iter().chain([TraceLine::WATCH, TraceLine::SUPPRESS]);
        let more = more.find(|&name| line.contains_key(name) && !head.contains_key(name));
        let other = head.into_iter().find(|(name, value)| line.get(name) != Some(value));
        let ids = line.get("input_ids").and_then(Value::as_array);
        let prompt = || task.ids.iter().map(|id| Some(u64::from(*id)));
        let same_ids = ids.is_some_and(|ids| {
            ids.len() > task.ids.len()
                && prompt().eq(ids.iter().take(task.ids.len()).map(Value::as_u64))
        });
        let other = other.map(|(name, _)| name).or(more.map(str::to_owned));
        other.or((!same_ids).then(|| "input_ids".to_owned()))
    }

    /// Number of texts in the file.
    pub fn written(&self) -> u64 {
        self.lines.next_number()
    }

    /// Adds a finished text. Its line is written and synced once all earlier ones are.
    ///
    /// # Errors
    /// A write error. The file can be resumed.
    pub fn push(&mut self, generation: &Generation) -> Result<()> {
        let line = Value::Object(self.line.object(generation)).to_string() + "\n";
        self.lines.insert(generation.task.index, line);
        while let Some(line) = self.lines.take_next() {
            self.file
                .write_all(line.as_bytes())
                .and_then(|()| self.file.sync_data())
                .map_err(Error::io(&self.path, "cannot be written"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use fathom_model::PromptContent;

    use super::*;
    use crate::generation::Origin;
    use crate::{Finish, SamplingParams};

    fn line(seed: u64) -> TraceLine {
        let origin = Origin { model: "m".into(), weights: "w".into(), precision: "f32".into() };
        let params = SamplingParams { seed, ..SamplingParams::default() };
        TraceLine { origin, params, watch: None, suppress: None }
    }

    fn tasks() -> Vec<Task> {
        let prompts = (0..3).map(|i| (PromptContent::Text(format!("p{i}")), vec![i]));
        Task::list(prompts.collect(), 2)
    }

    fn generation(task: &Task) -> Generation {
        let output = format!("text {}", task.index);
        let (tokens, finish, fields) = (vec![9], Finish::Eos, Map::new());
        Generation { task: task.clone(), output, tokens, finish, mat: 1.0, fields }
    }

    #[test]
    fn lines_are_written_in_the_order_of_the_tasks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let mut file = TraceFile::create(&path, line(0)).unwrap();
        let tasks = tasks();
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count();
        for (ended, written) in [(2, 0), (1, 0), (0, 3), (5, 3), (3, 4), (4, 6)] {
            file.push(&generation(&tasks[ended])).unwrap();
            assert_eq!((file.written(), lines()), (written, written as usize));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (index, line) in text.lines().enumerate() {
            assert!(line.starts_with(&format!("{{\"index\":{index},")), "{line}");
        }
        let error = TraceFile::create(&path, self::line(0)).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
    }

    /// A file truncated before, at, after and between line ends is resumed to the same bytes.
    #[test]
    fn a_truncated_file_is_resumed_to_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let tasks = tasks();
        let finish = |mut file: TraceFile| {
            let written = file.written() as usize;
            tasks[written..].iter().for_each(|task| file.push(&generation(task)).unwrap());
            std::fs::read(&path).unwrap()
        };
        let whole = finish(TraceFile::create(&path, line(0)).unwrap());
        let ends = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
        for cut in ends.flat_map(|end| [end - 20, end, end + 1]).chain([0, 1]) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let file = TraceFile::resume(&path, line(0), &tasks).unwrap();
            let kept = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(file.written(), kept as u64);
            assert_eq!(finish(file), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_file_of_another_run_is_refused_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let tasks = tasks();
        let mut file = TraceFile::create(&path, line(0)).unwrap();
        tasks.iter().for_each(|task| file.push(&generation(task)).unwrap());
        let busy = TraceFile::resume(&path, line(0), &tasks).unwrap_err().to_string();
        assert!(busy.contains("another process"), "{busy}");
        drop(file);

        let before = std::fs::read(&path).unwrap();
        let refused = |line, tasks: &[Task]| {
            let error = TraceFile::resume(&path, line, tasks).unwrap_err().to_string();
            assert_eq!(std::fs::read(&path).unwrap(), before);
            error
        };
        let error = refused(line(1), &tasks);
        assert!(error.contains("line 1") && error.contains("another `seed`"), "{error}");
        let watched = TraceLine { watch: Some(true.into()), ..line(0) };
        let error = refused(watched.clone(), &tasks);
        assert!(error.contains("line 1") && error.contains("another `watch`"), "{error}");
        let suppressed = TraceLine { suppress: Some(true.into()), ..line(0) };
        let error = refused(suppressed, &tasks);
        assert!(error.contains("line 1") && error.contains("another `suppress`"), "{error}");
        let error = refused(line(0), &tasks[..4]);
        assert!(error.contains("line 5") && error.contains("4 texts"), "{error}");
        let mut other = tasks.clone();
        other[3].ids = vec![7].into();
        let error = refused(line(0), &other);
        assert!(error.contains("line 4") && error.contains("another `input_ids`"), "{error}");
        let one = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, one.replace("\"prompt_len\"", "\"watch\":true,\"prompt_len\""))
            .unwrap();
        let error = TraceFile::resume(&path, line(0), &tasks).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("another `watch`"), "{error}");
        TraceFile::resume(&path, watched, &tasks).unwrap();
        std::fs::write(&path, one.replace("\"prompt_len\"", "\"suppress\":1,\"prompt_len\""))
            .unwrap();
        let error = TraceFile::resume(&path, line(0), &tasks).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("another `suppress`"), "{error}");
        std::fs::write(&path, "hello\n").unwrap();
        let error = TraceFile::resume(&path, line(0), &tasks).unwrap_err().to_string();
        assert!(error.contains("line 1: is not a line of a generation"), "{error}");
    }
}
