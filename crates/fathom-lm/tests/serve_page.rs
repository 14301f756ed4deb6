//! The page of `fathom serve` in a browser, driven through chromedriver.
//!
//! Ignored by default, since not every machine has a browser. `check.sh` runs it if there is one,
//! and prints that it skips it otherwise.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::browser::Browser;
use common::{fathom, fixture, succeed};

// Keys of WebDriver's table.
const ENTER: &str = "\u{e007}";
const SHIFT: &str = "\u{e008}"; // held until the end of the keys
const ESCAPE: &str = "\u{e00c}";
const RIGHT: &str = "\u{e014}";
const DOWN: &str = "\u{e015}";

/// A `fathom serve`, ended when dropped.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let mut command = fathom();
        command.args(["serve", "--port", "0"]).args(arguments);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = lines.find_map(|line| {
            let line = line.unwrap();
            let start = line.find("http://")?;
            Some(line[start..].split_whitespace().next().unwrap().to_owned())
        });
        Server { process, url: url.unwrap() }
    }

    /// The value of a metric without labels of its own.
    fn metric(&self, name: &str) -> f64 {
        let address = self.url.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = answer.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The page does not scroll sideways.
#[track_caller]
fn assert_fits(browser: &Browser) {
    let wide = browser.eval("[document.documentElement.scrollWidth, innerWidth]");
    assert!(wide[0].as_u64() <= wide[1].as_u64(), "{wide}");
}

#[test]
#[ignore = "needs chromium and chromedriver; check.sh runs it where they are"]
fn a_person_can_chat() {
    // The planted model has sinks. It is its own draft.
    let dir = tempfile::tempdir().unwrap();
    let planted = dir.path().join("planted").display().to_string();
    succeed(&["plant", "--out", &planted, "--quiet"]);
    let server = Server::start(&["--target", &planted, "--draft", &planted]);
    for (width, height) in [(1280, 900), (390, 800)] {
        let browser = Browser::new(width, height);
        let text = |script: &str| browser.eval(script).as_str().unwrap().to_owned();
        browser.open(&server.url);
        assert!(text("document.getElementById('model').textContent").contains("4096 tokens"));
        assert_fits(&browser);

        // A long answer is stopped, by the key or the button; the server hears of it.
        browser.click("#toggle");
        browser.keys("[name=max_tokens]", "3900");
        browser.keys("#input", &format!("Once upon a time{ENTER}"));
        browser.until("document.querySelectorAll('.busy .t').length > 2");
        match width < 500 {
            true => browser.click("#stop"),
            false => browser.keys("#input", ESCAPE),
        }
        browser.until("document.querySelector('.busy') === null");
        let stats = text("document.querySelector('.stats').textContent");
        assert!(stats.ends_with("stopped"), "{stats}");
        let stopped = Instant::now();
        while server.metric("fathom_requests_running") > 0.0 {
            assert!(stopped.elapsed() < Duration::from_secs(10), "still running");
            sleep(Duration::from_millis(50));
        }
        browser.click("#fresh");
        assert_eq!(browser.eval("document.querySelectorAll('.turn').length"), 0);

        // Shift and Enter begin a new line, Enter sends. The settings hide the chat of a phone.
        if width < 500 {
            browser.click("#toggle");
        }
        for (name, value) in [("max_tokens", "120"), ("temperature", "1"), ("seed", "2")] {
            browser.eval(&format!("document.querySelector('[name={name}]').value = {value}"));
        }
        browser.keys("#input", &format!("A story{SHIFT}{ENTER}"));
        browser.keys("#input", &format!("about a number.{ENTER}"));
        assert_eq!(
            text("document.querySelector('.you .text').textContent"),
            "A story\nabout a number."
        );
        // Tokens arrive one after the other, with a rate.
        browser.until("document.querySelectorAll('.answer .t').length > 5");
        browser.until("document.querySelector('.busy') === null");
        let stats = text("document.querySelector('.stats').textContent");
        for part in ["tokens/s", "drafts accepted", "mean accepted tokens"] {
            assert!(stats.contains(part), "`{part}` is not in: {stats}");
        }
        // The elements of the tokens spell the text.
        let spelled = "[...document.querySelectorAll('.text .t')].map(t => t.token.text).join('')";
        assert_eq!(text(spelled), text("document.querySelector('.answer .text').textContent"));

        // Drafts are tinted, until the legend's box is unchecked.
        let tint = "getComputedStyle(document.querySelector('.answer .drafted')).backgroundColor";
        assert_ne!(text(tint), "rgba(0, 0, 0, 0)");
        browser.click("#drafts");
        assert_eq!(text(tint), "rgba(0, 0, 0, 0)");
        browser.click("#drafts");

        // A token tells its facts under the pointer or a finger, and for the keyboard.
        let tip = "document.getElementById('tip').textContent";
        let shown = "!document.getElementById('tip').hidden";
        browser.point_until(".text .t:nth-child(3)", width < 500, shown);
        assert!(text(tip).contains("probability"), "{}", text(tip));
        browser.eval("document.querySelector('.answer .text').focus()");
        browser.keys(".answer .text", RIGHT);
        assert!(text(tip).contains("at position"), "{}", text(tip));
        assert_eq!(text("document.getElementById('spoken').textContent"), text(tip));
        browser.keys(".answer .text", ESCAPE);
        assert_eq!(browser.eval(shown), false);

        // Sinks are marked in the text, and those of the prompt listed. The first is a primary one.
        browser.until("document.querySelector('.text .sink') !== null");
        browser.until("document.querySelector('.found .sink') !== null");
        browser.keys(".answer .text", DOWN);
        assert!(text(tip).contains("at position 0\nprimary sink from layer"), "{}", text(tip));

        assert_fits(&browser);
        assert_eq!(browser.console(), Vec::<String>::new(), "at {width}");

        // A refusal is told in the server's words.
        browser.eval("document.querySelector('[name=max_tokens]').value = 100000");
        browser.keys("#input", &format!("Hello{ENTER}"));
        browser.until("document.querySelector('.error') !== null");
        let error = text("document.querySelector('.error').textContent");
        assert!(error.contains("max_tokens"), "{error}");
        assert_fits(&browser);
    }
}

#[test]
#[ignore = "needs chromium and chromedriver; check.sh runs it where they are"]
fn a_person_gives_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "a-key\n").unwrap();
    let file = file.display().to_string();
    let target = fixture("models/draft").display().to_string();
    let server = Server::start(&["--target", &target, "--api-key-file", &file]);
    let browser = Browser::new(390, 800);
    browser.open(&server.url);
    let wanted = "!document.getElementById('login').hidden";
    assert_eq!(browser.eval(wanted), true);
    browser.keys("#key", &format!("wrong{ENTER}"));
    browser.until("/key/i.test(document.getElementById('model').textContent)");
    assert_eq!(browser.eval(wanted), true);
    assert_fits(&browser);
    browser.eval("document.getElementById('key').value = ''");
    browser.keys("#key", &format!("a-key{ENTER}"));
    browser.until("document.getElementById('login').hidden");
    browser.keys("#input", &format!("Hello{ENTER}"));
    browser.until("document.querySelectorAll('.answer .t').length > 0");
}
