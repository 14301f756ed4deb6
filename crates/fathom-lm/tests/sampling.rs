//! The sampling options of `fathom generate`: effects, errors and the checkpoint's recommendation.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Checkpoint, assert_refused, fathom, fixture};
use serde_json::{Value, json};

/// `fathom generate --json` with the pair of the fixtures and one prompt.
fn generate(target: &Path, args: &[&str]) -> Command {
    let mut command = fathom();
    command.arg("generate").arg("--target").arg(target);
    command.arg("--draft").arg(fixture("models/draft-weak"));
    command.args(["--prompt", "A", "--json"]).args(args);
    command
}

/// The JSON line of the text.
fn line_of(target: &Path, args: &[&str]) -> Value {
    let output = generate(target, args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["texts"][0].take()
}

fn line(args: &[&str]) -> Value {
    line_of(&fixture("models/draft"), args)
}

/// The token ids after the prompt.
fn text(line: &Value) -> Vec<u64> {
    let ids = line["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
    ids.skip(line["prompt_len"].as_u64().unwrap() as usize).collect()
}

fn most_repeated(text: &[u64]) -> usize {
    text.iter().map(|id| text.iter().filter(|other| *other == id).count()).max().unwrap()
}

#[test]
fn every_option_has_its_effect_and_is_recorded() {
    let base = ["--max-tokens", "24", "--ignore-eos"];
    let with = |args: &[&str]| line(&[&base[..], args].concat());
    let usual = with(&[]);
    let usual_text = text(&usual);
    for name in ["min_p", "repetition_penalty", "logit_bias", "min_tokens", "stop_token_ids"] {
        assert_eq!(usual.get(name), None, "{name}");
    }
    for (option, value, name, written) in [
        ("--presence-penalty", "2", "presence_penalty", json!(2.0)),
        ("--frequency-penalty", "2", "frequency_penalty", json!(2.0)),
        ("--repetition-penalty", "3", "repetition_penalty", json!(3.0)),
    ] {
        let penalised = with(&[option, value]);
        assert_eq!(penalised[name], written);
        let own = text(&penalised);
        assert_ne!(own, usual_text, "{option}");
        // The presence penalty does not grow with repetition.
        let less = most_repeated(&own) < most_repeated(&usual_text);
        assert!(less || option == "--presence-penalty", "{option}: {own:?}");
    }

    // The first token ruled out; another made certain.
    let first = usual_text[0];
    let banned = with(&["--logit-bias", &format!("{first}=-100")]);
    assert!(!text(&banned).contains(&first));
    let only = with(&["--logit-bias", "9=100", "--logit-bias", "5=-1.5,6=2"]);
    assert_eq!(text(&only), [9; 24]);
    assert_eq!(only["logit_bias"], json!({ "5": -1.5, "6": 2.0, "9": 100.0 }));

    // With min-p 1, only the most likely token can be sampled.
    let drawn = with(&["--temperature", "1", "--min-p", "1"]);
    assert_eq!(drawn["min_p"], json!(1.0));
    assert_eq!(text(&drawn), usual_text);

    // A stop token ends the text even with --ignore-eos. It is the last of the ids, and not part of
    // the output text.
    let stop = usual_text[5];
    let at = usual_text.iter().position(|id| *id == stop).unwrap();
    let stopped = with(&["--stop-token-ids", &format!("{stop},3")]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["stop_token_ids"], json!([stop, 3]));
    assert_eq!(text(&stopped), usual_text[..=at]);
    assert!(at > 0);
    let until = line(&["--max-tokens", &at.to_string(), "--ignore-eos"]);
    assert_eq!(until["finish_reason"], "length");
    assert_eq!(stopped["output"], until["output"]);

    // Not before the minimum number of tokens.
    let later = with(&["--stop-token-ids", &stop.to_string(), "--min-tokens", "10"]);
    assert_eq!(later["min_tokens"], 10);
    assert!(text(&later).len() > 10 && !text(&later)[..10].contains(&stop), "{later}");
}

/// Stop strings also wait for min-tokens, as in vLLM.
#[test]
fn a_stop_string_waits_for_min_tokens() {
    let usual = line(&["--max-tokens", "24", "--ignore-eos"]);
    let output = usual["output"].as_str().unwrap();
    let stop: String = output.chars().skip(2).take(1).collect();
    let options = ["--max-tokens", "24", "--ignore-eos", "--stop", &stop];
    let early = line(&options);
    assert_eq!(early["finish_reason"], "stop");
    let late = line(&[&options[..], &["--min-tokens", "12"]].concat());
    assert!(text(&late).len() > 12 && text(&early).len() < 12, "{late}");
    let late = late["output"].as_str().unwrap();
    assert!(output.starts_with(late) && late.contains(&stop));
}

/// With options of all kinds, every mode gives the same bytes.
#[test]
fn penalised_lines_are_the_same_in_every_mode() {
    let options = [
        "--max-tokens",
        "32",
        "--repetition-penalty",
        "1.2",
        "--frequency-penalty",
        "0.4",
        "--presence-penalty",
        "-0.3",
        "--logit-bias",
        "7=1.5",
        "--min-tokens",
        "20",
        "--stop-token-ids",
        "40",
    ];
    let expected = line(&[&options[..], &["--mode", "ar"]].concat());
    for mode in ["sd", "pearl", "auto"] {
        for gamma in ["auto", "4"] {
            let own = line(&[&options[..], &["--mode", mode, "--gamma", gamma]].concat());
            assert_eq!(own, expected, "{mode} {gamma}");
        }
    }
}

#[test]
fn invalid_options_are_refused_in_a_sentence() {
    let refused = |args: &[&str], parts: &[&str]| {
        let output = generate(&fixture("models/draft"), args).output().unwrap();
        assert_refused(&output, parts);
    };
    refused(&["--min-p", "-0.1"], &["min-p is -0.1", "from 0 to 1"]);
    refused(&["--min-p", "nan"], &["min-p is NaN"]);
    refused(&["--repetition-penalty", "0"], &["repetition-penalty is 0", "above 0"]);
    refused(&["--presence-penalty", "2.5"], &["presence-penalty is 2.5", "from -2 to 2"]);
    refused(&["--frequency-penalty", "-3"], &["frequency-penalty is -3", "from -2 to 2"]);
    refused(&["--logit-bias", "5=101"], &["logit-bias of token 5 is 101", "-100 to 100"]);
    refused(&["--logit-bias", "5=1,5=2"], &["--logit-bias names token 5 twice"]);
    refused(&["--logit-bias", "4000000000=1"], &["logit-bias names token 4000000000", "below"]);
    refused(&["--stop-token-ids", "4000000000"], &["stop-token-ids names token", "below"]);
    refused(&["--min-tokens", "9", "--max-tokens", "8"], &["min-tokens is 9", "at most 8"]);
    for (option, value, hint) in [
        ("--logit-bias", "5", "5=-1.5"),
        ("--logit-bias", "a=1", "5=-1.5"),
        ("--stop-token-ids", "1,x", "5,17"),
        ("--sampling", "best", "recommended"),
    ] {
        let output = generate(&fixture("models/draft"), &[option, value]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{option} {value}: {stderr}");
        assert!(stderr.contains(hint), "{option} {value}: {stderr}");
    }
}

#[test]
fn options_override_the_recommendation() {
    let checkpoint = Checkpoint::copy_of("models/draft");
    let path = checkpoint.path();
    let recommended = ["--max-tokens", "8", "--sampling", "recommended"];
    let refused = generate(path, &recommended).output().unwrap();
    assert_refused(&refused, &["generation_config.json", "recommends no sampling"]);

    checkpoint.edit_json("generation_config.json", |config| {
        config.insert("do_sample".into(), json!(true));
        config.insert("temperature".into(), json!(0.6));
        config.insert("top_k".into(), json!(20));
        config.insert("top_p".into(), json!(0.95));
        config.insert("min_p".into(), json!(0.01));
        config.insert("repetition_penalty".into(), json!(1.05));
        config.insert("typical_p".into(), json!(0.9));
    });
    let own = line_of(path, &recommended);
    let named = |line: &Value| {
        ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"]
            .map(|name| line[name].clone())
    };
    assert_eq!(named(&own), [json!(0.6), json!(20), json!(0.95), json!(0.01), json!(1.05)]);
    let options =
        ["--temperature", "0.7", "--top-k", "-1", "--min-p", "0", "--repetition-penalty", "1.5"];
    let own = line_of(path, &[&recommended[..], &options].concat());
    assert_eq!(named(&own), [json!(0.7), json!(0), json!(0.95), Value::Null, json!(1.5)]);
    let greedy = line_of(path, &["--max-tokens", "8", "--sampling", "greedy"]);
    assert_eq!(named(&greedy), [json!(0.0), json!(0), json!(1.0), Value::Null, Value::Null]);

    // Remarks about it.
    let stderr = |args: &[&str]| {
        let mut command = fathom();
        command.arg("generate").arg("--target").arg(path);
        let output =
            command.args(["--prompt", "A", "--max-tokens", "2"]).args(args).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let unasked = stderr(&[]);
    assert!(unasked.contains("--sampling recommended applies the recommendation"), "{unasked}");
    let taken = stderr(&["--sampling", "recommended"]);
    assert!(taken.contains("also recommends typical_p 0.9, for which there is no option"));
    for asked in [
        &["--sampling", "greedy"][..],
        &["--min-p", "0.1"],
        &["--repetition-penalty", "1.1"],
        &["--presence-penalty", "0"],
        &["--logit-bias", "5=1"],
    ] {
        assert!(!stderr(asked).contains("recommend"), "{asked:?}");
    }

    checkpoint.edit_json("generation_config.json", |config| {
        config.insert("temperature".into(), json!(-1.5));
    });
    let refused = generate(path, &recommended).output().unwrap();
    assert_refused(&refused, &["generation_config.json", "temperature is -1.5"]);
    checkpoint.edit_json("generation_config.json", |config| {
        config.clear();
        config.insert("no_repeat_ngram_size".into(), json!(3));
    });
    let refused = generate(path, &recommended).output().unwrap();
    assert_refused(&refused, &["no_repeat_ngram_size 3", "no option"]);
}

/// A file can be resumed with the same parameters only. The error names the one that differs.
#[test]
fn resuming_with_other_parameters_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.jsonl");
    let run = |args: &[&str]| {
        let mut command = fathom();
        command.arg("generate").arg("--target").arg(fixture("models/draft"));
        command.args(["--prompt", "A", "--max-tokens", "4", "--out"]).arg(&out);
        command.args(args).output().unwrap()
    };
    let penalised = ["--repetition-penalty", "1.1", "--logit-bias", "5=1"];
    assert!(run(&penalised).status.success());
    let whole = fs::read(&out).unwrap();
    let again = |args: &[&str]| run(&[args, &["--resume"]].concat());
    assert!(again(&penalised).status.success());
    for (args, name) in [
        (&penalised[..2], "another `logit_bias`"),
        (&penalised[2..], "another `repetition_penalty`"),
        (&[], "another `repetition_penalty`"),
        (&["--repetition-penalty", "1.2", "--logit-bias", "5=1"], "another `repetition_penalty`"),
        (&["--repetition-penalty", "1.1", "--logit-bias", "5=2"], "another `logit_bias`"),
        (&[&penalised[..], &["--min-tokens", "2"]].concat(), "another `min_tokens`"),
        (&[&penalised[..], &["--stop-token-ids", "2"]].concat(), "another `stop_token_ids`"),
    ] {
        assert_refused(&again(args), &[name]);
    }
    assert_eq!(fs::read(&out).unwrap(), whole);
}
