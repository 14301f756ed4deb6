//! A pass that computes only the first layers has the bits of a complete pass.
#![allow(clippy::unwrap_used)]

mod common;

use common::{cpu, fixture, goldens, prompts};
use fathom_backend::Precision;
use fathom_kernels::Cpu;
use fathom_model::{
    Access, At, CaptureRequest, LogitRows, Probe, Recorder, Result, Sequence, SequenceOptions,
    Site, Step, Transformer, capture_in_memory,
};

/// Every site of the first `layers` layers.
fn request(model: &Transformer<Cpu>, layers: usize) -> CaptureRequest {
    let places = Site::all().filter(|site| site.per_layer());
    let mut places: Vec<(Site, Option<usize>)> =
        places.flat_map(|site| (0..layers).map(move |layer| (site, Some(layer)))).collect();
    places.push((Site::Embed, None));
    CaptureRequest::new(&places, &[], None, model.config()).unwrap()
}

#[test]
fn partial_passes_have_the_bits_of_complete_ones() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        let model = Transformer::load(&dir, cpu(Precision::F32, 2, None)).unwrap();
        for prompt in prompts(&dir) {
            let ids = prompt.input_ids;
            let everything = CaptureRequest::new(
                &Site::all().map(|site| (site, None)).collect::<Vec<_>>(),
                &[],
                None,
                model.config(),
            );
            let whole = capture_in_memory(&model, &ids, &everything.unwrap(), &mut |_| {}).unwrap();
            for layers in 0..=model.config().layers {
                let request = request(&model, layers);
                assert_eq!(request.layers(model.config()), layers);
                for chunk in [7, ids.len()] {
                    let mut recorder = Recorder::new(&request, model.config(), &ids).unwrap();
                    let options = request.sequence_options(model.config(), ids.len());
                    let mut sequence = model.new_sequence(options);
                    let probe: &mut dyn Probe = &mut recorder;
                    model.prefill(&mut sequence, &ids, chunk, Some(probe), &mut |_| {}).unwrap();
                    assert_eq!(sequence.tokens(), ids);
                    assert!(model.sink_score(&sequence, layers).unwrap().is_none());
                    let captured = recorder.finish(&model, &sequence).unwrap();
                    let per_layer = Site::all().filter(|site| site.per_layer()).count();
                    assert_eq!(captured.len(), 1 + layers * per_layer);
                    for part in captured {
                        assert!(whole.contains(&part), "{golden} {} {}", part.site, part.layer);
                    }
                }
            }
        }
    }
}

fn step(sequence: &mut Sequence<Cpu>, logits: LogitRows) -> Step<'_, Cpu> {
    Step { sequence, tokens: &[1], logits }
}

/// Counts the values it receives, and ends the pass before a layer.
struct Stop {
    before: usize,
    asked: Vec<usize>,
    seen: usize,
}

impl Probe for Stop {
    fn access(&self, site: Site, _: usize) -> Access {
        if site == Site::ResidPost { Access::Read } else { Access::Skip }
    }

    fn before_layer(&mut self, layer: usize) -> Result<()> {
        self.asked.push(layer);
        match layer < self.before {
            true => Ok(()),
            false => Err(fathom_model::Error::Request("that is enough".to_owned())),
        }
    }

    fn read(&mut self, _: &At, _: &[f32]) -> Result<()> {
        self.seen += 1;
        Ok(())
    }
}

#[test]
fn a_probe_is_called_before_each_layer_and_may_end_the_pass() {
    let model = Transformer::load(&fixture("golden/qwen3"), cpu(Precision::F32, 1, None)).unwrap();
    let layers = model.config().layers;
    for before in 0..=layers {
        let mut probe = Stop { before, asked: Vec::new(), seen: 0 };
        let mut sequence = model.new_sequence(SequenceOptions::default());
        let ids = [1, 2, 3, 4, 5];
        let ended = model.prefill(&mut sequence, &ids, 2, Some(&mut probe), &mut |_| {});
        assert_eq!(ended.is_ok(), before == layers);
        match ended {
            Ok(()) => assert_eq!((probe.asked.len(), probe.seen), (3 * layers, 3 * layers)),
            Err(error) => {
                assert_eq!(error.to_string(), "that is enough");
                assert_eq!(probe.asked, (0..=before).collect::<Vec<_>>());
                assert_eq!(probe.seen, before);
            }
        }
    }
}

#[test]
fn partial_passes_have_no_logits_and_one_number_of_layers() {
    let model = Transformer::load(&fixture("golden/qwen2"), cpu(Precision::F32, 1, None)).unwrap();
    let of = |layers| model.new_sequence(SequenceOptions { layers, ..SequenceOptions::default() });
    let (mut two, mut three, mut all) = (of(Some(2)), of(Some(3)), of(Some(100)));
    let refused = model.forward(&mut [step(&mut two, LogitRows::Last)], None).err().unwrap();
    assert_eq!(refused.to_string(), "a pass that ends after 2 layers has no logits");
    let both = &mut [step(&mut two, LogitRows::None), step(&mut three, LogitRows::None)];
    let refused = model.forward(both, None).err().unwrap();
    assert!(refused.to_string().contains("the same number of layers"), "{refused}");
    assert!(model.forward(&mut [step(&mut all, LogitRows::Last)], None).is_ok());
}
