//! `fathom generate --suppress`: the sinks of the clamped layers do not arise and all others do; in
//! every mode and batch the text is that of the clamped target, and what happens in its passes is
//! what a clamped pass over the finished text computes.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/texts.rs"]
mod texts;

use std::collections::{HashMap, HashSet};
use std::fs;

use common::{assert_refused, fathom};
use fathom_lm::{
    Clamp, Class, EditProbe, Edits, Generation, LogitRows, Mode, ModeChoice, Precision, Preset,
    ScanOptions, Sink,
};
use fathom_model::{SequenceOptions, Step};
use fathom_sinks::{ScalarProbe, clamp, detect};
use serde_json::{Value, json};
use texts::{CommandLine, Decoding, MODES, Subject, Written, ids, lines, rules};

const NORM: f32 = 0.5;
/// Batches for each of [`MODES`].
const SOME_BATCHES: [&[usize]; 4] = [&[1, 16], &[4], &[1, 16], &[4]];

/// The sinks in a pass over a text without its last token, with a clamp at each of `layers`, and
/// the positions that each clamp changes.
fn clamped_scan(
    subject: &Subject,
    text: &Generation,
    layers: &[usize],
    rules: &ScanOptions,
) -> (Vec<Sink>, Vec<Vec<usize>>) {
    let (model, ids) = (&subject.model, ids(text));
    let ids = &ids[..ids.len() - 1];
    let edits = layers.iter().map(|layer| {
        let name = format!("resid_post.{layer}");
        let state = model.run_with_cache(&ids[..1], &[name.as_str()]).unwrap();
        let state = state[name.as_str()].row(0);
        let norm = state.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let direction = state.iter().map(|x| (f64::from(*x) / norm) as f32).collect();
        clamp(*layer, direction, NORM, 0)
    });
    let pass = |edits: Vec<_>| {
        let edits = Edits::new(edits, model.config(), None).unwrap();
        let mut scalars = ScalarProbe::new(model.config().layers, ids, &rules.scalars());
        let mut probe = EditProbe::new(&edits).observed_by(&mut scalars);
        let mut sequence = model.weights().new_sequence(SequenceOptions::default());
        let mut step = [Step { sequence: &mut sequence, tokens: ids, logits: LogitRows::None }];
        model.weights().forward(&mut step, Some(&mut probe)).unwrap();
        let aligned = probe.aligned().to_vec();
        (scalars.finish().unwrap(), aligned)
    };
    let edits: Vec<_> = edits.collect();
    let (scalars, aligned) = pass(edits.clone());
    let positions = (0..layers.len()).map(|i| {
        // Norms at a clamped layer are those of a pass with all other clamps.
        let others = edits.iter().enumerate().filter(|(j, _)| *j != i);
        let (before, _) = pass(others.map(|(_, edit)| edit.clone()).collect());
        let here = aligned.iter().filter(|(_, layer, _)| *layer == layers[i]);
        let large = |t: &usize| before.mlp_out_norm.at(layers[i], *t) > NORM;
        here.map(|(.., position)| *position).filter(large).collect()
    });
    let positions = positions.collect();
    (detect(&scalars, &rules.detect()).sinks, positions)
}

/// Position, class and layers of each sink.
fn places(sinks: &[Sink]) -> Vec<(usize, Class, &[usize])> {
    sinks.iter().map(|sink| (sink.position, sink.class, sink.layers.as_slice())).collect()
}

