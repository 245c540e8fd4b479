//! Real traces and their twins: what the readers find, and how near the workload model comes.
//!
//! The samples in `data/traces` are enough; where `KVIK_DATA` names a folder with the whole traces, those are tested, too.

use std::path::{Path, PathBuf};

use kvik_eval::trace::{
    BurstLog, Trace,
    burstgpt::{
        Aggregates, Comparison, FitOptions, GapLaw, GenerateOptions, LengthLaw, Rate, WorkloadModel, compare,
        fit, generate,
    },
    facts::Facts,
    unpacked_text,
};

fn sample(name: &str) -> Trace {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/traces");
    Trace::read(&folder.join(name)).unwrap()
}

/// A file of the whole data sets, where there are some.
fn whole(name: &str) -> Option<PathBuf> {
    let folder =
        std::env::var_os("KVIK_DATA").map_or_else(|| PathBuf::from("../../../shared/data"), PathBuf::from);
    let path = folder.join("traces").join(name);
    path.is_file().then_some(path)
}

fn as_long_as(trace: &Trace, seed: u64) -> GenerateOptions {
    GenerateOptions {
        seed,
        start_s: 0.0,
        seconds: trace.span_s(),
        requests: usize::MAX,
        rate: Rate::Times(1.0),
    }
}

/// The comparison of `trace` with its twin, printed for whoever looks (`--nocapture`).
fn twin(trace: &Trace, options: FitOptions) -> Vec<Comparison> {
    let model = fit(trace, options).unwrap();
    let rows = compare(trace, &generate(&model, as_long_as(trace, 1)), 1);
    for row in &rows {
        let poisson = row.poisson.map(|test| test.distance);
        println!("{} {:?} {}: {:?}, Poisson {poisson:?}", trace.origin, options.gaps, row.what, row.twin);
    }
    rows
}

fn distance(rows: &[Comparison], what: &str) -> f64 {
    rows.iter().find(|row| row.what.starts_with(what)).unwrap().twin.distance
}

fn poisson(rows: &[Comparison], what: &str) -> f64 {
    rows.iter().find(|row| row.what.starts_with(what)).unwrap().poisson.unwrap().distance
}

const OBSERVED: FitOptions = FitOptions { window_s: 60.0, gaps: GapLaw::Observed, lengths: LengthLaw::Table };

#[test]
fn azures_code_traffic_is_bursty_and_its_twin_is_too() {
    let trace = sample("azure-llm-2023-code.csv.zst");
    let facts = Facts::of(&trace);
    // As computed from the file with NumPy.
    assert_eq!(facts.requests, 8819);
    assert!(
        (facts.span_s - 3_435.948_056).abs() < 1e-5 && (facts.gap_cv - 13.152).abs() < 0.001,
        "{facts:?}"
    );
    assert!(
        (facts.input_tokens.mean - 2047.848).abs() < 0.001
            && (facts.output_tokens.mean - 27.883).abs() < 0.001
    );
    let gamma = twin(&trace, FitOptions::default());
    // A Poisson process is far off, and so rejected beyond doubt.
    assert!(poisson(&gamma, "gap") > 0.5);
    assert!(gamma[0].poisson.unwrap().p_value < 1e-12);
    assert!(distance(&gamma, "gap") < 0.2, "{}", distance(&gamma, "gap"));
    // These gaps cluster at 100 ms, which no Gamma distribution does; the observed ones, shuffled, are all there.
    let observed = twin(&trace, OBSERVED);
    assert!(distance(&observed, "gap") < 0.02, "{}", distance(&observed, "gap"));
    // In what order gaps come is another matter: how many fall into ten seconds and a minute.
    assert!(distance(&observed, "arrivals in 10") < 0.06, "{}", distance(&observed, "arrivals in 10"));
    assert!(distance(&gamma, "arrivals in 10") < 0.6 * poisson(&gamma, "arrivals in 10"));
    for rows in [&gamma, &observed] {
        assert!(distance(rows, "arrivals in 60") < 0.15 && poisson(rows, "arrivals in 60") > 0.5);
        assert!(distance(rows, "prompt") < 0.02 && distance(rows, "answer") < 0.02);
    }
}

