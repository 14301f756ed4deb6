//! Texts to be watched or edited while they are generated: models, drafts and prompts.

// Each test binary uses only part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fathom_decode::engine::EngineMetrics;
use fathom_lm::{
    Clamp, Gamma, GenerateOptions, Generation, Mode, ModeChoice, Model, ModelOptions, Pair,
    Precision, Preset, PromptContent, SamplingParams, ScanOptions, SinkCollector, SinkSuppressor,
    Suppressed, Task, TraceDetection, Traces, demo, placement,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::fathom;

pub const MODES: [ModeChoice; 5] = [
    ModeChoice::Always(Mode::Ar),
    ModeChoice::Always(Mode::Sd),
    ModeChoice::Always(Mode::Pearl),
    ModeChoice::Always(Mode::Forked),
    ModeChoice::Auto,
];

/// A target, a draft, and four prompts for them.
pub struct Subject {
    pub pair: Pair,
    pub model: Model,
    pub prompts: Vec<Vec<u32>>,
    _dir: TempDir,
}

/// How texts are generated.
#[derive(Debug)]
pub struct Decoding<'a> {
    pub mode: ModeChoice,
    pub batch_size: usize,
    pub temperature: f32,
    pub rules: &'a ScanOptions,
    pub clamps: &'a [Clamp],
}

/// A generated text.
pub struct Written {
    pub text: Generation,
    pub detection: TraceDetection,
    pub suppressed: Option<Suppressed>,
}

impl Subject {
    /// Two planted models of one vocabulary: the draft knows nothing of the target.
    pub fn planted(precision: Precision) -> Subject {
        let dir = tempfile::tempdir().unwrap();
        for seed in [1, 2] {
            let options = demo::PlantOptions { seed, traces: 4, ..Default::default() };
            demo::plant(&dir.path().join(seed.to_string()), &options).unwrap();
        }
        let (target, draft) = (dir.path().join("1"), dir.path().join("2"));
        let model = Model::load(target.display().to_string()).unwrap();
        let traces = Traces::read(target.join("traces.jsonl"), &model).unwrap();
        let prompts =
            traces.iter().zip([60, 75, 90, 105]).map(|(trace, n)| trace.ids[..n].to_vec());
        let prompts = prompts.collect();
        Subject::of(&target, &draft, precision, prompts, dir)
    }

    pub fn trained(precision: Precision) -> Subject {
        let dir = tempfile::tempdir().unwrap();
        let models = demo::trained_pair(dir.path()).unwrap();
        let model = Model::load(models.target.display().to_string()).unwrap();
        let text = "Q: Mia has 3 boxes with 12 pencils each. She gives 7 pencils away. ";
        let ids = model.encode(text.repeat(4)).unwrap().ids;
        let prompts = [50, 61, 72, 80].map(|n| ids[..n].to_vec());
        Subject::of(&models.target, &models.draft, precision, prompts.into(), dir)
    }

    fn of(
        target: &Path,
        draft: &Path,
        precision: Precision,
        prompts: Vec<Vec<u32>>,
        dir: TempDir,
    ) -> Subject {
        let model = |dir: &Path| {
            ModelOptions::new(dir.display().to_string()).threads(1).precision(precision)
        };
        let pair = Pair::open(model(target), Some(model(draft))).unwrap();
        Subject { pair, model: model(target).load().unwrap(), prompts, _dir: dir }
    }

