//! Passes with hooks, captures, edits and an early stop.
#![allow(clippy::unwrap_used)]

use fathom_lm::{At, Error, LogitRows, Model, demo};

fn planted() -> (tempfile::TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    demo::plant(dir.path(), &Default::default()).unwrap();
    let model = Model::load(dir.path().display().to_string()).unwrap();
    (dir, model)
}

#[test]
fn a_hook_sees_the_whole_text_at_once_and_is_an_edit() {
    let (_dir, model) = planted();
    let ids: Vec<u32> = (0..700).map(|i| 3 + i % 20).collect(); // more than a chunk
    let mut calls = Vec::new();
    let zero = |at: &At, values: &mut [f32]| {
        calls.push((at.positions.clone(), values.len()));
        let width = values.len() / at.positions.len();
        values[600 * width..601 * width].fill(0.0);
        Ok(())
    };
    let hooked = model.pass(&ids).hook("blocks.3.hook_mlp_out", zero).unwrap();
    let hooked = hooked.capture(&["resid_post"]).run().unwrap();
    assert_eq!(calls, [(0..700, 700 * model.config().hidden)]);
    let edited = model.pass(&ids).edit(&["mlp_out.3@600=zero"]).capture(&["resid_post"]);
    let edited = edited.run().unwrap();
    assert_eq!(hooked.logits, edited.logits);
    let same = hooked.cache.iter().zip(edited.cache.iter()).all(|(a, b)| a == b);
    assert!(same && hooked.cache.len() == model.config().layers);
    assert_ne!(hooked.logits, model.run(&ids, None).unwrap());
}

#[test]
fn invalid_requests_are_refused() {
    let (_dir, model) = planted();
    let ids = [3, 4, 5];
    let nothing = |_: &At, _: &mut [f32]| Ok(());
    for (name, sentence) in [
        ("mlp_out", "needs its layer, as in mlp_out.3"),
        ("mlp_out.20", "there is no such layer, the model's are 0..=19"),
        ("sink_score.3", "capture it instead of hooking it"),
        ("nonsense", "unknown site `nonsense`"),
    ] {
        let refused = model.pass(&ids).hook(name, nothing).err().unwrap().to_string();
        assert!(refused.contains(sentence), "{refused}");
    }
    let hook = |layer: &str| model.pass(&ids).hook(layer, nothing).unwrap();
    for (pass, sentence) in [
        (hook("mlp_out.5").stop_at_layer(5), "`mlp_out.5` is not computed: the pass stops"),
        (hook("logits").stop_at_layer(20), "`logits` is not computed"),
        (model.pass(&ids).capture(&["resid_pre.7"]).stop_at_layer(-13), "`resid_pre.7` is not"),
        (model.pass(&ids).stop_at_layer(21), "expected -20..=20"),
        (model.pass(&ids).stop_at_layer(i64::MIN), "expected -20..=20"),
        (model.pass(&[]), "there are no tokens to run"),
        (model.pass(&ids).capture(&["embed"]).at_positions(vec![3]), "the text has 3 tokens"),
    ] {
        let refused = pass.run().unwrap_err().to_string();
        assert!(refused.contains(sentence), "{refused}");
    }
    let write = |_: &At, values: &mut [f32]| {
        values[0] = 2.0;
        Ok(())
    };
    let refused = model.pass(&ids).hook("attn_weights.2", write).unwrap().run().unwrap_err();
    assert_eq!(refused.to_string(), "`attn_weights` can be read, but not edited");
}

#[test]
fn the_check_before_each_layer_can_end_a_pass() {
    let (_dir, model) = planted();
    let mut asked = 0;
    let check = || {
        asked += 1;
        match asked {
            7 => Err(Error::Request("enough".to_owned())),
            _ => Ok(()),
        }
    };
    let ended = model.pass(&[3, 4, 5]).checked(check).run().unwrap_err();
    assert_eq!((ended.to_string().as_str(), asked), ("enough", 7));
}

#[test]
fn only_the_rows_that_are_wanted_get_logits() {
    let (_dir, model) = planted();
    let ids: Vec<u32> = (0..150).map(|i| 3 + i % 20).collect();
    let all = model.pass(&ids).run().unwrap().logits;
    let last = model.pass(&ids).logits(LogitRows::Last).run().unwrap().logits;
    assert_eq!((&*last.shape, last.row(0)), (&[1, all.shape[1]][..], all.row(149)));
    let none = model.pass(&ids).logits(LogitRows::None).capture(&["q.2"]).run().unwrap();
    assert_eq!(none.logits.shape, [0, all.shape[1]]);
    assert_eq!(none.cache["q.2"], model.run_with_cache(&ids, &["q.2"]).unwrap()["q.2"]);
    assert!(none.residual.is_none());
}
