//! `/metrics`: Fathom's own names, and those of vLLM that benchmark tools and dashboards read.

use std::time::Duration;

use fathom_decode::engine::HandleMetrics;
use fathom_decode::{Finish, Mode};
use fathom_model::{Error, Result};
use metrics::{Counter, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

/// Upper bounds of the histograms' buckets, in seconds.
const SECONDS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0,
    40.0, 80.0, 160.0, 640.0,
];

/// Metrics of a server. They belong to it alone: a program may run several.
pub struct Metrics {
    recorder: PrometheusRecorder,
    labels: Vec<Label>,
    queue: [Histogram; 2],
    first_token: [Histogram; 2],
    next_token: [Histogram; 2],
    whole: [Histogram; 2],
    tokens: [Counter; 2],
    prompt_tokens: [Counter; 2],
    refused: Counter,
}

/// Every metric is described once.
const DESCRIPTIONS: [(&str, &str); 24] = [
    ("fathom_requests_running", "Texts in the batch"),
    ("fathom_requests_waiting", "Texts that wait for a place in the batch"),
    ("fathom_requests_refused_total", "Requests refused because the queue was full"),
    ("fathom_requests_finished_total", "Texts that ended, by reason"),
    ("fathom_requests_cancelled_total", "Texts that were cancelled"),
    ("fathom_requests_failed_total", "Texts that failed"),
    ("fathom_prompt_tokens_total", "Tokens of prompts"),
    ("fathom_tokens_total", "Tokens of texts"),
    ("fathom_request_queue_time_seconds", "In the queue, of texts that have ended"),
    ("fathom_time_to_first_token_seconds", "From a request's arrival to its first token"),
    ("fathom_inter_token_latency_seconds", "Between tokens, the time of a step shared equally"),
    ("fathom_e2e_request_latency_seconds", "From a request's arrival to the end of its texts"),
    ("fathom_steps_total", "Steps of the engine, by decoding mode"),
    ("fathom_draft_tokens_total", "Drafts judged by the target"),
    ("fathom_accepted_tokens_total", "Drafts accepted by the target"),
    ("fathom_judged_drafts_total", "Drafts judged, by position in the judged chunk"),
    ("fathom_accepted_drafts_total", "Drafts accepted, by position in the judged chunk"),
    ("fathom_target_seconds", "Seconds of the target's passes so far"),
    ("fathom_draft_seconds", "Seconds of the draft's passes so far"),
    ("fathom_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache"),
    ("fathom_prefix_cache_hits_total", "Prompt tokens taken from the prefix cache"),
    ("fathom_gamma", "Draft length of the last step"),
    ("fathom_kv_pages", "Cache pages: used now, used at most so far, and available"),
    ("fathom_preemptions_total", "Texts preempted because the caches were full"),
];

impl Metrics {
    /// Metrics of a server of the model `name`.
    ///
    /// # Errors
    /// Buckets that the exporter does not accept.
    pub fn new(name: &str) -> Result<Metrics> {
        let buckets = |builder: PrometheusBuilder| {
            let matcher = Matcher::Suffix("_seconds".to_owned());
            builder.set_buckets_for_metric(matcher, &SECONDS)
        };
        let builder = buckets(PrometheusBuilder::new());
        let refuse = |error| Error::Request(format!("the metrics cannot be started: {error}"));
        let recorder = builder.map_err(refuse)?.build_recorder();
        for (name, description) in DESCRIPTIONS {
            recorder.describe_gauge(KeyName::from(name), None, description.into());
        }
        let labels = vec![Label::new("model_name", name.to_owned()), Label::new("engine", "0")];
        let histogram =
            |name: &'static str| recorder.register_histogram(&key(name, &labels), &META);
        let counter = |name: &'static str| recorder.register_counter(&key(name, &labels), &META);
        Ok(Metrics {
            queue: [
                histogram("fathom_request_queue_time_seconds"),
                histogram("vllm:request_queue_time_seconds"),
            ],
            first_token: [
                histogram("fathom_time_to_first_token_seconds"),
                histogram("vllm:time_to_first_token_seconds"),
            ],
            next_token: [
                histogram("fathom_inter_token_latency_seconds"),
                histogram("vllm:inter_token_latency_seconds"),
            ],
            whole: [
                histogram("fathom_e2e_request_latency_seconds"),
                histogram("vllm:e2e_request_latency_seconds"),
            ],
            tokens: [counter("fathom_tokens_total"), counter("vllm:generation_tokens_total")],
            prompt_tokens: [
                counter("fathom_prompt_tokens_total"),
                counter("vllm:prompt_tokens_total"),
            ],
            refused: counter("fathom_requests_refused_total"),
            labels,
            recorder,
        })
    }

    /// A text that has ended had waited in the queue.
    pub fn queued(&self, seconds: f64) {
        self.queue.iter().for_each(|histogram| histogram.record(seconds));
    }

    /// A text got its first token.
    pub fn first_token(&self, after: Duration) {
        self.first_token.iter().for_each(|histogram| histogram.record(after));
    }

