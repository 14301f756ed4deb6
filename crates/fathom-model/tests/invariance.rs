//! The bits of a row depend only on its own sequence and the weights: not on other sequences of the
//! batch, on how the text is cut into chunks, on the number of threads, or on probes.
#![allow(clippy::unwrap_used)]

mod common;

use common::{cpu, fixture, goldens, isas, load, prompts};
use fathom_backend::Precision;
use fathom_kernels::Cpu;
use fathom_model::{
    Access, At, LogitRows, Probe, Result, Sequence, SequenceOptions, Site, Step, Transformer,
};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn new_sequence(model: &Transformer<Cpu>, planned_len: usize) -> Sequence<Cpu> {
    let options = SequenceOptions {
        planned_len: Some(planned_len),
        sink_scores: true,
        ..SequenceOptions::default()
    };
    model.new_sequence(options)
}

/// Logits of every position and sink scores of every layer, computed `chunk` tokens at a time.
fn run(model: &Transformer<Cpu>, ids: &[u32], chunk: usize) -> (Vec<u32>, Vec<u32>) {
    let mut sequence = new_sequence(model, ids.len());
    let mut logits = Vec::new();
    for tokens in ids.chunks(chunk) {
        let step = Step { sequence: &mut sequence, tokens, logits: LogitRows::All };
        logits.extend(model.forward(&mut [step], None).unwrap().step(model.backend(), 0).unwrap());
    }
    (bits(&logits), scores(model, &sequence))
}

fn scores(model: &Transformer<Cpu>, sequence: &Sequence<Cpu>) -> Vec<u32> {
    let layers = 0..model.config().layers;
    layers.flat_map(|layer| bits(&model.sink_score(sequence, layer).unwrap().unwrap())).collect()
}

/// A pseudo-random text of `n` tokens.
fn text(model: &Transformer<Cpu>, n: usize, seed: u32) -> Vec<u32> {
    let vocab = model.config().vocab as u32;
    (0..n as u32).map(|i| (i * i * 31 + i * 7 + seed * 101) % vocab).collect()
}

#[test]
fn chunks_and_threads_do_not_change_a_bit() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        for isa in isas() {
            for precision in PRECISIONS {
                let one = Transformer::load(&dir, cpu(precision, 1, Some(isa))).unwrap();
                let two = Transformer::load(&dir, cpu(precision, 2, Some(isa))).unwrap();
                let ids = text(&one, 150, 3);
                let whole = run(&one, &ids, ids.len());
                for chunk in [1, 7, 64] {
                    let what = format!("{golden} {isa:?} {precision:?} chunk {chunk}");
                    assert!(run(&one, &ids, chunk) == whole, "{what}, one thread");
                    assert!(run(&two, &ids, chunk) == whole, "{what}, two threads");
                }
            }
        }
    }
}

