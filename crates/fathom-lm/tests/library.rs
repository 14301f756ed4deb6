//! The library beyond its examples: equal results in memory, in files and in threads, and errors.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::thread;

use fathom_lm::{
    Analysis, Error, Explain, ExplainOptions, GenerateOptions, Input, KeyOptions, Model,
    ModelOptions, Pair, Precision, Preset, PromptOptions, RunInputs, SamplingParams, ScanOptions,
    Site, Traces, demo, explain,
};
use tempfile::TempDir;

/// The planted model with two traces.
fn planted() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let options = demo::PlantOptions { seed: 1, traces: 2, ..Default::default() };
    demo::plant(&dir.path().join("model"), &options).unwrap();
    dir
}

fn options(dir: &TempDir) -> ModelOptions {
    Model::options(dir.path().join("model").display().to_string()).threads(2)
}

fn traces(dir: &TempDir, model: &Model) -> Traces {
    Traces::read(dir.path().join("model/traces.jsonl"), model).unwrap()
}

const OPTIONS: ExplainOptions = ExplainOptions { seed: 0, max_sinks: 5, keys: KeyOptions::DEFAULT };

#[test]
fn a_cache_holds_what_a_capture_writes() {
    let dir = planted();
    let model = options(&dir).load().unwrap();
    let ids = traces(&dir, &model).iter().next().unwrap().ids[..70].to_vec();
    let names: Vec<&str> = Site::all().map(Site::name).collect();
    let whole = model.capture_request(&names).unwrap();
    let some = whole.clone().at_positions(vec![69, 3, 4, 3]);
    for (number, request) in [whole, some].iter().enumerate() {
        let cache = model.cache(&ids, request).unwrap();
        let file = dir.path().join(format!("{number}.safetensors"));
        model.capture(&ids, request, &file, &mut |_| {}).unwrap();
        let bytes = fs::read(&file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), cache.len());
        let layers = model.config().layers;
        let tensors_of = |site: Site| if site.per_layer() { layers } else { 1 };
        assert_eq!(cache.len(), Site::all().map(tensors_of).sum::<usize>());
        for (name, array) in cache.iter() {
            let tensor = tensors.tensor(&name).unwrap();
            assert_eq!(tensor.shape(), array.shape, "{name}");
            let values: Vec<u8> = array.values.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert!(tensor.data() == values, "{name}");
        }
    }
}

#[test]
fn threads_share_one_model_and_get_the_same_bits() {
    let dir = planted();
    let model = options(&dir).load().unwrap();
    let ids = traces(&dir, &model).iter().next().unwrap().ids.clone();
    let alone = model.run(&ids, None).unwrap();
    let others: Vec<_> = (0..4)
        .map(|_| {
            let (model, ids) = (model.clone(), ids.clone());
            thread::spawn(move || model.run(&ids, None).unwrap())
        })
        .collect();
    for other in others {
        assert!(other.join().unwrap() == alone);
    }
}

#[test]
fn a_run_is_explained_by_its_own_model_and_traces_only() {
    let dir = planted();
    let model = options(&dir).load().unwrap();
    let all = traces(&dir, &model);
    let run = model.scan(&all, ScanOptions::new(Preset::Paper)).run().unwrap();
    let refused = |model: &Model, traces: &Traces| {
        let explained = explain(&run, model, traces, &[Analysis::Stages], OPTIONS, &mut ());
        explained.unwrap_err().to_string()
    };

    let bf16 = options(&dir).precision(Precision::Bf16).load().unwrap();
    assert!(refused(&bf16, &all).contains("scanned in f32, and the model is loaded in bf16"));
    let fewer = Traces::from_ids([all.as_slice()[0].ids.clone()], &model).unwrap();
    assert!(refused(&model, &fewer).contains("not those of the run"));
    let other = tempfile::tempdir().unwrap();
    let seed_2 = demo::PlantOptions { seed: 2, traces: 1, ..Default::default() };
    demo::plant(&other.path().join("model"), &seed_2).unwrap();
    let other = options(&other).load().unwrap();
    assert!(refused(&other, &all).contains("weights differ"));
    assert!(explain(&run, &model, &all, &[Analysis::Stages], OPTIONS, &mut ()).is_ok());
}