/// A text against a clamped pass, and against a scan without the clamps.
fn check_text(subject: &Subject, written: &Written, layers: &[usize], rules: &ScanOptions) {
    let Written { text, detection, suppressed } = written;
    let (mut sinks, positions) = clamped_scan(subject, text, layers, rules);
    for (sink, found) in sinks.iter_mut().zip(&detection.sinks) {
        sink.token_text.clone_from(&found.token_text);
    }
    assert_eq!(detection.sinks, sinks);
    let suppressed = suppressed.as_ref().unwrap();
    assert_eq!(suppressed.reference, 0);
    for ((clamped, layer), positions) in suppressed.layers.iter().zip(layers).zip(&positions) {
        assert_eq!((clamped.layer, clamped.norm), (*layer, NORM));
        assert_eq!(clamped.positions, *positions);
    }
    // The planted sinks of the clamped layers are gone, and nothing else has changed.
    let plain = subject.scan(text, rules);
    let of_layers =
        |sink: &&Sink| sink.class == Class::Secondary && layers.contains(&sink.l_start());
    let gone: Vec<usize> = plain.sinks.iter().filter(of_layers).map(|sink| sink.position).collect();
    let kept: Vec<Sink> = plain.sinks.iter().filter(|sink| !of_layers(sink)).cloned().collect();
    assert_eq!(places(&detection.sinks), places(&kept), "{layers:?}");
    let mut clamped: Vec<usize> = positions.concat();
    clamped.sort_unstable();
    assert_eq!(clamped, gone);
    assert_eq!(suppressed.tokens, gone.len());
}

fn clamps(layers: &[usize], norm: Option<f32>) -> Vec<Clamp> {
    layers.iter().map(|layer| Clamp { layer: *layer, norm }).collect()
}

/// Texts of every mode with the clamps of `layers`. Returns the number of different texts, and of
/// clamped tokens in prompts and after them.
fn check(subject: &Subject, layers: &[usize], temperature: f32) -> (usize, [usize; 2]) {
    let (rules, clamps) = (rules(Preset::Paper, &[0]), clamps(layers, Some(NORM)));
    let mut checked: HashSet<(usize, Vec<u32>)> = HashSet::new();
    let mut greedy: HashMap<usize, Vec<u32>> = HashMap::new();
    let mut clamped = [0; 2];
    for (mode, batches) in MODES.into_iter().zip(SOME_BATCHES) {
        for &batch_size in batches {
            let (rules, clamps) = (&rules, clamps.as_slice());
            let decoding = Decoding { mode, batch_size, temperature, rules, clamps };
            let (texts, metrics) = subject.generate(&decoding);
            assert_eq!(metrics.preemptions > 0, batch_size > 1, "{mode:?}, batch {batch_size}");
            for written in texts {
                let (task, tokens) = (&written.text.task, &written.text.tokens);
                if temperature == 0.0 {
                    let first = greedy.entry(task.prompt_index).or_insert_with(|| tokens.clone());
                    assert_eq!(first, tokens, "{mode:?}, batch {batch_size}");
                }
                let suppressed = written.suppressed.as_ref().unwrap();
                for position in suppressed.layers.iter().flat_map(|layer| &layer.positions) {
                    clamped[usize::from(*position >= task.ids.len())] += 1;
                }
                if checked.insert((task.prompt_index, tokens.clone())) {
                    check_text(subject, &written, layers, rules);
                }
            }
        }
    }
    (checked.len(), clamped)
}

#[test]
fn suppression_removes_the_planted_sinks_of_its_layers_and_no_others() {
    for precision in [Precision::F32, Precision::Bf16] {
        let subject = Subject::planted(precision);
        let (texts, [in_prompts, _]) = check(&subject, &[5], 0.0);
        assert!(texts == 4 && in_prompts > 0);
        let (texts, [in_prompts, _]) = check(&subject, &[5, 6, 7, 8], 0.0);
        assert!(texts == 4 && in_prompts > 0);
        // Sampled tokens are of every kind: some of the sinks are in the generated part.
        let (texts, [in_prompts, generated]) = check(&subject, &[5, 6, 8], 1.5);
        assert!(texts > 8 && in_prompts > 0 && generated > 0, "{texts} {generated}");
    }
}