#[test]
fn other_sequences_do_not_change_a_bit() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        for precision in PRECISIONS {
            let model = load(&dir, precision);
            // 64 sequences of ragged lengths, each in two steps cut at different places.
            let texts: Vec<Vec<u32>> =
                (0..64).map(|i| text(&model, 2 + (i * 5) % 23, i as u32)).collect();
            let mut sequences: Vec<_> =
                texts.iter().map(|ids| new_sequence(&model, ids.len())).collect();
            let mut logits = vec![Vec::new(); texts.len()];
            for part in 0..2 {
                let mut steps: Vec<_> = sequences
                    .iter_mut()
                    .zip(&texts)
                    .map(|(sequence, ids)| {
                        let (head, tail) = ids.split_at(1 + ids.len() / 3);
                        let tokens = if part == 0 { head } else { tail };
                        Step { sequence, tokens, logits: LogitRows::All }
                    })
                    .collect();
                let out = model.forward(&mut steps, None).unwrap();
                for (i, logits) in logits.iter_mut().enumerate() {
                    logits.extend(out.step(model.backend(), i).unwrap());
                }
            }
            for (i, ids) in texts.iter().enumerate() {
                let alone = run(&model, ids, ids.len());
                let together = (bits(&logits[i]), scores(&model, &sequences[i]));
                assert!(alone == together, "{golden} {precision:?} sequence {i}");
            }
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_among_up_to_64_others() {
    let dir = fixture("golden/qwen3");
    for precision in PRECISIONS {
        let model = load(&dir, precision);
        let mine = text(&model, 9, 1);
        let alone = run(&model, &mine, 9).0;
        for others in [1, 2, 3, 5, 13, 14, 15, 31, 64] {
            let texts: Vec<Vec<u32>> =
                (0..others).map(|i| text(&model, 1 + i % 4, 50 + i as u32)).collect();
            let mut own = new_sequence(&model, mine.len());
            let mut rest: Vec<_> =
                texts.iter().map(|ids| new_sequence(&model, ids.len())).collect();
            let place = others / 2;
            let mut steps: Vec<_> = rest
                .iter_mut()
                .zip(&texts)
                .map(|(sequence, tokens)| Step { sequence, tokens, logits: LogitRows::Last })
                .collect();
            steps.insert(place, Step { sequence: &mut own, tokens: &mine, logits: LogitRows::All });
            let logits = model.forward(&mut steps, None).unwrap();
            let together = bits(&logits.step(model.backend(), place).unwrap());
            assert!(together == alone, "{precision:?} among {others}");
        }
    }
}

/// Reads every site, and counts the values.
struct Onlooker(usize);

impl Probe for Onlooker {
    fn access(&self, _: Site, _: usize) -> Access {
        Access::Read
    }

    fn read(&mut self, _: &At, values: &[f32]) -> Result<()> {
        self.0 += values.len();
        Ok(())
    }
}

/// Asks to edit every site, but changes nothing.
struct Toucher;

impl Probe for Toucher {
    fn access(&self, _: Site, _: usize) -> Access {
        Access::Edit
    }

    fn read(&mut self, at: &At, _: &[f32]) -> Result<()> {
        assert!(!at.site.editable(), "{:?}", at.site);
        Ok(())
    }

    fn edit(&mut self, _: &At, _: &mut [f32]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn probes_do_not_change_a_bit() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        for precision in PRECISIONS {
            let model = load(&dir, precision);
            let ids = text(&model, 40, 9);
            let unseen = run(&model, &ids, 40);
            let mut onlooker = Onlooker(0);
            for probe in [&mut onlooker as &mut dyn Probe, &mut Toucher] {
                let mut sequence = new_sequence(&model, ids.len());
                let logits = LogitRows::All;
                let step = Step { sequence: &mut sequence, tokens: &ids, logits };
                let logits = model.forward(&mut [step], Some(probe)).unwrap();
                let seen =
                    (bits(&logits.step(model.backend(), 0).unwrap()), scores(&model, &sequence));
                assert!(seen == unseen, "{golden} {precision:?}");
            }
            assert!(onlooker.0 > 0);
        }
    }
}

/// Rows without logits leave the pass in the last layer, unless a probe reads later sites.
#[test]
fn logits_do_not_depend_on_which_rows_have_them() {
    const WANTED: [[LogitRows; 2]; 6] = [
        [LogitRows::None, LogitRows::None],
        [LogitRows::None, LogitRows::Last],
        [LogitRows::Last, LogitRows::All],
        [LogitRows::All, LogitRows::None],
        [LogitRows::Last, LogitRows::Last],
        [LogitRows::None, LogitRows::All],
    ];
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        for precision in PRECISIONS {
            let model = load(&dir, precision);
            let vocab = model.config().vocab;
            let texts: Vec<Vec<u32>> =
                (0..WANTED.len()).map(|i| text(&model, 139 + 5 * i, i as u32)).collect();
            let whole: Vec<Vec<u32>> =
                texts.iter().map(|ids| run(&model, ids, ids.len()).0).collect();
            for mut probe in [None, Some(Onlooker(0))] {
                let mut sequences: Vec<_> = texts
                    .iter()
                    .map(|ids| {
                        let planned_len = Some(ids.len());
                        model.new_sequence(SequenceOptions {
                            planned_len,
                            sink_scores: false,
                            ..SequenceOptions::default()
                        })
                    })
                    .collect();
                for part in 0..2 {
                    let cut = |ids: &[u32]| 1 + ids.len() * 2 / 3;
                    let mut steps: Vec<_> = sequences
                        .iter_mut()
                        .zip(texts.iter().zip(WANTED))
                        .map(|(sequence, (ids, logits))| {
                            let (head, tail) = ids.split_at(cut(ids));
                            let tokens = if part == 0 { head } else { tail };
                            Step { sequence, tokens, logits: logits[part] }
                        })
                        .collect();
                    let probe = probe.as_mut().map(|probe| probe as &mut dyn Probe);
                    let out = model.forward(&mut steps, probe).unwrap();
                    for (i, ids) in texts.iter().enumerate() {
                        let rows = if part == 0 { 0..cut(ids) } else { cut(ids)..ids.len() };
                        let rows = match WANTED[i][part] {
                            LogitRows::None => rows.end..rows.end,
                            LogitRows::Last => rows.end - 1..rows.end,
                            LogitRows::All => rows,
                        };
                        let want = &whole[i][rows.start * vocab..rows.end * vocab];
                        let what = format!("{golden} {precision:?} sequence {i} part {part}");
                        assert!(bits(&out.step(model.backend(), i).unwrap()) == want, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_truncated_sequence_equals_one_that_was_never_longer() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        for precision in PRECISIONS {
            let model = load(&dir, precision);
            let (kept, wrong, right) =
                (text(&model, 70, 1), text(&model, 90, 2), text(&model, 11, 3));
            let options = SequenceOptions {
                planned_len: Some(81),
                sink_scores: false,
                ..SequenceOptions::default()
            };
            let last = |wrong: Option<&[u32]>| {
                let mut sequence = model.new_sequence(options);
                let mut go = |tokens: &[u32], cut: bool| {
                    let logits = LogitRows::All;
                    let step = Step { sequence: &mut sequence, tokens, logits };
                    let logits = model.forward(&mut [step], None).unwrap();
                    if cut {
                        model.truncate(&mut sequence, kept.len()).unwrap();
                        assert_eq!(sequence.tokens(), kept);
                    }
                    bits(&logits.step(model.backend(), 0).unwrap())
                };
                go(&kept, false);
                if let Some(wrong) = wrong {
                    go(wrong, true);
                }
                go(&right, false)
            };
            assert!(last(Some(&wrong)) == last(None), "{golden} {precision:?}");
        }
    }
}

/// Replaces one site of one layer.
struct Replace(Site, usize, fn(&mut [f32]));

impl Probe for Replace {
    fn access(&self, site: Site, layer: usize) -> Access {
        if (site, layer) == (self.0, self.1) { Access::Edit } else { Access::Skip }
    }

    fn read(&mut self, _: &At, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn edit(&mut self, _: &At, values: &mut [f32]) -> Result<()> {
        (self.2)(values);
        Ok(())
    }
}

#[test]
fn an_edit_affects_only_what_follows_it() {
    let model = load(&fixture("golden/llama2"), Precision::F32);
    let ids = &prompts(&fixture("golden/llama2"))[0].input_ids;
    let logits = |probe: Option<&mut dyn Probe>| {
        let mut sequence = model.new_sequence(SequenceOptions::default());
        let step = Step { sequence: &mut sequence, tokens: ids, logits: LogitRows::All };
        bits(&model.forward(&mut [step], probe).unwrap().step(model.backend(), 0).unwrap())
    };
    let zero = |values: &mut [f32]| values.fill(0.0);
    let plain = logits(None);
    // Zeroing the MLP of layer 2 at its gate, its activation, its product or its output has the
    // same effect, and it is an effect.
    let off = logits(Some(&mut Replace(Site::MlpOut, 2, zero)));
    assert!(off != plain);
    for site in [Site::MlpGate, Site::MlpUp, Site::MlpAct, Site::MlpElementwise] {
        assert!(logits(Some(&mut Replace(site, 2, zero))) == off, "{site}");
    }
    // The same for attention through its values, its heads and its output.
    let off = logits(Some(&mut Replace(Site::AttnOut, 1, zero)));
    for site in [Site::V, Site::AttnCtx] {
        assert!(logits(Some(&mut Replace(site, 1, zero))) == off, "{site}");
    }
    // With zero queries all keys get equal weight, whatever their values.
    let uniform = logits(Some(&mut Replace(Site::Q, 0, zero)));
    assert!(uniform != plain);
    assert!(logits(Some(&mut Replace(Site::QPreRope, 0, zero))) == uniform);
    assert!(logits(Some(&mut Replace(Site::K, 0, zero))) == uniform);
}
