//! The sinks found while texts are generated are those of a scan of the finished texts: in every
//! mode and batch, with drafts that are rejected and caches that are too small.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/texts.rs"]
mod texts;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{assert_refused, contents, fathom, fixture};
use fathom_lm::{
    Class, Gamma, GenerateOptions, Mode, ModeChoice, Precision, Preset, SamplingParams,
    ScanOptions, SinkWatcher, TraceDetection, Watcher,
};
use serde_json::{Value, json};
use texts::{CommandLine, Decoding, MODES, Subject, Written, lines, rules};

/// Every mode in batches of these sizes, against one scan for each text.
fn check(
    subject: &Subject,
    batches: &[usize],
    temperature: f32,
    rules: &ScanOptions,
) -> Vec<TraceDetection> {
    let mut scans: HashMap<(u64, Vec<u32>), TraceDetection> = HashMap::new();
    for mode in MODES {
        for &batch_size in batches {
            let decoding = Decoding { mode, batch_size, temperature, rules, clamps: &[] };
            let (texts, metrics) = subject.generate(&decoding);
            assert_eq!(texts.len(), subject.prompts.len().max(batch_size));
            assert_eq!(metrics.preemptions > 0, batch_size > 1, "{mode:?}, batch {batch_size}");
            let rate = metrics.acceptance.rate().unwrap_or(0.0);
            // Drafts have to be rejected. What `auto` drafts depends on the speeds it measures, and
            // its guesses from planted texts, which repeat, may all be right.
            let most = match mode {
                ModeChoice::Always(Mode::Ar) => 0.0,
                ModeChoice::Always(_) => 0.9,
                ModeChoice::Auto => 1.0,
            };
            assert!(rate <= most, "{mode:?}: {rate} of the drafts were accepted");
            for Written { text, detection, .. } in texts {
                let key = (text.task.index, text.tokens.clone());
                let scan = scans.entry(key).or_insert_with(|| subject.scan(&text, rules));
                assert_eq!(detection.to_json(), scan.to_json(), "{mode:?}, batch {batch_size}");
                assert!(detection == *scan, "{mode:?}, batch {batch_size}");
                assert_eq!(detection.scanned_tokens(), detection.full_text_len - 1);
            }
        }
    }
    scans.into_values().collect()
}

#[test]
fn sinks_of_a_planted_model_are_those_of_a_scan() {
    for precision in [Precision::F32, Precision::Bf16] {
        let subject = Subject::planted(precision);
        let found = check(&subject, &[1, 4, 16], 0.0, &rules(Preset::Paper, &[0]));
        let of_class = |class| found.iter().flat_map(move |trace| trace.of_class(class));
        let primary = of_class(Class::Primary).filter(|sink| sink.position == 0).count();
        assert_eq!(primary, found.len());
        assert!(of_class(Class::Secondary).count() >= 4, "{found:?}");
        // Sampled tokens are of every kind: some of the sinks are in the generated part.
        let found = check(&subject, &[1, 4], 1.5, &rules(Preset::Paper, &[0, 1, 70, 150]));
        let generated = |trace: &TraceDetection| {
            trace.sinks.iter().filter(|sink| sink.position >= trace.prompt_len).count()
        };
        assert!(found.iter().map(generated).sum::<usize>() > 0);
    }
}

#[test]
fn sinks_of_a_trained_model_are_those_of_a_scan() {
    for precision in [Precision::F32, Precision::Bf16] {
        let subject = Subject::trained(precision);
        // A low threshold and rise, so that something is found.
        let low = |rules| ScanOptions { threshold: 0.02, rise_factor: 0.5, ..rules };
        let found = check(&subject, &[1, 4], 0.0, &low(rules(Preset::Paper, &[0])));
        assert!(found.iter().any(|trace| trace.sinks.len() > 1), "{found:?}");
        check(&subject, &[1, 4], 0.0, &low(rules(Preset::Upstream, &[0, 2, 130])));
    }
}