#[test]
fn other_texts_and_modes_do_not_change_a_clamped_text_of_a_trained_model() {
    let subject = Subject::trained(Precision::F32);
    let rules = rules(Preset::Paper, &[0]);
    let mut texts: Vec<Vec<(Vec<u32>, String)>> = Vec::new();
    for mode in MODES {
        let clamps = clamps(&[1], Some(0.0));
        let decoding =
            Decoding { mode, batch_size: 4, temperature: 0.0, rules: &rules, clamps: &clamps };
        let written = subject.generate(&decoding).0;
        let of_text = |written: &Written| {
            let suppressed = written.suppressed.as_ref().unwrap();
            (written.text.tokens.clone(), suppressed.to_json())
        };
        texts.push(written.iter().map(of_text).collect());
    }
    assert!(texts.iter().all(|of_mode| *of_mode == texts[0]), "{texts:?}");
}

#[test]
fn the_norm_is_that_of_the_prompts_ordinary_tokens() {
    let subject = Subject::planted(Precision::F32);
    let rules = rules(Preset::Paper, &[0]);
    let clamps = [Clamp { layer: 5, norm: None }, Clamp { layer: 6, norm: Some(2.0) }];
    let decoding = Decoding {
        mode: ModeChoice::Always(Mode::Ar),
        batch_size: 4,
        temperature: 0.0,
        rules: &rules,
        clamps: &clamps,
    };
    for Written { text, suppressed, .. } in subject.generate(&decoding).0 {
        let prompt = &text.task.ids;
        let cache = subject.model.run_with_cache(prompt, &["mlp_out.5", "resid_post.5"]).unwrap();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let norm = |a: &[f32]| dot(a, a).sqrt();
        let state = cache["resid_post.5"].row(0);
        let rows = (1..prompt.len()).map(|t| cache["mlp_out.5"].row(t));
        let ordinary = |row: &&[f32]| dot(row, state) <= 0.98 * norm(row) * norm(state);
        let norms: Vec<f64> = rows.filter(ordinary).map(norm).collect();
        assert!(norms.len() > prompt.len() / 2 && norms.len() < prompt.len() - 1);
        let mean = norms.iter().sum::<f64>() / norms.len() as f64;
        let suppressed = suppressed.unwrap();
        let [at_5, at_6] = &suppressed.layers[..] else { panic!("{suppressed:?}") };
        assert!((f64::from(at_5.norm) / mean - 1.0).abs() < 1e-5, "{} {mean}", at_5.norm);
        assert_eq!(at_6.norm, 2.0);
    }
}

#[test]
fn the_reference_is_chosen_among_the_candidates_in_the_prompt() {
    let subject = Subject::planted(Precision::F32);
    // A candidate beyond the prompt is none.
    let rules = rules(Preset::Upstream, &[9, 0, 1, 250]);
    let clamps = clamps(&[5], Some(NORM));
    let (mode, batch_size) = (ModeChoice::Always(Mode::Ar), 4);
    let decoding = Decoding { mode, batch_size, temperature: 0.0, rules: &rules, clamps: &clamps };
    for Written { suppressed, detection, .. } in subject.generate(&decoding).0 {
        let reference = suppressed.unwrap().reference;
        assert!(reference < 9, "{reference}"); // BOS, or the template token after it
        assert_eq!(reference, detection.scan.unwrap().reference);
    }
}

/// The sinks in a line's field `detection`, by l_start.
fn secondary(line: &Value) -> Vec<u64> {
    let sinks = line["detection"]["candidate_sinks"].as_object().unwrap().values();
    let secondary = sinks.filter(|sink| sink["class"] == "secondary");
    secondary.map(|sink| sink["l_start"].as_u64().unwrap()).collect()
}