/// Traces in memory are scanned like those of a file, and can be explained if they are passed
/// again.
#[test]
fn traces_in_memory_give_the_same_run() {
    let dir = planted();
    let model = options(&dir).load().unwrap();
    let of_file = traces(&dir, &model);
    let text = fs::read_to_string(dir.path().join("model/traces.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let in_memory = Traces::from_rows(rows, &model).unwrap();
    assert_eq!(in_memory.note().ids_sha256, of_file.note().ids_sha256);

    let scan = |traces| model.scan(traces, ScanOptions::new(Preset::Paper)).run().unwrap();
    let run = scan(&in_memory);
    assert_eq!(run.detections().unwrap(), scan(&of_file).detections().unwrap());
    let path = run.dir().to_owned();

    let stages = [Analysis::Stages];
    let explained = Explain::new(&run, &stages, OPTIONS).unwrap();
    let error = explained.run(&RunInputs::default(), &mut ()).unwrap_err().to_string();
    assert!(error.contains("in memory"), "{error}");
    explained.with_model(&model, &in_memory, &mut ()).unwrap();
    assert!(Explain::new(&run, &stages, OPTIONS).unwrap().remaining().is_empty());

    let kept = run.clone();
    drop(run);
    assert!(path.exists() && kept.is_temporary());
    drop(kept);
    assert!(!path.exists(), "the last clone removes the directory");
}

#[test]
fn a_prompt_may_be_text_messages_or_ids() {
    let dir = tempfile::tempdir().unwrap();
    let models = demo::trained_pair(dir.path()).unwrap();
    let model = |dir: &Path| ModelOptions::new(dir.display().to_string());
    let pair = Pair::open(model(&models.target), Some(model(&models.draft))).unwrap();
    let params = SamplingParams { max_tokens: 12, ..SamplingParams::default() };
    let ids = pair.encode("What is 6 times 7?").unwrap().ids;
    let prompts = [Input::from("What is 6 times 7?"), Input::from(ids.clone())];
    let options = GenerateOptions::default();
    let texts = pair.generate(prompts, &params, &options).unwrap();
    assert_eq!(texts[0].tokens, texts[1].tokens);
    assert_eq!(texts[1].task.ids[..], ids[..]);

    let refused = |prompt: Input, params: &SamplingParams| {
        pair.generate([prompt], params, &options).unwrap_err().to_string()
    };
    assert!(refused("".into(), &params).contains("empty"));
    let long = vec![5; pair.context()];
    assert!(refused(long.into(), &params).contains("expected fewer than"));
    let nothing = SamplingParams { max_tokens: 0, ..params.clone() };
    assert!(refused("a".into(), &nothing).contains("max-tokens is 0"));
}

#[test]
fn prompt_options_change_the_ids() {
    let dir = tempfile::tempdir().unwrap();
    let models = demo::trained_pair(dir.path()).unwrap();
    let target = models.target.display().to_string();
    let prompts = PromptOptions { system: Some("Be brief.".to_owned()), ..Default::default() };
    let files = Model::options(&target).prompt_options(prompts.clone()).open().unwrap();
    let encoded = files.encode("hello").unwrap();
    assert!(encoded.text.unwrap().contains("Be brief."));
    assert!(files.decode(&encoded.ids).unwrap().contains("Be brief."));

    // An option without effect is an error, and so is text for a model opened for ids only.
    let bare = Model::options(&target).prompt_options(prompts).chat_template(false).open();
    assert!(matches!(bare.map(|_| ()), Err(Error::Request(_))));
    let ids_only = Model::options(&target).ids_only().open().unwrap();
    assert!(ids_only.encode(vec![1, 2]).is_ok());
    assert!(ids_only.encode("hello").unwrap_err().to_string().contains("tokenizer"));
}