/// Rows taken from the prefix cache were seen when they were computed.
#[test]
fn sinks_of_texts_that_begin_alike_are_those_of_a_scan() {
    let subject = Subject::planted(Precision::Bf16);
    let options = GenerateOptions {
        mode: Some(ModeChoice::Always(Mode::Pearl)),
        gamma: Gamma::Fixed(3),
        prefix_cache: true,
        ..GenerateOptions::default()
    };
    let beginning = subject.prompts.concat();
    for (preset, reference) in [(Preset::Paper, &[0][..]), (Preset::Upstream, &[0, 1, 70, 150])] {
        let writer = Subject::planted(Precision::Bf16); // the same models
        let engine = writer.pair.spawn(&options, &mut |_, _| {}).unwrap();
        let rules = rules(preset, reference);
        let (mut sinks, mut taken) = (0, Vec::new());
        // Tokens of the beginning, and whether the text is watched.
        let texts = [(300, false), (300, true), (300, true), (140, true), (90, true), (290, true)];
        for (id, (agreeing, watched)) in (0..).zip(texts) {
            let mut ids = beginning[..agreeing].to_vec();
            ids.extend(&subject.prompts[id as usize % 4][..30]);
            let prompt_len = ids.len();
            let params = SamplingParams { max_tokens: 40, ..SamplingParams::default() };
            let watcher = SinkWatcher::new(engine.pair(), &rules);
            let found = watcher.sinks();
            let watcher = watched.then(|| Box::new(watcher) as Box<dyn Watcher>);
            let mut cached = 0;
            for update in engine.submit_watched(ids.clone(), &params, id, watcher).unwrap() {
                let update = update.unwrap();
                ids.extend(update.tokens);
                cached = update.done.map_or(cached, |done| done.cached_prompt_tokens);
            }
            taken.push(cached);
            if watched {
                let found = found.detection(id, &ids, prompt_len).unwrap();
                let scan = subject.scan_ids(id, &ids, prompt_len, &rules);
                assert_eq!(found.to_json(), scan.to_json(), "{preset:?}, text {id}");
                assert!(found == scan, "{preset:?}, text {id}");
                sinks += found.sinks.len();
            }
        }
        // The second computes all again, in order to see it.
        assert_eq!(taken[..2], [0, 0]);
        assert!(taken[2] >= 256 && taken[3] >= 140 && taken[4] >= 90, "{taken:?}");
        assert!(taken[5] >= 256 && sinks > 10, "{taken:?}, {sinks} sinks");
    }
}

#[test]
fn a_reference_beyond_the_end_of_a_text_is_none() {
    let subject = Subject::trained(Precision::F32);
    let rules = rules(Preset::Paper, &[250]);
    let (mode, batch_size) = (ModeChoice::Always(Mode::Ar), 4);
    let decoding = Decoding { mode, batch_size, temperature: 0.0, rules: &rules, clamps: &[] };
    for Written { text, detection, .. } in subject.generate(&decoding).0 {
        assert_eq!(detection, subject.scan(&text, &rules));
        assert_eq!((detection.sinks.len(), detection.scan.unwrap().clip), (0, None));
    }
}

#[test]
fn generate_writes_the_sinks_of_each_text_to_its_line() {
    let cli = CommandLine::new();
    let (plain, stderr) = cli.write("plain.jsonl", &["--mode", "ar"]);
    assert!(!plain.contains("detection") && !plain.contains("watch") && !stderr.contains("sinks"));
    let draft = cli.path("2");
    let draft = draft.to_str().unwrap();
    let (watched, stderr) = cli.write("watched.jsonl", &["--watch"]);
    for (name, mode, batch) in [("sd", "sd", "1"), ("pearl", "pearl", "4"), ("auto", "auto", "3")] {
        let args = ["--watch", "--draft", draft, "--mode", mode, "--batch-size", batch];
        assert_eq!(cli.write(name, &args).0, watched, "{mode}");
    }

    let (mut primary, mut secondary, mut texts) = (0, 0, 0);
    for (mut line, plain) in lines(&watched).into_iter().zip(plain.lines()) {
        let rules = json!({
            "preset": "paper", "threshold": 0.95, "rise_factor": 5.0, "reference": [0],
        });
        let object = line.as_object_mut().unwrap();
        assert_eq!(object.keys().next_back().unwrap(), "detection");
        let detection = object.shift_remove("detection").unwrap();
        assert_eq!(object.shift_remove("watch"), Some(rules));
        assert_eq!(line.to_string(), plain);

        // A scan of the line's tokens but the last.
        let name = format!("{}.jsonl", line["index"]);
        fs::write(cli.path(&name), plain.to_owned() + "\n").unwrap();
        let tokens = (line["input_ids"].as_array().unwrap().len() - 1).to_string();
        let scan = cli.scan(&name, &format!("run-{name}"), &["--max-tokens", &tokens]);
        assert_eq!(detection.to_string() + "\n", scan);
        let sinks = detection["candidate_sinks"].as_object().unwrap();
        let of_class = |class| sinks.values().filter(|sink| sink["class"] == class).count();
        primary += of_class("primary");
        secondary += of_class("secondary");
        texts += usize::from(!sinks.is_empty());
    }
    assert!(primary >= 6 && secondary > 0, "{watched}");
    let summary =
        format!("sinks: {primary} primary and {secondary} secondary in {texts} of 6 texts");
    assert!(stderr.contains(&summary), "{summary}: {stderr}");

    // A scan reads the exact ids of a watched file and passes over what is known already.
    cli.scan("plain.jsonl", "plain", &[]);
    cli.scan("watched.jsonl", "watched", &[]);
    let (plain, watched) = (contents(&cli.path("plain")), contents(&cli.path("watched")));
    let differ = |name: &&PathBuf| plain.get(*name) != watched.get(*name);
    let names: Vec<&PathBuf> = plain.keys().filter(differ).collect();
    assert_eq!(names, [Path::new("run.json")]); // names the file
}