    /// The texts of the prompts, by index: one of each, or four with a batch of 16.
    pub fn generate(&self, decoding: &Decoding<'_>) -> (Vec<Written>, EngineMetrics) {
        let Decoding { mode, batch_size, temperature, rules, clamps } = *decoding;
        let options = GenerateOptions {
            mode: Some(mode),
            gamma: Gamma::Fixed(3),
            batch_size,
            // Of 128 tokens, and a text needs two: not enough for a batch of 4 or 16.
            kv_pages: Some(if batch_size == 16 { 20 } else { 4 }),
            prefix_cache: true,
            placement: placement(2, None, None, false),
        };
        let prompts = self.prompts.iter();
        let prompts = prompts.map(|ids| (PromptContent::Text(String::new()), ids.clone()));
        let tasks = Task::list(prompts.collect(), batch_size.div_ceil(self.prompts.len()));
        let params = SamplingParams {
            max_tokens: 110,
            ignore_eos: true,
            temperature,
            ..SamplingParams::default()
        };
        let collector = SinkCollector::new(&self.pair, rules);
        let engine = self.pair.start(&options, &mut |_, _| {}).unwrap();
        let suppressor = SinkSuppressor::new(&engine, clamps.to_vec(), rules);
        let generator = engine.run(tasks, params);
        let mut generator = match clamps.is_empty() {
            true => collector.watch(generator),
            false => suppressor.suppress(generator, Some(&collector)),
        };
        let mut texts = Vec::new();
        while generator.pending() > 0 {
            for text in generator.step().unwrap().into_iter().filter_map(|piece| piece.done) {
                let detection = collector.detection(&text).unwrap();
                assert!(collector.detection(&text).is_err(), "dropped");
                let suppressed = suppressor.suppressed(&text).ok();
                assert!(suppressor.suppressed(&text).is_err(), "dropped");
                texts.push(Written { text, detection, suppressed });
            }
        }
        texts.sort_by_key(|written| written.text.task.index);
        (texts, generator.engine().metrics().clone())
    }

    /// What a scan of a text without its last token finds.
    pub fn scan(&self, text: &Generation, rules: &ScanOptions) -> TraceDetection {
        self.scan_ids(text.task.index, &ids(text), text.task.ids.len(), rules)
    }

    /// The same, of the tokens of prompt and text.
    pub fn scan_ids(
        &self,
        index: u64,
        ids: &[u32],
        prompt_len: usize,
        rules: &ScanOptions,
    ) -> TraceDetection {
        let row = json!({ "index": index, "input_ids": ids, "prompt_len": prompt_len });
        let traces = Traces::from_rows([row], &self.model).unwrap();
        let options = ScanOptions { max_tokens: Some(ids.len() - 1), ..rules.clone() };
        self.model.scan(&traces, options).run().unwrap().detections().unwrap().remove(0)
    }
}

/// The tokens of a prompt and its text.
pub fn ids(text: &Generation) -> Vec<u32> {
    text.task.ids.iter().chain(&text.tokens).copied().collect()
}

pub fn rules(preset: Preset, reference: &[usize]) -> ScanOptions {
    ScanOptions { reference: reference.to_vec(), ..ScanOptions::new(preset) }
}

/// A planted model with a draft, and prompts that are the beginnings of its traces.
pub struct CommandLine(TempDir);

impl CommandLine {
    pub fn new() -> CommandLine {
        let dir = tempfile::tempdir().unwrap();
        for seed in [1, 2] {
            let options = demo::PlantOptions { seed, traces: 3, ..Default::default() };
            demo::plant(&dir.path().join(seed.to_string()), &options).unwrap();
        }
        let traces = fs::read_to_string(dir.path().join("1/traces.jsonl")).unwrap();
        let prompts = traces.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let (prompt, output) = (&line["prompt"], line["output"].as_str().unwrap());
            let words: Vec<&str> = output.split(' ').take(60).collect();
            let prompt = format!("{} {}", prompt.as_str().unwrap(), words.join(" "));
            json!({ "prompt": prompt }).to_string() + "\n"
        });
        fs::write(dir.path().join("prompts.jsonl"), prompts.collect::<String>()).unwrap();
        CommandLine(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `fathom generate` with `args`, a draft among them or not.
    pub fn generate(&self, out: Option<&str>, args: &[&str]) -> Command {
        let mut command = fathom();
        command.arg("generate").arg("--target").arg(self.path("1"));
        command
            .args(["--max-tokens", "40", "-n", "2", "--prompts"])
            .arg(self.path("prompts.jsonl"));
        if let Some(out) = out {
            command.arg("--out").arg(self.path(out));
        }
        command.args(args);
        command
    }

    /// The same, which must work: what is in the file, and what is on standard error.
    pub fn write(&self, out: &str, args: &[&str]) -> (String, String) {
        let output = self.generate(Some(out), args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        (fs::read_to_string(self.path(out)).unwrap(), stderr)
    }

    pub fn scan(&self, traces: &str, run: &str, args: &[&str]) -> String {
        let mut command = fathom();
        command.arg("scan").arg("--model").arg(self.path("1")).arg("--strict");
        command.arg("--traces").arg(self.path(traces)).arg("--out").arg(self.path(run)).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(self.path(run).join("detections.jsonl")).unwrap()
    }
}

pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