#[test]
fn azures_conversations_pass_as_their_twin() {
    let trace = sample("azure-llm-2023-conv-head.csv.zst");
    assert_eq!(trace.requests.len(), 10_000);
    let gamma = twin(&trace, FitOptions::default());
    // The critical distance of two samples of 10,000 at 1 % is 1.63 sqrt(2 / 10000) = 0.023.
    assert!(distance(&gamma, "gap") < 0.023, "{}", distance(&gamma, "gap"));
    let observed = twin(&trace, OBSERVED);
    assert!(distance(&observed, "gap") < 0.02);
    for rows in [&gamma, &observed] {
        assert!(distance(rows, "prompt") < 0.02 && distance(rows, "answer") < 0.02);
    }
    // Zipf's law, as in the authors' generator, is no description of these lengths.
    let zipf = twin(&trace, FitOptions { lengths: LengthLaw::Zipf, ..FitOptions::default() });
    assert!(distance(&zipf, "prompt") > 0.5);
}

#[test]
fn mooncakes_conversations_have_turns_and_their_twin_has_them_too() {
    let trace = sample("mooncake-conversation-head.jsonl.zst");
    assert_eq!((trace.requests.len(), trace.block_tokens), (2000, 512));
    assert!((trace.resolution_s - 3.0).abs() < 0.01, "{}", trace.resolution_s);
    let facts = Facts::of(&trace);
    assert!(facts.conversations > 100 && facts.shared_prefix.unwrap() > 0.05, "{facts:?}");
    let spread = trace.spread(1);
    let rows = twin(&spread, FitOptions::default());
    assert!(distance(&rows, "prompt") < 0.06 && distance(&rows, "answer") < 0.06);
    assert!(distance(&rows, "seconds to") < 0.12);
}

#[test]
fn a_twin_has_any_size_and_rate_and_begins_as_a_shorter_one() {
    let trace = sample("azure-llm-2023-conv-head.csv.zst");
    let model = fit(&trace, FitOptions::default()).unwrap();
    let options = GenerateOptions {
        seed: 7,
        start_s: 0.0,
        seconds: 6.0 * trace.span_s(),
        requests: usize::MAX,
        rate: Rate::PerSecond(2.0),
    };
    let long = generate(&model, options);
    assert!(
        (long.requests.len() as f64 / (2.0 * options.seconds) - 1.0).abs() < 0.03,
        "{}",
        long.requests.len()
    );
    // The busiest part of a model at any rate.
    let later = generate(&model, GenerateOptions { start_s: 600.0, seconds: 300.0, ..options });
    assert!((later.requests.len() as f64 / 600.0 - 1.0).abs() < 0.2, "{}", later.requests.len());
    let options = GenerateOptions { rate: Rate::Times(0.4), ..options };
    let long = generate(&model, options);
    let short = generate(&model, GenerateOptions { requests: 500, ..options });
    assert_eq!(short.requests[..], long.requests[..500]);
    assert_ne!(
        generate(&model, GenerateOptions { seed: 8, ..options }).requests[..500],
        long.requests[..500]
    );
    // At a rate that is twice as high bursts are as strong.
    let fast = generate(&model, GenerateOptions { rate: Rate::Times(2.0), ..as_long_as(&trace, 7) });
    let (facts, original) = (Facts::of(&fast), Facts::of(&trace));
    assert!((facts.requests_per_second / original.requests_per_second - 2.0).abs() < 0.1);
    assert!((facts.gap_cv - original.gap_cv).abs() < 0.1, "{} {}", facts.gap_cv, original.gap_cv);
}

#[test]
fn a_twin_is_written_in_burstgpts_format_and_read_again() {
    let model =
        fit(&sample("mooncake-conversation-head.jsonl.zst").spread(1), FitOptions::default()).unwrap();
    let model = WorkloadModel::parse(&model.json().unwrap(), "x").unwrap();
    let options =
        GenerateOptions { seed: 1, start_s: 0.0, seconds: 600.0, requests: 900, rate: Rate::Times(1.0) };
    let twin = generate(&model, options);
    let text = BurstLog::of(&twin).csv();
    let read = Trace::parse(&text, Path::new("twin.csv")).unwrap();
    assert_eq!(read.requests.len(), twin.requests.len());
    let same = read.requests.iter().zip(&twin.requests).all(|(read, twin)| {
        (read.input_tokens, read.output_tokens, read.failed)
            == (twin.input_tokens, twin.output_tokens, twin.failed)
    });
    assert!(same && read.previous_turns() == twin.previous_turns());
    assert_eq!(BurstLog::parse(&text).unwrap().csv(), text);
}