#[test]
fn the_rules_are_those_of_scan() {
    let cli = CommandLine::new();
    let rules = ["--preset", "upstream", "--threshold", "0.8", "--rise", "2", "--reference", "0,1"];
    let args = [&["--watch", "--phases", "all", "--json"], &rules[..]].concat();
    let output = cli.generate(None, &args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = &result["texts"][4];
    let mut trace = text.clone();
    trace.as_object_mut().unwrap().shift_remove("detection");
    fs::write(cli.path("trace.jsonl"), trace.to_string() + "\n").unwrap();
    let tokens = (text["input_ids"].as_array().unwrap().len() - 1).to_string();
    let args = [&["--max-tokens", &tokens], &rules[..]].concat();
    assert_eq!(text["detection"].to_string() + "\n", cli.scan("trace.jsonl", "run", &args));
    let row = &result["sinks"];
    assert_eq!(row["traces"], 6);
    assert!(row["primary_count"].as_u64().unwrap() >= 6, "{row}");
    assert_eq!(result.as_object().unwrap().keys().next_back().unwrap(), "sinks");

    let with_file: Value = serde_json::from_slice(
        &cli.generate(Some("file.jsonl"), &["--watch", "--json"]).output().unwrap().stdout,
    )
    .unwrap();
    assert_eq!(with_file["sinks"]["traces"], 6);
    let args = [&["--threshold", "0.8"][..], &["--phases", "all"], &["--reference", "0"]];
    for args in args {
        let output = cli.generate(None, args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains("--watch"), "{args:?}");
    }
    let output = cli.generate(None, &["--watch", "--reference", "256"]).output().unwrap();
    assert_refused(&output, &["reference position 256"]);
}

#[test]
fn a_resumed_file_ends_with_the_same_bytes() {
    let cli = CommandLine::new();
    let sampled = ["--temperature", "1", "--watch", "--batch-size", "4"];
    let (expected, _) = cli.write("out.jsonl", &sampled);
    let resume = [&sampled[..], &["--resume"]].concat();
    let ends: Vec<usize> = expected.match_indices('\n').map(|(at, _)| at + 1).collect();
    for cut in [0, ends[1], ends[3] - 200, expected.len()] {
        fs::write(cli.path("out.jsonl"), &expected[..cut]).unwrap();
        let (resumed, stderr) = cli.write("out.jsonl", &resume);
        assert!(resumed == expected, "cut at {cut}");
        let left = 6 - expected[..cut].matches('\n').count();
        let of = format!(" of {left} text");
        assert!(stderr.contains("sinks: ") && stderr.contains(&of), "{stderr}");
    }
    let refused = |args: &[&str]| {
        assert_refused(&cli.generate(Some("out.jsonl"), args).output().unwrap(), &["`watch`"]);
        assert!(fs::read_to_string(cli.path("out.jsonl")).unwrap() == expected);
    };
    refused(&[&resume[..], &["--threshold", "0.9"]].concat());
    refused(&["--temperature", "1", "--resume"]);
}

#[test]
fn one_watched_text_is_streamed() {
    let mut command = fathom();
    command.arg("generate").arg("--target").arg(fixture("models/draft")).arg("--watch");
    command.args(["--prompt", "def add(a, b):", "--max-tokens", "20"]);
    let output = command.output().unwrap();
    assert!(output.status.success());
    assert!(!String::from_utf8(output.stdout).unwrap().contains("detection"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("sinks: ") && stderr.contains(" of 1 text"), "{stderr}");
    let help = common::succeed(&["generate", "--help"]);
    for option in ["--watch", "--preset", "--threshold", "--reference", "--rise", "--phases"] {
        assert!(help.contains(option), "{option}: {help}");
    }
}
