//! The report in a browser, driven through chromedriver.
//!
//! Ignored by default, since not every machine has a browser. `check.sh` runs it if there is one,
//! and prints that it skips it otherwise.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Checkpoint, succeed};
use serde_json::{Value, json};

/// A browser session, closed when dropped.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Browser {
    /// Opens a window of `width` by `height` pixels. A width below 500 emulates a phone.
    fn new(width: u32, height: u32) -> Browser {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver (Debian: chromium-driver)");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok()
        });
        let mut browser = Browser { driver, port: port.unwrap(), session: String::new() };
        let mut options = json!({ "args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            format!("--window-size={width},{height}"),
        ] });
        if width < 500 {
            let metrics = json!({ "width": width, "height": height, "pixelRatio": 2.0 });
            options["mobileEmulation"] = json!({ "deviceMetrics": metrics });
        }
        let capabilities = json!({
            "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let session = browser.request(
            "POST",
            "",
            &json!({ "capabilities": { "alwaysMatch": capabilities } }),
        );
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    /// Sends a WebDriver command of the session; returns the `value` of the response.
    fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        let path = match self.session.as_str() {
            "" => "/session".to_owned(),
            session => format!("/session/{session}{path}"),
        };
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(answer["value"].get("error").is_none(), "{method} {path}: {answer}");
        answer["value"].clone()
    }

    fn open(&self, page: &std::path::Path) {
        self.request("POST", "/url", &json!({ "url": format!("file://{}", page.display()) }));
        self.until("document.documentElement.dataset.ready === 'yes'");
    }

    /// The value of a JavaScript expression.
    fn eval(&self, expression: &str) -> Value {
        let script = json!({ "script": format!("return ({expression});"), "args": [] });
        self.request("POST", "/execute/sync", &script)
    }

    /// Waits until an expression holds.
    #[track_caller]
    fn until(&self, expression: &str) {
        let start = Instant::now();
        while self.eval(expression) != Value::Bool(true) {
            assert!(start.elapsed() < Duration::from_secs(60), "never: {expression}");
            sleep(Duration::from_millis(50));
        }
    }

    fn element(&self, selector: &str) -> Value {
        let using = json!({ "using": "css selector", "value": selector });
        self.request("POST", "/element", &using)
    }

    fn click(&self, selector: &str) {
        self.show(selector);
        let id = self.element(selector);
        let id = id.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        self.request("POST", &format!("/element/{id}/click"), &json!({}));
    }

    /// Points at an element with the mouse, or touches it.
    fn point(&self, selector: &str, finger: bool) {
        self.show(selector);
        let origin = self.element(selector);
        let mut actions =
            vec![json!({ "type": "pointerMove", "duration": 0, "origin": origin, "x": 0, "y": 0 })];
        if finger {
            actions.push(json!({ "type": "pointerDown", "button": 0 }));
            actions.push(json!({ "type": "pointerUp", "button": 0 }));
        }
        let kind = if finger { "touch" } else { "mouse" };
        let pointer = json!({
            "type": "pointer", "id": kind, "parameters": { "pointerType": kind },
            "actions": actions,
        });
        self.request("POST", "/actions", &json!({ "actions": [pointer] }));
    }

    /// Points at an element until an expression holds: on a busy machine the page may still be
    /// moving when the pointer arrives.
    #[track_caller]
    fn point_until(&self, selector: &str, finger: bool, expression: &str) {
        let start = Instant::now();
        loop {
            self.point(selector, finger);
            let pointed = Instant::now();
            while pointed.elapsed() < Duration::from_secs(3) {
                if self.eval(expression) == Value::Bool(true) {
                    return;
                }
                sleep(Duration::from_millis(50));
            }
            assert!(start.elapsed() < Duration::from_secs(60), "never: {expression}");
            self.point("body", false);
        }
    }

    /// Scrolls an element into the middle and waits until it stops moving.
    fn show(&self, selector: &str) {
        let script = format!(
            "(e => {{ e.scrollIntoView({{block: 'center', behavior: 'instant'}}); \
             const top = e.getBoundingClientRect().top, same = e.dataset.top === String(top); \
             e.dataset.top = top; return same; }})(document.querySelector({selector:?}))"
        );
        self.until(&script);
    }

    /// The messages on the browser's console.
    fn console(&self) -> Vec<String> {
        let log = self.request("POST", "/se/log", &json!({ "type": "browser" }));
        log.as_array().unwrap().iter().map(|entry| entry["message"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Runs after a failed test too, so that Chromium does not outlive it. It must not panic.
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let (port, session) = (self.port, &self.session);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
            let _ = write!(
                stream,
                "DELETE /session/{session} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
                 Connection: close\r\n\r\n"
            );
            let _ = stream.read_to_end(&mut Vec::new());
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

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
        browser.open(page.as_ref());
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
