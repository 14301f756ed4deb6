//! A draft changes neither the tokens of a text nor where and why it ends.
//!
//! Every mode is compared with plain decoding, with random draft models: contexts from one token
//! up, truncated or padded logits, other rotary scalings, end-of-text ids, weights and precisions,
//! and logits that are not numbers.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_backend::Precision;
use fathom_decode::engine::{Engine, EngineMetrics, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{Finish, GammaLimits, Mode, SamplingParams, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::Transformer;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Bytes of a bfloat16.
const BF16: usize = 2;

/// The target: tiny and untrained, with or without length-dependent rotary scaling.
#[derive(Clone, Copy, Debug)]
struct Base {
    name: &'static str,
    /// Width of its logits. The last few are padding.
    rows: usize,
    hidden: usize,
    /// Number of rotated pairs of components per head.
    pairs: usize,
}

const LLAMA: Base = Base { name: "llama3.2", rows: 512, hidden: 64, pairs: 8 };
const PHI: Base = Base { name: "phi4-mini", rows: 448, hidden: 64, pairs: 6 };

impl Base {
    fn dir(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(self.name)
    }

    /// Size of the vocabulary. The other ids are padding.
    fn vocab(self) -> usize {
        self.rows - 12
    }
}

/// The draft's weights relative to the target's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    Same,
    /// Other weights: hardly any draft is accepted.
    Unrelated,
    /// Its logits overflow.
    Overflowing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rope {
    Same,
    Default,
    Long,
    /// The following are for `LLAMA` only. Phi3 does not support them.
    Linear,
    Dynamic,
    Yarn,
}

#[derive(Clone, Debug)]
struct Draft {
    context: usize,
    rows: usize,
    weights: Weights,
    rope: Rope,
    eos: u32,
    precision: Precision,
}

#[derive(Clone, Debug)]
struct Case {
    base: Base,
    target_context: usize,
    precision: Precision,
    draft: Draft,
    mode: ModeChoice,
    gamma: Gamma,
    batch: usize,
    kv_pages: usize,
    /// Lengths of prompts and maximum lengths of texts.
    requests: Vec<(usize, usize)>,
    /// Prompts have ids < `prompt_ids`.
    prompt_ids: usize,
    /// Whether some tokens end a text.
    eos: bool,
    seed: u32,
}

fn precision() -> impl Strategy<Value = Precision> {
    prop_oneof![Just(Precision::F32), Just(Precision::Bf16)]
}

fn draft(base: Base) -> impl Strategy<Value = Draft> {
    let rope = match base.pairs {
        8 => vec![
            Rope::Same,
            Rope::Same,
            Rope::Default,
            Rope::Long,
            Rope::Linear,
            Rope::Dynamic,
            Rope::Yarn,
        ],
        _ => vec![Rope::Same, Rope::Same, Rope::Default, Rope::Long],
    };
    (
        prop_oneof![1..12_usize, 12..100_usize, Just(4096)],
        prop_oneof![Just(base.rows), 1..base.vocab(), base.rows + 1..base.rows + 90],
        prop_oneof![
            6 => Just(Weights::Same),
            1 => Just(Weights::Unrelated),
            1 => Just(Weights::Overflowing)
        ],
        prop::sample::select(rope),
        0..base.rows as u32,
        precision(),
    )
        .prop_map(|(context, rows, weights, rope, eos, precision)| Draft {
            context,
            rows,
            weights,
            rope,
            eos,
            precision,
        })
}

fn case(base: Base) -> impl Strategy<Value = Case> {
    let mode = prop_oneof![
        1 => Just(ModeChoice::Always(Mode::Sd)),
        2 => Just(ModeChoice::Always(Mode::Pearl)),
        2 => Just(ModeChoice::Always(Mode::Forked)),
        1 => Just(ModeChoice::Auto)
    ];
    let gamma = prop_oneof![
        4 => (1..9_usize).prop_map(Gamma::Fixed),
        1 => Just(Gamma::Adaptive(GammaLimits { start: 3, max: 8 }))
    ];
    let request = (prop_oneof![1..20_usize, 20..130_usize], 1..60_usize);
    (
        (draft(base), prop_oneof![131..200_usize, Just(256)], precision()),
        (mode, gamma, 1..6_usize, 1..5_usize),
        (prop::collection::vec(request, 1..8), any::<bool>(), any::<bool>(), any::<u32>()),
    )
        .prop_map(move |(models, how, (requests, all_ids, eos, seed))| {
            let (draft, target_context, precision) = models;
            let (mode, gamma, batch, kv_pages) = how;
            let prompt_ids = if all_ids { base.vocab() } else { base.vocab().min(draft.rows) };
            // A prompt must leave room for a token, even in one page.
            let requests = requests.into_iter().map(|(len, most)| (len.min(127), most)).collect();
            Case {
                base,
                target_context,
                precision,
                draft,
                mode,
                gamma,
                batch,
                kv_pages,
                requests,
                prompt_ids,
                eos,
                seed,
            }
        })
}

impl Case {
    fn target(&self) -> Transformer<Cpu> {
        let context = self.target_context;
        let dir = tempfile::tempdir().unwrap();
        fs::copy(self.base.dir().join("model.safetensors"), dir.path().join("model.safetensors"))
            .unwrap();
        self.write_config(dir.path(), |config| {
            config.insert("max_position_embeddings".to_owned(), json!(context));
        });
        load(dir.path(), self.precision)
    }

    fn draft(&self) -> Transformer<Cpu> {
        let Draft { context, rows, rope, eos, .. } = self.draft;
        let dir = tempfile::tempdir().unwrap();
        self.write_weights(dir.path());
        let pairs = self.base.pairs;
        self.write_config(dir.path(), |config| {
            config.insert("max_position_embeddings".to_owned(), json!(context));
            config.insert("vocab_size".to_owned(), json!(rows));
            config.insert("eos_token_id".to_owned(), json!([eos]));
            let scaling = match rope {
                Rope::Same => return,
                Rope::Default => json!({ "rope_type": "default" }),
                Rope::Linear => json!({ "rope_type": "linear", "factor": 4.0 }),
                Rope::Dynamic => json!({ "rope_type": "dynamic", "factor": 2.0 }),
                Rope::Yarn => json!({ "rope_type": "yarn", "factor": 4.0 }),
                Rope::Long => json!({
                    "rope_type": "longrope",
                    "factor": 2.0,
                    "short_factor": vec![1.5; pairs],
                    "long_factor": vec![3.0; pairs],
                }),
            };
            let original = json!(20);
            config.insert("original_max_position_embeddings".to_owned(), original);
            config.insert("rope_scaling".to_owned(), scaling);
        });
        load(dir.path(), self.draft.precision)
    }

    fn write_config(&self, dir: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
        let config = fs::read(self.base.dir().join("config.json")).unwrap();
        let mut config: Map<String, Value> = serde_json::from_slice(&config).unwrap();
        // Otherwise longrope's factor would depend on the context length, and a draft with another
        // context would be another model.
        config["rope_scaling"]["factor"] = json!(8.0);
        edit(&mut config);
        fs::write(dir.join("config.json"), Value::Object(config).to_string()).unwrap();
    }

    /// Writes the target's weights with another number of rows in the embedding, which is also the
    /// output head, and with other values depending on [`Weights`].
    fn write_weights(&self, dir: &Path) {
        let file = fs::read(self.base.dir().join("model.safetensors")).unwrap();
        let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&file[8..8 + header_len]).unwrap();
        let (mut tensors, mut data) = (Map::new(), Vec::new());
        for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
            let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let values = &file[8 + header_len + offset(0)..8 + header_len + offset(1)];
            let mut values = values.to_vec();
            let mut shape = entry["shape"].clone();
            if name == "model.embed_tokens.weight" {
                values.resize(self.draft.rows * self.base.hidden * BF16, 0x3c);
                shape[0] = json!(self.draft.rows);
            }
            match self.draft.weights {
                Weights::Same => {}
                // Shifts all rows by one.
                Weights::Unrelated => values.rotate_left(self.base.hidden * BF16),
                Weights::Overflowing if name == "model.norm.weight" => {
                    values.fill(0x7f); // 0x7f7f is 3.4e38
                }
                Weights::Overflowing => {}
            }
            let start = data.len();
            data.extend(values);
            let offsets = [start, data.len()];
            tensors.insert(
                name,
                json!({ "dtype": entry["dtype"], "shape": shape, "data_offsets": offsets }),
            );
        }
        let header = Value::Object(tensors).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&data);
        fs::write(dir.join("model.safetensors"), file).unwrap();
    }

    /// The texts of all requests and the engine's metrics.
    fn run(
        &self,
        draft: Option<Transformer<Cpu>>,
        options: EngineOptions,
        temperature: f32,
    ) -> (Vec<Text>, EngineMetrics) {
        let mut engine = Engine::new(self.target(), draft, options).unwrap();
        let mut texts: HashMap<u64, Text> = HashMap::new();
        for (id, &(len, max_tokens)) in (0..).zip(&self.requests) {
            let token = |i: usize| {
                let random = philox4x32([i as u32, id as u32, 0, 0], [self.seed, 1])[0];
                random % self.prompt_ids as u32
            };
            let eos: Arc<[u32]> = match self.eos {
                true => (0..self.base.rows as u32).filter(|id| id % 30 == 7).collect(),
                false => Arc::default(),
            };
            let params =
                SamplingParams { temperature, max_tokens, seed: 3, ..SamplingParams::default() };
            let prompt = (0..len).map(token).collect();
            engine.submit(Request::new(id, prompt, params, eos)).unwrap();
            texts.insert(id, Text::default());
        }
        while engine.pending() > 0 {
            for update in engine.step().unwrap() {
                let text = texts.get_mut(&update.request).unwrap();
                text.tokens.extend(update.tokens);
                if let Some(done) = update.done {
                    text.finish = Some(done.finish);
                    text.accepted = done.acceptance.accepted();
                }
            }
        }
        let ids = 0..self.requests.len() as u64;
        (ids.map(|id| texts.remove(&id).unwrap()).collect(), engine.metrics().clone())
    }

    fn options(&self) -> EngineOptions {
        EngineOptions {
            mode: self.mode,
            gamma: self.gamma,
            batch_size: self.batch,
            kv_pages: self.kv_pages,
            vocab: self.base.vocab(),
            prefix_cache: true,
        }
    }

    /// The texts of plain decoding without a draft, one request at a time.
    fn plain(&self, temperature: f32) -> Vec<Text> {
        let mode = ModeChoice::Always(Mode::Ar);
        self.run(None, EngineOptions { mode, batch_size: 1, ..self.options() }, temperature).0
    }

    /// Whether every draft must be accepted: the draft model equals the target up to its context.
    fn draft_is_the_target(&self) -> bool {
        let Draft { rows, weights, rope, precision, .. } = self.draft;
        weights == Weights::Same
            && rope == Rope::Same
            && precision == self.precision
            && rows >= self.base.vocab()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Text {
    tokens: Vec<u32>,
    finish: Option<Finish>,
    accepted: u64,
}

impl Text {
    /// The part that must not depend on a draft.
    fn result(&self) -> (&[u32], Option<Finish>) {
        (&self.tokens, self.finish)
    }
}

fn load(dir: &Path, precision: Precision) -> Transformer<Cpu> {
    let options = CpuOptions { threads: Some(1), precision, isa: None };
    Transformer::load(dir, Cpu::new(options).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn a_text_with_a_draft_is_the_text_without(case in prop_oneof![case(LLAMA), case(PHI)]) {
        let expected = case.plain(0.0);
        let (texts, metrics) = case.run(Some(case.draft()), case.options(), 0.0);
        for (i, (text, expected)) in texts.iter().zip(&expected).enumerate() {
            prop_assert_eq!(text.result(), expected.result(), "request {}", i);
        }
        if !case.draft_is_the_target() || case.mode == ModeChoice::Auto {
            return Ok(());
        }
        // Up to the draft's context the whole text is drafted and accepted, in SD except for the
        // token that the target adds to each chunk.
        let mut longest = 0;
        for (&(prompt, _), text) in case.requests.iter().zip(&texts) {
            let len = text.tokens.len();
            let followed = (case.draft.context + 1).saturating_sub(prompt).min(len) as u64;
            if case.mode != ModeChoice::Always(Mode::Sd) {
                prop_assert_eq!(text.accepted, followed);
            } else {
                prop_assert!((followed / 2..=followed).contains(&text.accepted));
            }
            longest = longest.max(prompt + len);
        }
        // Nothing is drafted after the last token of a text.
        prop_assert_eq!(metrics.steps_without_draft > 0, longest > case.draft.context + 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// In PEARL, sampled text does not depend on γ or on the batch: draws are keyed by position,
    /// and where drafting stops depends on the text alone.
    #[test]
    fn where_drafting_stops_depends_on_the_text_alone(case in prop_oneof![case(LLAMA), case(PHI)]) {
        let pearl = |gamma, batch_size| {
            let mode = ModeChoice::Always(Mode::Pearl);
            let options = EngineOptions { mode, gamma, batch_size, ..case.options() };
            case.run(Some(case.draft()), options, 0.9).0
        };
        let (alone, batched) = (pearl(Gamma::Fixed(1), 1), pearl(case.gamma, case.batch));
        for (i, (alone, batched)) in alone.iter().zip(&batched).enumerate() {
            prop_assert_eq!(alone.result(), batched.result(), "request {}", i);
        }
        // A text that the draft never follows is that of plain decoding.
        for ((request, text), plain) in case.requests.iter().zip(&batched).zip(&case.plain(0.9)) {
            if request.0 > case.draft.context {
                prop_assert_eq!(text.result(), plain.result());
            }
        }
    }
}

/// A benchmark with a draft that cannot follow the texts to their end: after a rewind to the
/// prompts they are speculated on as far as before.
#[test]
fn rewound_texts_are_speculated_on_again() {
    let case = Case {
        base: LLAMA,
        target_context: 256,
        precision: Precision::F32,
        draft: Draft {
            context: 40,
            rows: LLAMA.rows,
            weights: Weights::Same,
            rope: Rope::Same,
            eos: 2,
            precision: Precision::F32,
        },
        mode: ModeChoice::Always(Mode::Pearl),
        gamma: Gamma::Fixed(3),
        batch: 3,
        kv_pages: 20,
        requests: vec![(1, 100), (30, 100), (50, 100)],
        prompt_ids: LLAMA.vocab(),
        eos: false,
        seed: 1,
    };
    let mut engine = Engine::new(case.target(), Some(case.draft()), case.options()).unwrap();
    for (id, &(len, max_tokens)) in (0..).zip(&case.requests) {
        let prompt = (0..len as u32).collect();
        let params = SamplingParams { max_tokens, ..SamplingParams::default() };
        engine.submit(Request::new(id, prompt, params, Arc::default())).unwrap();
    }
    engine.prefill().unwrap();
    let mut runs = Vec::new();
    let modes = [Mode::Ar, Mode::Pearl, Mode::Sd, Mode::Forked];
    for mode in [modes, modes].concat() {
        engine.set_mode(ModeChoice::Always(mode)).unwrap();
        engine.replace_metrics(EngineMetrics::default());
        let mut texts: HashMap<u64, Vec<u32>> = HashMap::new();
        // Beyond the draft's context but not to the end: ended requests leave the batch.
        for _ in 0..60 {
            for update in engine.step().unwrap() {
                assert!(update.done.is_none());
                texts.entry(update.request).or_default().extend(update.tokens);
            }
        }
        engine.rewind().unwrap();
        let metrics = engine.metrics();
        runs.push((mode, texts, metrics.acceptance.clone(), metrics.steps.clone()));
    }
    let (_, plain, ..) = &runs[0];
    for (mode, texts, acceptance, steps) in &runs {
        for (id, text) in texts {
            let both = text.len().min(plain[id].len());
            assert_eq!(text[..both], plain[id][..both], "{mode} {id}");
        }
        match mode {
            Mode::Ar => assert_eq!(acceptance.rate(), None),
            // After the prompts of 1 and 30 tokens, 40 and 11 positions can be drafted. The prompt
            // of 50 exceeds the context.
            Mode::Pearl | Mode::Forked => assert_eq!(acceptance.accepted(), 40 + 11),
            Mode::Sd => assert!((38..=51).contains(&acceptance.accepted()), "{acceptance:?}"),
            Mode::Suffix => unreachable!("it has no drafts of a model and is not run here"),
        }
        // Once no sequence speculates, the mode is `ar`.
        assert!(steps[&Mode::Ar] >= 20, "{steps:?}");
        assert_eq!(steps.len(), if *mode == Mode::Ar { 1 } else { 2 });
    }
    for (first, again) in [(1, 5), (2, 6), (3, 7)] {
        assert_eq!(runs[first].2, runs[again].2);
    }
}
