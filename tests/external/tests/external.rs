//! Checks the results of the third-party program.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use external_user::{Found, sinks, write};
use fathom_lm::{Model, demo};

/// An empty directory for one test.
fn empty(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("external-{name}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn it_finds_the_planted_sinks_and_no_others() {
    let dir = empty("planted");
    let truth = demo::plant(&dir, &demo::PlantOptions::default()).unwrap();
    let planted: Vec<Found> = (0..)
        .zip(&truth.sequences)
        .flat_map(|(number, sequence)| {
            let found =
                |sink: &demo::PlantedSink| (number, sink.position, sink.class, sink.layers.clone());
            sequence.sinks.iter().map(found).collect::<Vec<_>>()
        })
        .collect();
    assert!(planted.len() > 300 && !truth.sequences[0].decoys.is_empty());
    assert_eq!(sinks(&dir, &dir.join("traces.jsonl")).unwrap(), planted);
}

/// With and without a draft, each token is the argmax of a plain forward pass of the target.
#[test]
fn it_generates_the_targets_greedy_tokens() {
    let models = demo::trained_pair(&empty("pair")).unwrap();
    let prompt = "Q: Mia has 3 boxes with 12 pencils each. How many pencils are there?";
    let (text, tokens) = write(&models.target, Some(&models.draft), prompt).unwrap();
    assert_eq!((text.clone(), tokens.clone()), write(&models.target, None, prompt).unwrap());

    let model = Model::load(models.target.display().to_string()).unwrap();
    let mut ids = model.encode(prompt).unwrap().ids;
    let prompt_len = ids.len();
    ids.extend(&tokens);
    let best = model.run(&ids, None).unwrap().argmax();
    let greedy: Vec<u32> =
        best[prompt_len - 1..ids.len() - 1].iter().map(|id| u32::try_from(*id).unwrap()).collect();
    assert_eq!(greedy, tokens);
    assert!(!tokens.is_empty() && model.decode(&tokens).unwrap().starts_with(&text), "{text}");
}

#[test]
fn missing_files_are_reported() {
    let dir = empty("nothing");
    let error = sinks(&dir, &dir.join("traces.jsonl")).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    assert!(matches!(write(&dir.join("absent"), None, "a"), Err(fathom_lm::Error::Request(_))));
}
