//! Texts of an edited target: in every mode and batch, on the CPU and on a device other than the
//! host, they are what the edited target alone writes, next to texts that are not edited.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use fathom_backend::{Backend, Precision};
use fathom_decode::engine::{
    ChangedRows, EditWatcher, Engine, EngineOptions, Gamma, ModeChoice, Request, RowWatcher,
    WatchedRows, Watcher,
};
use fathom_decode::{GammaLimits, Mode, SamplingParams};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    Change, Edit, EditProbe, Edits, LogitRows, Positions, Probe, SequenceOptions, Site, Step,
    Transformer,
};
use foreign_backend::Foreign;

const TARGET: &str = "llama3.2";
/// A draft with the same vocabulary and other weights: most drafts are rejected.
const UNRELATED: &str = "qwen3";
/// The size of the smaller of both vocabularies.
const VOCAB: usize = 400;
const PLACES: [(Site, usize); 3] = [(Site::MlpOut, 0), (Site::ResidPost, 1), (Site::Logits, 0)];
/// Requests with edits; the others have none.
const EDITED: usize = 3;

fn load<B: Backend>(name: &str, backend: B) -> Transformer<B> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name);
    Transformer::load(&dir, backend).unwrap()
}

fn cpu(precision: Precision) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(1), precision, isa: None }).unwrap()
}

fn prompt(id: usize) -> Vec<u32> {
    (0..60 + 9 * id as u32).map(|i| (i * 37 + 11) % 300).collect()
}

/// Different kinds of edits: those of a request.
fn edits(target: &Transformer<Cpu>, id: usize) -> Arc<Edits> {
    let mut rows = RowWatcher::new(&[(Site::MlpOut, 0)]).unwrap();
    pass(target, &prompt(id)[..1], &Edits::default(), Some(&mut rows));
    let direction = rows.rows().since(0, 0);
    let aligned = |cosine| Positions::Aligned { direction: direction.clone(), cosine, from: 1 };
    let edits = match id {
        0 => vec![Edit::new(Site::MlpOut, 0, aligned(0.1), Change::Clamp(0.01))],
        1 => vec![
            Edit::new(Site::MlpOut, 0, aligned(0.0), Change::Scale(-3.0)),
            Edit::new(Site::ResidPost, 1, 70..usize::MAX, Change::Scale(0.5)),
        ],
        _ => vec![Edit::new(Site::V, 1, 2..90, Change::Zero)],
    };
    Arc::new(Edits::new(edits, target.config(), None).unwrap())
}

/// One pass over a text, edited and then observed.
fn pass<B: Backend>(
    model: &Transformer<B>,
    tokens: &[u32],
    edits: &Edits,
    watcher: Option<&mut RowWatcher>,
) {
    let mut probe = EditProbe::new(edits);
    if let Some(watcher) = watcher {
        probe = probe.observed_by(watcher);
    }
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let mut step = [Step { sequence: &mut sequence, tokens, logits: LogitRows::None }];
    model.forward(&mut step, Some(&mut probe as &mut dyn Probe)).unwrap();
}

struct Written {
    tokens: Vec<u32>,
    changed: Option<ChangedRows>,
    rows: Option<WatchedRows>,
}

/// Five texts in batches of up to `batch`. With `edited`, the first three have edits.
fn write<B: Backend>(
    [target, draft]: [Transformer<B>; 2],
    (mode, gamma, batch_size): (ModeChoice, Gamma, usize),
    edits: &[Arc<Edits>],
) -> Vec<Written> {
    // The caches hold two of the texts: the others are preempted.
    let kv_pages = 2 * 140_usize.div_ceil(target.backend().kv_page());
    let options =
        EngineOptions { mode, gamma, batch_size, kv_pages, vocab: VOCAB, prefix_cache: true };
    let mut engine = Engine::new(target, Some(draft), options).unwrap();
    let (mut all, mut tickets) = (Vec::new(), Vec::new());
    for id in 0..5 {
        let mut written = Written { tokens: prompt(id), changed: None, rows: None };
        let mut watcher: Option<Box<dyn Watcher>> = None;
        if id < 4 {
            let rows = RowWatcher::new(&PLACES).unwrap();
            written.rows = Some(rows.rows());
            watcher = Some(Box::new(rows));
        }
        if let Some(edits) = edits.get(id) {
            let edited = EditWatcher::new(Arc::clone(edits), watcher).unwrap();
            written.changed = Some(edited.changed());
            watcher = Some(Box::new(edited));
        }
        let params = SamplingParams { max_tokens: 80, ..SamplingParams::default() };
        let (prompt, eos) = (prompt(id), Arc::default());
        let request = Request { watcher, ..Request::new(id as u64, prompt, params, eos) };
        tickets.push(engine.submit(request).unwrap());
        all.push(written);
    }
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            let index = tickets.iter().position(|ticket| *ticket == update.ticket).unwrap();
            all[index].tokens.extend(update.tokens);
            let fed = all[index].tokens.len() - 1;
            if let Some(changed) = &all[index].changed {
                let changed = PLACES.iter().flat_map(|(site, l)| changed.positions(*site, *l));
                assert!(changed.max().is_none_or(|last| last < fed), "rejected drafts");
            }
        }
    }
    assert_eq!(engine.metrics().preemptions > 0, batch_size > 1);
    all
}

