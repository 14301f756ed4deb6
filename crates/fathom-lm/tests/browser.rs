//! The report in a browser, driven through chromedriver.
//!
//! Ignored by default, since not every machine has a browser. `check.sh` runs it if there is one,
//! and prints that it skips it otherwise.
#![allow(clippy::unwrap_used)]

mod common;

use common::browser::Browser;
use common::{Checkpoint, succeed};

#[test]
#[ignore = "needs chromium and chromedriver; check.sh runs it where they are"]
fn a_person_can_use_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let model = Checkpoint::planted();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (run, page) = (path("run"), path("report.html"));
    let model_dir = model.path().display().to_string();
    let traces = model.traces().display().to_string();
    succeed(&[
        "scan",
        "--model",
        &model_dir,
        "--traces",
        &traces,
        "--out",
        &run,
        "--limit",
        "2",
        "--attention",
        "--quiet",
    ]);
    succeed(&["explain", &run, "--clusters", "--effect", "--stages", "--quiet"]);
    succeed(&["report", &run, "--out", &page]);

    for (width, height) in [(1280, 900), (390, 800)] {
        let browser = Browser::new(width, height);
        browser.open(&format!("file://{page}"));
        // The page does not scroll sideways.
        let wide = browser.eval("[document.documentElement.scrollWidth, innerWidth]");
        assert!(wide[0].as_u64() <= wide[1].as_u64(), "at {width}: {wide}");

        // A mark shows its value under the pointer and for the keyboard.
        browser.point_until(
            "#r0-fig1-norms .panel svg [data-s='0'] .p",
            width < 500,
            "!document.getElementById('tip').hidden",
        );
        let tip = browser.eval("document.getElementById('tip').textContent");
        assert!(tip.as_str().unwrap().contains("norm "), "{tip}");
        browser.eval("document.querySelector('#r0-fig3-stages .panel svg').focus()");
        browser.eval(
            "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', \
             {key: 'ArrowRight', bubbles: true}))",
        );
        let tip = browser.eval("document.getElementById('tip').textContent");
        assert!(tip.as_str().unwrap().contains("mlp_in"), "{tip}");

        // The legend hides and shows a series.
        let shown = "[...document.querySelectorAll('#r0-fig1-norms .panel [data-s=\"0\"]')].every(\
                     g => g.getBoundingClientRect().width > 0)";
        assert_eq!(browser.eval(shown), true);
        browser.click("#r0-fig1-norms .legend [data-s='0']");
        assert_eq!(browser.eval(shown), false);
        browser.click("#r0-fig1-norms .legend [data-s='0']");
        assert_eq!(browser.eval(shown), true);

        // The slider moves the dots of every site and shows its layer.
        let place = "document.querySelector('#r0-fig6-clusters .p').getAttribute('transform')";
        let before = browser.eval(place);
        browser.eval(
            "(s => { s.value = 0; s.dispatchEvent(new Event('input', {bubbles: true})); })(\
             document.querySelector('#r0-fig6-clusters input'))",
        );
        assert_ne!(browser.eval(place), before);
        assert_eq!(
            browser.eval("document.querySelector('#r0-fig6-clusters output').textContent"),
            "layer 0"
        );

        // A figure can be enlarged and closed.
        browser.click("#r0-fig4-effect .zoom");
        assert_eq!(browser.eval("document.querySelector('dialog').open"), true);
        browser.click("dialog .row button:last-child");
        assert_eq!(browser.eval("document.querySelector('dialog').open"), false);

        // A level's square links to its card, and an example there to its position in the text.
        let href = browser.eval("document.querySelector('#r0-fig2-levels a').getAttribute('href')");
        browser.eval(
            "location.hash = document.querySelector('#r0-fig2-levels a').getAttribute('href')",
        );
        let card = href.as_str().unwrap().to_owned();
        let example = format!("{card} li a");
        let target =
            browser.eval(&format!("document.querySelector({example:?}).getAttribute('href')"));
        browser.click(&example);
        browser.until("document.querySelector('.text .now') !== null");
        let position = target.as_str().unwrap().rsplit("-p").next().unwrap().to_owned();
        browser.until(&format!(
            "(n => n && n.dataset.p === {position:?} && n.classList.contains('secondary') && \
             (b => {{ const t = document.querySelector('.text').getBoundingClientRect(); \
             return b.top >= t.top && b.bottom <= t.bottom; }})(n.getBoundingClientRect()))(\
             document.querySelector('.text .now'))"
        ));
        // The next sink.
        browser.click(".reader .next");
        browser.until(&format!(
            "(n => n !== null && n.dataset.p !== {position:?})\
             (document.querySelector('.text .now'))"
        ));
        // Shading creates one element per token, for visible blocks only.
        browser.click(".reader .heat");
        browser.until("document.querySelectorAll('.text span[data-p]').length > 50");

        let wide = browser.eval("[document.documentElement.scrollWidth, innerWidth]");
        assert!(wide[0].as_u64() <= wide[1].as_u64(), "at {width}: {wide}");
        assert_eq!(browser.console(), Vec::<String>::new(), "at {width}");
    }
}
