//! Servers of the trained pair, in this process and as a command.

// Each test binary uses only part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fathom_lm::{
    GenerateOptions, ModelOptions, Pair, SamplingParams, ServeOptions, Server, TextEngine, demo,
    placement,
};
use tempfile::TempDir;

/// The trained pair on disk.
pub struct Models {
    dir: TempDir,
    pub target: String,
    pub draft: String,
}

impl Models {
    pub fn new() -> Models {
        let dir = tempfile::tempdir().unwrap();
        let models = demo::trained_pair(dir.path()).unwrap();
        let name = |dir: PathBuf| dir.display().to_string();
        Models { target: name(models.target), draft: name(models.draft), dir }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn pair(&self) -> Pair {
        let model = |name: &String| ModelOptions::new(name.clone());
        Pair::open(model(&self.target), Some(model(&self.draft))).unwrap()
    }
}

/// A server in this process.
pub struct Serving {
    pub engine: TextEngine,
    pub server: Server,
    pub address: SocketAddr,
    _models: Models,
}

impl Serving {
    pub fn new() -> Serving {
        Serving::with(&GenerateOptions::default(), |_| {})
    }

    pub fn with(generate: &GenerateOptions, change: impl FnOnce(&mut ServeOptions)) -> Serving {
        Serving::of(Models::new(), generate, change)
    }

    /// A server of the target alone.
    pub fn alone(models: Models) -> Serving {
        let pair = Pair::open(ModelOptions::new(models.target.clone()), None).unwrap();
        Serving::start(models, pair, &GenerateOptions::default(), |_| {})
    }

    pub fn of(
        models: Models,
        generate: &GenerateOptions,
        change: impl FnOnce(&mut ServeOptions),
    ) -> Serving {
        let pair = models.pair();
        Serving::start(models, pair, generate, change)
    }

    fn start(
        models: Models,
        pair: Pair,
        generate: &GenerateOptions,
        change: impl FnOnce(&mut ServeOptions),
    ) -> Serving {
        let generate = GenerateOptions { placement: placement(2, None, None, false), ..*generate };
        let engine = pair.spawn(&generate, &mut |_, _| {}).unwrap();
        let mut options = ServeOptions { name: Some("pair".to_owned()), ..Default::default() };
        options.defaults = SamplingParams { max_tokens: 16, ..SamplingParams::default() };
        options.server.address.set_port(0);
        change(&mut options);
        let server = fathom_lm::serve(&engine, options).unwrap();
        Serving { engine, address: server.address(), server, _models: models }
    }

    /// Waits until the engine has no requests.
    pub fn wait_idle(&self) {
        wait_until("the engine is idle", || {
            let metrics = self.engine.handle().metrics();
            metrics.waiting + metrics.prefilling + metrics.running == 0
        });
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `fathom serve` as a process.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    /// Reads standard error: a full pipe would hold up the server.
    log: Option<JoinHandle<String>>,
}

impl Process {
    /// Starts a server of the pair on a free port.
    pub fn start(models: &Models, args: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fathom"));
        command.args(["serve", "--target", &models.target, "--draft", &models.draft]);
        command.args(["--port", "0", "--target-threads", "1", "--draft-threads", "1"]);
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        match line.trim().strip_prefix("listening on http://") {
            Some(address) => Process { address: address.parse().unwrap(), child, log: Some(log) },
            None => panic!("{line}{}", log.join().unwrap()),
        }
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// The exit status and standard error of the process, which must end within a minute.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() > Duration::from_secs(60) => {
                    self.child.kill().unwrap();
                    panic!("the server did not end");
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let log = self.log.take().unwrap().join().unwrap();
        (status, log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
