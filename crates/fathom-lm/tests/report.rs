//! `fathom report` on the command line.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{Checkpoint, assert_refused, contents, fixture, run, succeed};
use serde_json::Value;
use tempfile::TempDir;

/// An explained run of the planted model. Its model and traces no longer exist.
fn explained() -> &'static Path {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let dir = RUN.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        scan("planted/basic", "traces.jsonl", &dir.path().join("run"), &["explain"]);
        dir
    });
    dir.path()
}

/// Scans (and explains) a copy of a fixture, then deletes the copy.
fn scan(model: &str, traces: &str, out: &Path, more: &[&str]) {
    let model = Checkpoint::copy_of(model);
    let (model_dir, out) = (model.path().display().to_string(), out.display().to_string());
    let traces = match traces {
        "traces.jsonl" => model.traces(),
        ids => {
            model.write("ids.jsonl", ids);
            model.file("ids.jsonl")
        }
    };
    let traces = traces.display().to_string();
    let scan = ["scan", "--model", &model_dir, "--traces", &traces, "--out", &out];
    succeed(&[&scan[..], &["--limit", "2", "--attention", "--quiet"]].concat());
    if more.contains(&"explain") {
        succeed(&["explain", &out, "--max-sinks", "6", "--quiet"]);
        succeed(&["explain", &out, "--evict", "--max-sinks", "6", "--quiet"]);
    }
}

/// A copy of the explained run in a new directory.
fn copy() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in contents(explained()) {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Writes a report of the `runs` in `dir`; returns the page.
fn report(dir: &Path, runs: &[&str], more: &[&str]) -> String {
    let page = dir.join("report.html");
    let mut args = vec!["report".to_owned()];
    args.extend(runs.iter().map(|run| dir.join(run).display().to_string()));
    args.extend(["--out".to_owned(), page.display().to_string()]);
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    succeed(&args);
    text(page)
}

/// Checks that tags are properly nested and that there is no text outside the root element.
fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in svg.trim().split('<').skip(1) {
        let (tag, after) = part.split_once('>').unwrap_or_else(|| panic!("`<{part}` never ends"));
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().unwrap()),
        }
        assert!(!open.is_empty() || after.is_empty(), "{after}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_has_every_figure_and_needs_nothing() {
    let dir = copy();
    let page = report(dir.path(), &["run"], &[]);
    let figures = [
        "fig1-norms",
        "fig2-levels",
        "fig3-stages",
        "fig4-effect",
        "fig5-positions",
        "fig6-clusters",
        "fig7-pca",
        "fig8-swap",
        "entropy",
        "suppression",
        "neurons",
        "knockout",
        "eviction",
        "measures-agreement",
        "measures-massive",
        "sink-rate",
    ];
    for name in figures {
        assert!(page.contains(&format!("<figure class=\"fig\" id=\"r0-{name}\"")), "{name}");
        assert_well_formed(&text(dir.path().join(format!("figures/{name}.svg"))));
        let csv = text(dir.path().join(format!("figures/{name}.csv")));
        let columns = csv.lines().next().unwrap().split(',').count();
        assert!(csv.lines().count() > 1 && columns > 2, "{name}: {csv}");
    }
    assert!(!page.contains("Nothing to show: ") && !page.contains("Not computed: "));
    assert!(page.len() < 3 << 20, "{}", page.len());
    assert!(page.starts_with("<!doctype html>\n<!-- made by fathom report -->"));
    assert!(page.contains("default-src 'none'"));
    // Nothing is loaded: all links are within the page.
    for attribute in ["src=", "url(", "http:", "https:", "@import"] {
        assert!(!page.contains(attribute), "{attribute}");
    }
    for link in page.split("href=\"").skip(1) {
        assert!(link.starts_with('#'), "{}", link.split('"').next().unwrap());
    }
    // Every figure's and level's anchor exists once.
    for id in page.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert_eq!(page.matches(&format!(" id=\"{id}\"")).count(), 1, "{id}");
    }
    // The counts of the levels add up to the count in the manifest.
    let manifest: Value = serde_json::from_str(&text(dir.path().join("run/run.json"))).unwrap();
    let secondary = manifest["counts"]["secondary"].as_u64().unwrap();
    let levels = text(dir.path().join("figures/fig2-levels.csv"));
    let counted = levels.lines().skip(1).map(|line| line.rsplit(',').next().unwrap());
    assert_eq!(counted.map(|n| n.parse::<u64>().unwrap()).sum::<u64>(), secondary);
    // A second report has the same bytes.
    assert_eq!(page, report(dir.path(), &["run"], &[]));
}