#[test]
fn generate_writes_what_was_suppressed_to_each_line() {
    let cli = CommandLine::new();
    let (watched, _) = cli.write("watched.jsonl", &["--watch"]);
    assert!(lines(&watched).iter().any(|line| secondary(line).contains(&5)), "{watched}");
    let args = ["--suppress", "secondary", "--at", "5,7", "--clamp-norm", "0.5", "--watch"];
    let (text, stderr) = cli.write("ar", &args);
    let draft = cli.path("2");
    for (mode, batch) in [("sd", "1"), ("pearl", "4"), ("auto", "16")] {
        let how = ["--draft", draft.to_str().unwrap(), "--mode", mode, "--batch-size", batch];
        assert_eq!(cli.write(mode, &[&args[..], &how].concat()).0, text, "{mode}");
    }
    let (mut tokens, mut changed) = ([0; 2], 0);
    for line in lines(&text) {
        let layers = json!([{ "layer": 5, "norm": 0.5 }, { "layer": 7, "norm": 0.5 }]);
        let rule = json!({
            "site": "mlp_out", "cosine": 0.98, "layers": layers, "reference": [0],
        });
        assert_eq!(line["suppress"], rule);
        let suppressed = &line["suppressed"];
        assert_eq!(suppressed["reference"], 0);
        for (layer, tokens) in suppressed["layers"].as_array().unwrap().iter().zip(&mut tokens) {
            *tokens += layer["positions"].as_array().unwrap().len();
        }
        changed += usize::from(suppressed["tokens"] != 0);
        let left = secondary(&line);
        assert!(!left.is_empty() && left.iter().all(|l| ![5, 7].contains(l)), "{line}");
    }
    let [at_5, at_7] = tokens;
    let summary = format!(
        "suppressed: {} tokens in {changed} of 6 texts; {at_5} at layer 5, {at_7} at layer 7",
        at_5 + at_7
    );
    assert!(at_5 > 0 && at_7 > 0 && stderr.contains(&summary), "{summary}: {stderr}");

    // A level is the sinks that arise at a layer. Without --watch there is no detection.
    let (level, _) = cli.write("level", &["--suppress", "5"]);
    assert!(!level.contains("detection"));
    let line = &lines(&level)[0];
    assert_eq!(line["suppress"]["layers"], json!([{ "layer": 5, "norm": null }]));
    assert!(line["suppressed"]["layers"][0]["norm"].as_f64().unwrap() > 0.0, "{line}");
    let (at, _) = cli.write("at", &["--suppress", "secondary", "--at", "5"]);
    assert_eq!(level, at);
    let json = cli.generate(None, &["--suppress", "5", "--json"]).output().unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["suppressed"]["texts"], 6);
    assert_eq!(json["texts"][0], *line);

    // Such a text is remarked on, once, when it is read.
    let mut scan = fathom();
    scan.args(["scan", "--model"]).arg(cli.path("1")).arg("--traces").arg(cli.path("level"));
    let output = scan.arg("--out").arg(cli.path("run")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.matches("sinks were suppressed while this text was generated").count(), 1);
    let run = fs::read_to_string(cli.path("run/run.json")).unwrap();
    assert!(run.contains("suppressed-text"), "{run}");
    let output = fathom().arg("explain").arg(cli.path("run")).arg("--effect").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.matches("sinks were suppressed while this text was generated").count(), 1);
}

#[test]
fn a_suppressed_file_is_resumed_with_the_same_suppression_only() {
    let cli = CommandLine::new();
    let args = ["--suppress", "secondary", "--at", "5,6", "--temperature", "1"];
    let (expected, _) = cli.write("out.jsonl", &args);
    let resume = [&args[..], &["--resume"]].concat();
    let ends: Vec<usize> = expected.match_indices('\n').map(|(at, _)| at + 1).collect();
    for cut in [0, ends[0], ends[3] - 100] {
        fs::write(cli.path("out.jsonl"), &expected[..cut]).unwrap();
        assert!(cli.write("out.jsonl", &resume).0 == expected, "cut at {cut}");
    }
    let refused = |args: &[&str]| {
        let args = [args, &["--temperature", "1", "--resume"]].concat();
        assert_refused(&cli.generate(Some("out.jsonl"), &args).output().unwrap(), &["`suppress`"]);
        assert!(fs::read_to_string(cli.path("out.jsonl")).unwrap() == expected);
    };
    refused(&[]);
    refused(&["--suppress", "5"]);
    refused(&["--suppress", "secondary", "--at", "5,6", "--clamp-norm", "1"]);
    refused(&["--suppress", "secondary", "--at", "5,6", "--reference", "1"]);
}