#[test]
fn burstgpts_first_file_has_a_twin_with_its_published_figures() {
    let model = WorkloadModel::burstgpt().unwrap();
    // 1,429,737 requests in 61 days.
    assert!(
        (model.rate() * model.span_s / 1_429_737.0 - 1.0).abs() < 0.01,
        "{}",
        model.rate() * model.span_s
    );
    let all = GenerateOptions {
        seed: 1,
        start_s: 0.0,
        seconds: model.span_s,
        requests: usize::MAX,
        rate: Rate::Times(1.0),
    };
    let twin = generate(&model, all);
    let facts = Facts::of(&twin);
    assert!((facts.requests as f64 / 1_429_737.0 - 1.0).abs() < 0.01, "{}", facts.requests);
    let share = |name: &str| {
        let of = facts.classes.iter().filter(|(class, _)| class.contains(name)).map(|(_, requests)| requests);
        of.sum::<usize>() as f64 / facts.requests as f64
    };
    assert!((share("GPT-4") - 0.153).abs() < 0.01 && (share("API log") - 0.896).abs() < 0.01);
    assert!((facts.failed as f64 / facts.requests as f64 - 0.0178).abs() < 0.001);
    // Tokens of 61 days over requests of 61 days; answers that failed have none.
    let tokens = facts.input_tokens.total + facts.output_tokens.total;
    let mean = tokens / facts.requests as f64;
    assert!((mean / MEAN_TOKENS_OF_THE_SUMS - 1.0).abs() < 0.02, "{mean}");
    assert!(facts.input_tokens.max <= 29_665.0);
    assert!(facts.minute_dispersion > 20.0, "{}", facts.minute_dispersion);
}

/// Tokens a request in the published sums of 61 days.
const MEAN_TOKENS_OF_THE_SUMS: f64 = 733.9;

#[test]
fn tokens_by_minute_of_burstgpts_first_week_pass_as_their_twins() {
    let Some(path) = whole("burstgpt_minute_aggregates.json.zst") else { return };
    let sums = Aggregates::parse(&unpacked_text(&path).unwrap(), "sums").unwrap();
    let rows = sums.compare(1);
    println!("{rows:?}");
    let [row] = &rows[..] else { panic!("one row") };
    // Two samples of 10,080 minutes: the critical distance at 1 % is 0.023.
    assert!(row.twin.distance < 0.023 && (row.twin_mean / row.mean - 1.0).abs() < 0.03, "{row:?}");
    assert!(row.poisson.unwrap().distance > 0.2 && row.poisson.unwrap().p_value < 1e-12, "{row:?}");
    // The model that is compiled in is this one.
    assert!(
        sums.model(sums.days()) == WorkloadModel::burstgpt().unwrap(),
        "fit the copy that is compiled in anew"
    );
}

#[test]
fn whole_traces_are_met_as_their_samples_are() {
    if let Some(path) = whole("mooncake_conversation.jsonl.zst") {
        let trace = Trace::read(&path).unwrap();
        assert_eq!(trace.requests.len(), 12_031);
        let rows = twin(&trace.spread(1), FitOptions::default());
        assert!(
            distance(&rows, "gap") < 0.05
                && distance(&rows, "prompt") < 0.06
                && distance(&rows, "answer") < 0.05
        );
        assert!(distance(&rows, "seconds to") < 0.08 && distance(&rows, "turns") < 0.1);
    }
    if let Some(path) = whole("azure_llm_2023_conv.csv.zst") {
        let trace = Trace::read(&path).unwrap();
        assert_eq!(trace.requests.len(), 19_366);
        let observed = twin(&trace, OBSERVED);
        assert!(distance(&observed, "gap") < 0.0164 && poisson(&observed, "gap") > 0.018);
        let gamma = twin(&trace, FitOptions::default());
        assert!(distance(&gamma, "gap") < 0.02);
    }
}