#[test]
fn what_was_not_explained_is_one_line_with_its_command() {
    let dir = copy();
    fs::remove_dir_all(dir.path().join("run/explain")).unwrap();
    let page = report(dir.path(), &["run"], &["--texts", "1"]);
    let run = dir.path().join("run");
    let flags = ["stages", "pca", "clusters", "swap", "effect", "entropy", "suppress", "neurons"];
    for flag in flags.into_iter().chain(["knockout", "evict"]) {
        let command = format!("<code>fathom explain {} --{flag}</code>", run.display());
        assert_eq!(page.matches(&command).count(), 1, "{flag}");
    }
    assert_eq!(page.matches("Not computed: ").count(), 1);
    assert!(page.contains("id=\"r0-fig1-norms\"") && page.contains("id=\"r0-fig5-positions\""));
    assert!(!dir.path().join("figures/fig3-stages.svg").exists());
}

#[test]
fn explanations_of_other_detections_are_left_out() {
    let dir = copy();
    let detections = dir.path().join("run/detections.jsonl");
    fs::write(&detections, text(&detections).replace("\"prompt_len\":", "\"prompt_len\": "))
        .unwrap();
    fs::write(dir.path().join("run/explain/pca.json"), "{").unwrap();
    let page = report(dir.path(), &["run"], &[]);
    assert!(page.contains("swap.json is the result of other detections"));
    assert!(page.contains("is not the result of `fathom explain --pca`"));
    assert!(!page.contains("<figure class=\"fig\" id=\"r0-fig8-swap\""));
}

/// A planted run with two phases, tokens that only draw attention, and massive activations.
fn everything(dir: &Path, phases: &str, attention: bool) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    let (model, run) = (path("model"), path(phases));
    if !dir.join("model").exists() {
        let plant = ["plant", "--out", &model, "--traces", "2"];
        succeed(&[&plant[..], &["--two-phases", "--attention-only", "--massive"]].concat());
    }
    let traces = path("model/traces.jsonl");
    let scan = ["scan", "--model", &model, "--traces", &traces, "--out", &run];
    let attention: &[&str] = if attention { &["--attention"] } else { &[] };
    succeed(&[&scan[..], &["--phases", phases, "--quiet"], attention].concat())
}

#[test]
fn measures_and_phases_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let said = everything(dir.path(), "largest", true);
    assert!(said.contains("--measure unaligned` lists them"), "{said}");
    let page = report(dir.path(), &["largest"], &[]);
    for figure in ["measures-agreement", "measures-massive", "sink-rate", "fig2-levels"] {
        assert!(page.contains(&format!("<figure class=\"fig\" id=\"r0-{figure}\"")), "{figure}");
        assert_well_formed(&text(dir.path().join(format!("figures/{figure}.svg"))));
    }
    assert!(page.contains("id=\"r0-unaligned\""));
    // Two tokens of each trace draw attention and are aligned at no layer.
    let section = page.split("id=\"r0-unaligned\"").nth(1).unwrap();
    let section = section.split("</section>").next().unwrap();
    assert!(section.contains("4 are aligned at no layer at all"), "{section}");
    assert_eq!(section.matches("<td>none</td>").count(), 4, "{section}");
    assert!(section.contains("&quot;user&quot;"));
    // Both phases are marked in the figures of norms and levels, and the early one is in those of
    // positions and levels.
    assert!(page.matches(">layers 3–7</text>").count() >= 4, "norms and levels");
    assert!(page.contains("layers 3–7, not listed ("));
    assert!(page.contains("of other phases are shown without a letter"));
    let levels = text(dir.path().join("figures/fig2-levels.csv"));
    assert!(levels.contains(",not listed,4,4,layers 3–7,"), "{levels}");

    // Listed, the sinks of the early phase have letters.
    everything(dir.path(), "all", false);
    let page = report(dir.path(), &["all"], &[]);
    assert!(!page.contains("not listed ("));
    assert!(page.contains("4 layers, phase 3–7"));
    assert!(page.contains("Attention was not measured"));
    assert!(!page.contains("id=\"r0-unaligned\""));
}