#[test]
fn layers_and_norms_are_taken_from_an_explained_run() {
    let cli = CommandLine::new();
    let model = cli.path("1");
    let (run, traces) = (cli.path("run"), model.join("traces.jsonl"));
    let mut scan = fathom();
    scan.args(["scan", "--model"]).arg(&model).arg("--traces").arg(&traces);
    assert!(scan.arg("--out").arg(&run).output().unwrap().status.success());
    let run = run.to_str().unwrap();
    let from = ["--suppress", "secondary", "--suppress-from", run];
    let refused = |args: &[&str], parts: &[&str]| {
        assert_refused(&cli.generate(None, args).output().unwrap(), parts);
    };
    refused(&from, &["run: has no up-to-date result of `fathom explain RUN --suppress`"]);
    assert!(fathom().args(["explain", run, "--suppress"]).output().unwrap().status.success());
    let explained = fs::read_to_string(cli.path("run/explain/suppress.json")).unwrap();
    let explained: Value = serde_json::from_str(&explained).unwrap();
    let norm = |layer: &Value| json!({ "layer": layer["layer"], "norm": layer["norm"] });
    let explained: Vec<Value> =
        explained["result"]["layers"].as_array().unwrap().iter().map(norm).collect();
    assert_eq!(explained.len(), 3);
    let mut all = lines(&cli.write("all", &from).0)[0]["suppress"]["layers"].clone();
    let layer = |clamp: &Value| clamp["layer"].as_u64();
    all.as_array_mut().unwrap().sort_by_key(layer);
    let mut sorted = explained.clone();
    sorted.sort_by_key(layer);
    assert_eq!(all, json!(sorted));
    let one = explained[0]["layer"].to_string();
    let args = ["--suppress", one.as_str(), "--suppress-from", run];
    assert_eq!(lines(&cli.write("one", &args).0)[0]["suppress"]["layers"], json!(explained[..1]));
    refused(&["--suppress", "2", "--suppress-from", run], &["clamps no layer 2"]);
    // Another model than the run's.
    let other = cli.path("2");
    let mut command = fathom();
    command.args(["generate", "--prompt", "a", "--target"]).arg(other).args(from);
    assert_refused(&command.output().unwrap(), &["differ from those of"]);
}

#[test]
fn wrong_options_are_refused_in_one_sentence() {
    let cli = CommandLine::new();
    let refused = |args: &[&str], parts: &[&str]| {
        assert_refused(&cli.generate(None, args).output().unwrap(), parts);
    };
    refused(&["--suppress", "secondary"], &["--at", "--suppress-from"]);
    refused(&["--suppress", "99"], &["layer 99", "0..=19"]);
    refused(&["--suppress", "secondary", "--at", "20"], &["layer 20"]);
    refused(&["--suppress", "5", "--at", "6"], &["layer 5", "no --at"]);
    refused(&["--suppress", "5", "--suppress-from", "nowhere"], &["nowhere"]);
    let usage = |args: &[&str], part: &str| {
        let output = cli.generate(None, args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains(part), "{args:?}");
    };
    usage(&["--suppress", "5:3"], "is not known while a text is written");
    usage(&["--suppress", "5", "--clamp-norm=-1"], "must be a number, not negative");
    usage(&["--at", "5"], "--suppress");
    usage(&["--clamp-norm", "5"], "--suppress");
    usage(&["--reference", "1"], "--suppress");
    usage(&["--suppress", "5", "--threshold", "0.5"], "--watch");
    // A prompt of BOS and one sink has no ordinary token.
    let mut command = fathom();
    command.arg("generate").arg("--target").arg(cli.path("1")).arg("--no-chat-template");
    command.args(["--prompt", "Wait", "--suppress", "5", "--max-tokens", "3"]);
    assert_refused(&command.output().unwrap(), &["prompt 0: ", "no ordinary token", "layer 5"]);
}
