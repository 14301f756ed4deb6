//! A browser, driven through chromedriver.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A browser session, closed when dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Browser {
    /// Opens a window of `width` by `height` pixels. A width below 500 emulates a phone.
    pub fn new(width: u32, height: u32) -> Browser {
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

    /// Opens a page, which says when it is ready.
    pub fn open(&self, address: &str) {
        self.request("POST", "/url", &json!({ "url": address }));
        self.until("document.documentElement.dataset.ready === 'yes'");
    }

    /// The value of a JavaScript expression.
    pub fn eval(&self, expression: &str) -> Value {
        let script = json!({ "script": format!("return ({expression});"), "args": [] });
        self.request("POST", "/execute/sync", &script)
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub fn until(&self, expression: &str) {
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

    fn id(&self, selector: &str) -> String {
        let element = self.element(selector);
        element.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    pub fn click(&self, selector: &str) {
        self.show(selector);
        let id = self.id(selector);
        self.request("POST", &format!("/element/{id}/click"), &json!({}));
    }

    /// Types into an element. Keys without a character are those of WebDriver's table.
    pub fn keys(&self, selector: &str, keys: &str) {
        let id = self.id(selector);
        self.request("POST", &format!("/element/{id}/value"), &json!({ "text": keys }));
    }

    /// Points at an element with the mouse, or touches it.
    pub fn point(&self, selector: &str, finger: bool) {
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
    pub fn point_until(&self, selector: &str, finger: bool, expression: &str) {
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
    pub fn console(&self) -> Vec<String> {
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