#[test]
fn a_run_of_an_earlier_version_has_a_report_without_measures() {
    let dir = copy();
    fs::remove_file(dir.path().join("run/measures.parquet")).unwrap();
    let page = report(dir.path(), &["run"], &[]);
    assert!(page.contains("a new scan takes them"));
    assert!(!page.contains("id=\"r0-unaligned\""));
    let run_dir = dir.path().join("run").display().to_string();
    let refused = run(&["table", &run_dir, "--measure", "agreement"]);
    assert_refused(&refused, &["has no measures.parquet", "scan its traces again"]);
}

#[test]
fn several_runs_are_compared() {
    let dir = copy();
    scan("golden/qwen3", "{\"input_ids\": [1, 5, 9, 3, 4]}\n", &dir.path().join("other"), &[]);
    let page = report(
        dir.path(),
        &["run", "other"],
        &["--figures", &dir.path().join("f").display().to_string()],
    );
    assert!(page.contains("id=\"compare\"") && page.contains("id=\"all-fig2-levels\""));
    assert!(page.contains("id=\"r1-fig1-norms\""));
    assert!(page.contains("no secondary sinks"));
    let files: Vec<PathBuf> = contents(&dir.path().join("f")).into_keys().collect();
    assert!(files.contains(&PathBuf::from("fig2-levels.svg")), "{files:?}");
    let runs = files.iter().filter(|path| path.ends_with("fig1-norms.svg")).count();
    assert_eq!(runs, 2, "{files:?}");
}

#[test]
fn a_run_without_sinks_and_one_trace_is_worth_a_page() {
    let dir = tempfile::tempdir().unwrap();
    scan(
        "golden/qwen3",
        "{\"input_ids\": [1, 5, 9, 3, 4]}\n",
        &dir.path().join("run"),
        &["explain"],
    );
    let page = report(dir.path(), &["run"], &[]);
    assert!(page.contains("The trace has no primary sink"));
    let nothing = page.split("Nothing to show: ").nth(1).unwrap().split("</p>").next().unwrap();
    let why = "There are no secondary sinks to look at in this run.";
    assert_eq!((nothing.matches(why).count(), page.matches(why).count()), (1, 1), "{nothing}");
    assert!(nothing.contains("Sink levels, ") && nothing.contains("Where in the text, "));
    assert!(page.contains("<figure class=\"fig\" id=\"r0-fig1-norms\""));
    assert!(page.contains("<figure class=\"fig\" id=\"r0-entropy\""));
}