/// Compares a text with one pass over it: the rows, the changed positions and, greedy, the tokens.
fn check<B: Backend>(model: &Transformer<B>, written: &Written, id: usize, edits: &Edits) {
    let Some(rows) = &written.rows else { return };
    let fed = &written.tokens[..written.tokens.len() - 1];
    let mut expected = RowWatcher::new(&PLACES).unwrap();
    pass(model, fed, edits, Some(&mut expected));
    let expected = expected.rows();
    for (place, name) in PLACES.iter().enumerate() {
        let bits = |rows: &WatchedRows| -> Vec<u32> {
            rows.since(place, 0).iter().map(|x| x.to_bits()).collect()
        };
        assert!(bits(rows) == bits(&expected), "request {id}, {name:?}");
    }
    let logits = expected.since(2, 0);
    let vocab = logits.len() / fed.len();
    for (row, next) in logits.chunks(vocab).zip(&written.tokens[1..]).skip(prompt(id).len() - 1) {
        let best = row[..VOCAB].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(row[*next as usize].to_bits(), best.to_bits(), "the edited target's argmax");
    }

    let Some(changed) = &written.changed else { return };
    for edit in edits.iter() {
        // The rows just before this edit: those of a pass with all other edits.
        let others = edits.iter().filter(|other| *other != edit).cloned().collect();
        let others = Edits::new(others, model.config(), None).unwrap();
        let mut before = RowWatcher::new(&[(edit.site, edit.layer)]).unwrap();
        pass(model, fed, &others, Some(&mut before));
        let before = before.rows().since(0, 0);
        let rows = before.chunks(before.len() / fed.len()).enumerate();
        let edited: Vec<usize> = rows
            .filter(|(position, row)| edit.positions.contain(*position, row))
            .map(|(position, _)| position)
            .collect();
        assert!(!edited.is_empty(), "request {id}: {edit} changes nothing");
        assert_eq!(changed.positions(edit.site, edit.layer), edited, "request {id}: {edit}");
    }
}

fn check_precision(precision: Precision, modes: &[(ModeChoice, Gamma, usize)]) {
    let model = load(TARGET, cpu(precision));
    let edits: Vec<Arc<Edits>> = (0..EDITED).map(|id| edits(&model, id)).collect();
    let both = |draft| [load(TARGET, cpu(precision)), load(draft, cpu(precision))];
    let plain = write(both(TARGET), modes[0], &[]);
    let alone = write(both(TARGET), modes[0], &edits);
    for (id, (plain, alone)) in plain.iter().zip(&alone).enumerate() {
        assert_eq!(plain.tokens == alone.tokens, id >= EDITED, "request {id}");
    }
    for mode in modes {
        for draft in [TARGET, UNRELATED] {
            let foreign = |name| load(name, Foreign::new(cpu(precision)));
            let on_cpu = write(both(draft), *mode, &edits);
            let on_device = write([foreign(TARGET), foreign(draft)], *mode, &edits);
            for (id, written) in on_cpu.iter().enumerate().chain(on_device.iter().enumerate()) {
                let what = format!("{mode:?} {draft} request {id}");
                assert_eq!(written.tokens, alone[id].tokens, "{what}");
                let none = Edits::default();
                check(&model, written, id, edits.get(id).map_or(&none, |edits| edits));
            }
        }
    }
}

#[test]
fn edited_texts_are_those_of_the_edited_target() {
    let adaptive = Gamma::Adaptive(GammaLimits { start: 2, max: 5 });
    let always = ModeChoice::Always;
    check_precision(
        Precision::F32,
        &[
            (always(Mode::Ar), Gamma::Fixed(1), 1),
            (always(Mode::Ar), Gamma::Fixed(1), 4),
            (always(Mode::Sd), Gamma::Fixed(4), 4),
            (always(Mode::Pearl), Gamma::Fixed(3), 1),
            (always(Mode::Pearl), Gamma::Fixed(3), 16),
            (always(Mode::Forked), Gamma::Fixed(3), 4),
            (ModeChoice::Auto, adaptive, 4),
        ],
    );
    let bf16 = [(always(Mode::Ar), Gamma::Fixed(1), 1), (always(Mode::Pearl), adaptive, 16)];
    check_precision(Precision::Bf16, &bf16);
}

#[test]
fn an_edit_with_values_of_other_positions_is_refused() {
    let model = load(TARGET, cpu(Precision::F32));
    for change in [Change::Copy(0), Change::Mean(vec![0..2, 3..4])] {
        let edit = Edit::new(Site::MlpOut, 0, 5, change);
        let edits = Arc::new(Edits::new(vec![edit], model.config(), None).unwrap());
        let error = EditWatcher::new(edits, None).map(drop).unwrap_err().to_string();
        assert!(error.contains("cannot be made while a text is generated"), "{error}");
    }
}