    /// A text got `tokens` more tokens in one step.
    pub fn next_tokens(&self, after: Duration, tokens: usize) {
        let each = after.as_secs_f64() / tokens as f64;
        self.next_token.iter().for_each(|histogram| histogram.record_many(each, tokens));
    }

    /// A text got tokens.
    pub fn tokens(&self, tokens: usize) {
        self.tokens.iter().for_each(|counter| counter.increment(tokens as u64));
    }

    /// A prompt was accepted.
    pub fn prompt(&self, tokens: usize) {
        self.prompt_tokens.iter().for_each(|counter| counter.increment(tokens as u64));
    }

    /// A request was refused because the queue is full.
    pub fn refused(&self) {
        self.refused.increment(1);
    }

    /// All texts of a request have ended.
    pub fn whole(&self, after: Duration) {
        self.whole.iter().for_each(|histogram| histogram.record(after));
    }

    /// A text has ended.
    pub fn finished(&self, finish: Finish) {
        let reason = match finish {
            Finish::Length => "length",
            Finish::Eos | Finish::StopToken | Finish::Stop => "stop",
        };
        for name in ["fathom_requests_finished_total", "vllm:request_success_total"] {
            self.counter(name, "finished_reason", reason).increment(1);
        }
    }

    /// Moves recorded values into their buckets. Called now and then, so that they take no memory.
    pub fn tidy(&self) {
        self.recorder.handle().run_upkeep();
    }

    /// The metrics in Prometheus' text format. `engine` holds those of the engine.
    pub fn render(&self, engine: &HandleMetrics, kv_pages: usize) -> String {
        let own = &engine.engine;
        let running = engine.running + engine.prefilling;
        for (names, value) in [
            (["fathom_requests_running", "vllm:num_requests_running"], running),
            (["fathom_requests_waiting", "vllm:num_requests_waiting"], engine.waiting),
        ] {
            names.iter().for_each(|name| self.gauge(name, value as f64));
        }
        self.gauge("fathom_gamma", own.gamma as f64);
        let (cached, total) = (own.pages_cached, kv_pages);
        let used = own.pages_used - cached;
        self.gauge("vllm:kv_cache_usage_perc", used as f64 / total.max(1) as f64);
        for (state, pages) in
            [("used", used), ("cached", cached), ("peak", own.kv_pages), ("total", total)]
        {
            self.labelled_gauge("fathom_kv_pages", "state", state, pages as f64);
        }
        for (names, count) in [
            (["fathom_preemptions_total", "vllm:num_preemptions_total"], own.preemptions as u64),
            (
                ["fathom_draft_tokens_total", "vllm:spec_decode_num_draft_tokens_total"],
                own.acceptance.judged(),
            ),
            (
                ["fathom_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"],
                own.acceptance.accepted(),
            ),
            (
                ["fathom_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"],
                own.prefix_queries as u64,
            ),
            (
                ["fathom_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"],
                own.prefix_hits as u64,
            ),
        ] {
            names.iter().for_each(|name| self.absolute(name, count));
        }
        self.gauge("fathom_target_seconds", own.verify_seconds + own.prefill_seconds);
        self.gauge("fathom_draft_seconds", own.draft_seconds);
        self.absolute("fathom_requests_cancelled_total", engine.cancelled);
        self.absolute("fathom_requests_failed_total", engine.failed);
        for mode in Mode::ALL {
            let steps = own.steps.get(&mode).copied().unwrap_or(0);
            let steps = u64::try_from(steps).unwrap_or(u64::MAX);
            self.counter("fathom_steps_total", "mode", &mode.to_string()).absolute(steps);
        }
        for (position, (judged, accepted)) in own.acceptance.counts().enumerate() {
            let position = position.to_string();
            let counter = |name| self.counter(name, "position", &position);
            counter("fathom_judged_drafts_total").absolute(judged);
            counter("fathom_accepted_drafts_total").absolute(accepted);
        }
        self.recorder.handle().render()
    }

    fn gauge(&self, name: &'static str, value: f64) {
        self.recorder.register_gauge(&key(name, &self.labels), &META).set(value);
    }

    fn labelled_gauge(&self, name: &'static str, label: &'static str, is: &str, value: f64) {
        let key = self.key(name, label, is);
        self.recorder.register_gauge(&key, &META).set(value);
    }

    fn absolute(&self, name: &'static str, value: u64) {
        self.recorder.register_counter(&key(name, &self.labels), &META).absolute(value);
    }

    fn counter(&self, name: &'static str, label: &'static str, is: &str) -> Counter {
        self.recorder.register_counter(&self.key(name, label, is), &META)
    }

    fn key(&self, name: &'static str, label: &'static str, is: &str) -> Key {
        let own = Label::new(label, is.to_owned());
        Key::from_parts(name, self.labels.iter().cloned().chain([own]).collect::<Vec<_>>())
    }
}

const META: Metadata<'static> = Metadata::new("fathom_serve", Level::INFO, None);

fn key(name: &'static str, labels: &[Label]) -> Key {
    Key::from_parts(name, labels.to_vec())
}