#[test]
fn half_a_run_says_so() {
    let dir = copy();
    let run_dir = dir.path().join("run");
    let manifest = text(run_dir.join("run.json"));
    // The state after an interruption: rows in parts, and an incomplete line.
    let model = Checkpoint::planted();
    let half = dir.path().join("half");
    let scan = |more: &[&str]| {
        let (model_dir, traces) =
            (model.path().display().to_string(), model.traces().display().to_string());
        let half = half.display().to_string();
        let args = ["scan", "--model", &model_dir, "--traces", &traces, "--out", &half, "--quiet"];
        run(&[&args[..], more].concat())
    };
    // A run of one trace, turned back into an unfinished one.
    let lines = text(model.traces());
    let first = lines.lines().next().unwrap();
    fs::write(model.traces(), format!("{first}\n")).unwrap();
    assert!(scan(&[]).status.success());
    let merged = text(half.join("run.json")).replace("\"complete\"", "\"running\"");
    fs::write(half.join("run.json"), merged).unwrap();
    fs::create_dir(half.join("parts")).unwrap();
    for table in ["sinks", "norms", "tokens", "measures"] {
        let from = half.join(format!("{table}.parquet"));
        fs::rename(from, half.join(format!("parts/000000.{table}.parquet"))).unwrap();
    }
    let mut detections = text(half.join("detections.jsonl"));
    detections.push_str("{\"candidate_sin");
    fs::write(half.join("detections.jsonl"), detections).unwrap();

    let page = report(dir.path(), &["half"], &[]);
    assert!(page.contains("Half a run."), "{page}");
    assert!(page.contains("1 of 1 traces"));
    // A run without any trace is refused.
    fs::write(half.join("detections.jsonl"), "").unwrap();
    let refused = run(&["report", &half.display().to_string()]);
    assert_refused(&refused, &["half", "has recorded no trace yet"]);
    assert!(manifest.contains("complete"));
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    let dir = copy();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let out = path("report.html");
    let report = |args: &[&str]| run(&[&["report"], args].concat());
    let (run_dir, empty) = (path("run"), path("empty"));
    fs::create_dir(&empty).unwrap();

    assert_refused(&report(&[&empty, "--out", &out]), &["empty", "holds no run"]);
    assert_refused(&report(&[&path("gone"), "--out", &out]), &["gone", "holds no run"]);
    assert_refused(&report(&[&run_dir, &run_dir, "--out", &out]), &["run", "is given twice"]);
    assert_refused(&report(&[&run_dir, &format!("{run_dir}/."), "--out", &out]), &["given twice"]);
    assert_eq!(report(&[]).status.code(), Some(2));

    fs::write(path("mine.html"), "<p>something of mine").unwrap();
    let refused = report(&[&run_dir, "--out", &path("mine.html")]);
    assert_refused(&refused, &["mine.html", "is no report"]);
    assert_eq!(text(path("mine.html")), "<p>something of mine");
    assert_refused(&report(&[&run_dir, "--out", &empty]), &["empty", "cannot be written"]);
    let nowhere = path("no/where/report.html");
    assert_refused(&report(&[&run_dir, "--out", &nowhere]), &["report.html", "cannot be written"]);
    let blocked = report(&[&run_dir, "--out", &out, "--figures", &path("mine.html")]);
    assert_refused(&blocked, &["mine.html"]);

    let spoil = |file: &str, text: &str| {
        let file = dir.path().join("run").join(file);
        let before = fs::read(&file).unwrap();
        fs::write(&file, text).unwrap();
        let refused = report(&[&run_dir, "--out", &out]);
        fs::write(&file, before).unwrap();
        refused
    };
    let manifest = text(path("run/run.json"));
    let newer = manifest.replacen("\"format\": 1", "\"format\": 2", 1);
    assert_refused(&spoil("run.json", &newer), &["run.json", "`format` is 2", "reads 1"]);
    assert_refused(&spoil("norms.parquet", "no parquet"), &["norms.parquet", "cannot be read"]);
    assert_refused(&spoil("detections.jsonl", ""), &["detections.jsonl", "holds no detections"]);
    fs::remove_file(path("run/scores.parquet")).unwrap();
    assert_refused(&report(&[&run_dir, "--out", &out]), &["scores.parquet", "cannot be opened"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_full_disk_leaves_the_old_page() {
    let dir = copy();
    let old = report(dir.path(), &["run"], &[]);
    let before = contents(dir.path());
    // Limits the file size to less than that of the page, and ignores SIGXFSZ so that writes fail.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", old.len() / 1024);
    let output = std::process::Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_fathom"), "report"])
        .arg(dir.path().join("run"))
        .args(["--texts", "2", "--out"])
        .arg(dir.path().join("report.html"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_refused(&output, &["report.html", "cannot be written"]);
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn a_file_of_a_run_is_not_its_directory() {
    for command in ["table", "report", "explain"] {
        for file in ["detections.jsonl", "run.json"] {
            let path = explained().join("run").join(file).display().to_string();
            assert_refused(&run(&[command, &path]), &[file, "is a file, expected the directory"]);
        }
    }
}

#[test]
fn untrusted_text_is_escaped() {
    let dir = copy();
    let evil = "</script><img src=x onerror=alert(1)>\u{2028}\"' <!--";
    let manifest = dir.path().join("run/run.json");
    let mut json: Value = serde_json::from_str(&text(&manifest)).unwrap();
    json["model"]["id"] = Value::from(evil);
    fs::write(&manifest, json.to_string()).unwrap();
    let detections = dir.path().join("run/detections.jsonl");
    let quoted = Value::from(evil).to_string();
    fs::write(&detections, text(&detections).replace("\"\\n\"", &quoted)).unwrap();

    let page = report(dir.path(), &["run"], &[]);
    assert!(page.contains("&lt;/script&gt;&lt;img src=x"));
    assert!(!page.contains("<img"));
    assert_eq!(page.matches("</script>").count(), 2);
    for (path, bytes) in contents(&dir.path().join("figures")) {
        let text = String::from_utf8(bytes).unwrap();
        if path.extension().is_some_and(|extension| extension == "svg") {
            assert!(!text.contains("<img"), "{path:?}");
            assert_well_formed(&text);
        }
    }
}

#[test]
fn the_page_of_a_fixture_shows_its_text() {
    // Token texts come from the run; the examples show the words of the planted traces.
    let page = report(copy().path(), &["run"], &[]);
    let first = text(fixture("planted/basic/traces.jsonl"));
    assert!(!first.is_empty());
    assert!(page.contains("href=\"#r0-t0-p"));
    assert!(page.contains("class=\"context\""));
}
