//! Requests that have to give their memory to others: what they get in the end is what they would have got alone.

mod serving;

use kvik_engine::{
    Reply, Request, Service, ServiceOptions, Update,
    prefix::{PrefixSharing, Report},
};
use kvik_kv::Pipeline;
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serving::*;

#[test]
fn preempted_answers_go_on_where_they_stopped() {
    let mut engine_alone = engine("llama");
    let whole = engine_alone.kv_shape().block_bytes(64, 64);
    let requests: Vec<(Vec<u32>, Pipeline)> = (0..8).map(|i| (tokens(i, 40 + 20 * i), pipeline(i))).collect();
    // Each comes to five to eight tiles; the budget holds two or three such.
    let service = service(ServiceOptions { kv_budget_bytes: Some(16 * whole), ..options() });
    let replies = submit_all(&service, &requests, 260);
    let mut preemptions = 0;
    for (reply, (prompt, pipeline)) in replies.into_iter().zip(&requests) {
        let got = answer(reply);
        preemptions += got.timings().preemptions;
        assert_same(&got, &alone(&mut engine_alone, prompt, pipeline, 260), &pipeline.to_string());
    }
    assert!(preemptions > 0);
    soon("all memory comes back", || service.status().kv.ram_bytes == 0);
    soon("the snapshot counts them", || service.status().totals.finished == 8);
    assert_eq!(service.status().totals.preemptions, u64::from(preemptions));
}

/// Files of this process in `folder`, those without a name included.
fn open_files(folder: &Path) -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    // The one that lists them is gone when it is looked at.
    let targets = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    targets.filter(|target| target.starts_with(folder)).count()
}

fn nothing_is_left(service: &Service, folder: &Path) {
    soon("all files are given back", || service.status().kv.file_bytes == 0 && open_files(folder) == 0);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
}

#[test]
fn preempted_answers_come_back_from_a_file() {
    // Tiles that the budget holds: with sliding windows sequences need fewer.
    for (model, sharing, tiles) in [
        ("llama", PrefixSharing::Off, 16),
        ("gemma3", PrefixSharing::All, 7),
        ("qwen3", PrefixSharing::All, 16),
    ] {
        let mut engine_alone = engine(model);
        let whole = engine_alone.kv_shape().block_bytes(64, 64);
        // Those that cannot be moved came first, so that they are not the only ones to give way.
        let others = ["shadowkv(budget=64)", "tier(ram=1KiB)", "minicache(start=0)"]
            .map(|kv| Pipeline::parse(kv).unwrap());
        let fits = |pipeline: &Pipeline| pipeline.methods(engine_alone.kv_shape()).is_ok();
        let pipelines: Vec<Pipeline> =
            others.into_iter().chain((0..PIPELINES.len()).map(pipeline)).filter(fits).collect();
        let requests: Vec<(Vec<u32>, Pipeline)> = pipelines
            .into_iter()
            .enumerate()
            .map(|(i, pipeline)| (tokens(i, 60 + 20 * i), pipeline))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let spill_dir = Some(folder.path().to_owned());
        let budget = Some(tiles * whole);
        let options =
            ServiceOptions { kv_budget_bytes: budget, spill_dir, prefix_sharing: sharing, ..options() };
        let heard = Arc::new(Mutex::new(Vec::new()));
        let service = Service::start_reporting(engine(model), options, hearing(&heard)).unwrap();
        let replies = submit_all(&service, &requests, 260);
        for (reply, (prompt, pipeline)) in replies.into_iter().zip(&requests) {
            let expected = alone(&mut engine_alone, prompt, pipeline, 260);
            assert_same(&answer(reply), &expected, &format!("{model}, {pipeline}"));
        }
        soon("the snapshot counts them", || service.status().totals.finished == requests.len() as u64);
        let totals = service.status().totals;
        assert!((1..=totals.preemptions).contains(&totals.preemptions_to_tier), "{model}: {totals:?}");
        assert!(totals.restored_tokens >= 64, "{model}: {totals:?}");
        if sharing == PrefixSharing::All {
            // However often each was admitted.
            assert_eq!(service.status().prefixes.requests, requests.len() as u64);
        }
        nothing_is_left(&service, folder.path());
        assert!(heard.lock().unwrap().is_empty(), "{heard:?}");
    }
}

/// Keeps what is reported.
fn hearing(heard: &Arc<Mutex<Vec<String>>>) -> Report {
    let heard = Arc::clone(heard);
    Arc::new(move |text: &str| heard.lock().unwrap().push(text.to_owned()))
}

/// One place for requests, and a folder for those who lose it.
fn one_place(folder: &Path) -> ServiceOptions {
    ServiceOptions { max_running: 1, spill_dir: Some(folder.to_owned()), ..options() }
}

#[test]
fn nothing_is_computed_twice_that_was_moved() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(one_place(folder.path()));
    let prompt = tokens(1, 100);
    let mut low = service.submit(slow(prompt.clone(), 40)).unwrap();
    while !matches!(low.blocking_next(), Some(Update::Token { .. })) {}
    let urgent =
        |seed: usize| service.submit(Request { priority: 1, ..greedy(tokens(seed, 30), 10) }).unwrap();
    assert_eq!(answer(urgent(2)).ids.len(), 10);
    it_runs_alone(&service);
    assert_eq!(answer(urgent(3)).ids.len(), 10);
    let expected = alone(&mut engine("llama"), &prompt, &Pipeline::full(), 40);
    assert_eq!(rest(low), expected.completion_ids[1..]);
    soon("the snapshot counts them", || service.status().totals.finished == 3);
    let totals = service.status().totals;
    assert_eq!((totals.preemptions, totals.preemptions_to_tier), (2, 2));
    assert_eq!(totals.prompt_tokens, 100 + 2 * 30);
    assert!((200..300).contains(&totals.restored_tokens), "{totals:?}");
    nothing_is_left(&service, folder.path());
}

#[test]
fn whoever_goes_away_while_moved_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(one_place(folder.path()));
    let mut low = service.submit(slow(tokens(1, 100), 900)).unwrap();
    while !matches!(low.blocking_next(), Some(Update::Token { .. })) {}
    let high = service.submit(Request { priority: 1, ..slow(tokens(2, 30), 900) }).unwrap();
    soon("the cache is in a file", || service.status().kv.file_bytes > 0);
    assert_eq!(open_files(folder.path()), 1);
    drop(low);
    nothing_is_left(&service, folder.path());
    assert_eq!(service.status().running, 1);
    drop(high);
}

/// Waits until one request runs, and none waits.
fn it_runs_alone(service: &Service) {
    let alone = || (service.status().running, service.status().waiting) == (1, 0);
    soon("it runs", alone);
    // The one that has just ended may have been it.
    thread::sleep(Duration::from_millis(5));
    soon("it runs", alone);
}

#[test]
fn without_a_folder_to_write_to_all_is_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let service =
        Service::start_reporting(engine("llama"), one_place(folder.path()), hearing(&heard)).unwrap();
    folder.close().unwrap();
    let prompt = tokens(1, 100);
    let mut low = service.submit(slow(prompt.clone(), 60)).unwrap();
    while !matches!(low.blocking_next(), Some(Update::Token { .. })) {}
    for seed in 2..4 {
        it_runs_alone(&service);
        // Long enough for the disk to have failed.
        let high = Request { priority: 1, ..slow(tokens(seed, 30), 60) };
        assert_eq!(answer(service.submit(high).unwrap()).ids.len(), 60);
    }
    let expected = alone(&mut engine("llama"), &prompt, &Pipeline::full(), 60);
    assert_eq!(rest(low), expected.completion_ids[1..]);
    soon("the snapshot counts them", || service.status().totals.finished == 3);
    let totals = service.status().totals;
    assert_eq!((totals.preemptions, totals.restored_tokens), (2, 0), "{totals:?}");
    assert!(totals.prompt_tokens >= 2 * 100 + 2 * 30, "{totals:?}");
    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), 1, "one disk, one sentence: {heard:?}");
    assert!(heard[0].contains("computed again"), "{heard:?}");

    let nowhere = Path::new("/no/such/folder");
    let refused = Service::start(engine("llama"), one_place(nowhere)).err().unwrap().to_string();
    assert!(refused.contains("/no/such/folder"), "{refused}");
}

/// The tokens that are still to come.
fn rest(mut reply: Reply) -> Vec<u32> {
    let mut ids = Vec::new();
    while let Some(update) = reply.blocking_next() {
        match update {
            Update::Token { id, .. } => ids.push(id),
            Update::Finished { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    ids
}

#[test]
fn a_higher_priority_takes_the_place_of_a_lower() {
    let service = service(ServiceOptions { max_running: 1, ..options() });
    let prompt = tokens(1, 100);
    let mut low = service.submit(slow(prompt.clone(), 300)).unwrap();
    while !matches!(low.blocking_next(), Some(Update::Token { .. })) {}
    let high = answer(service.submit(Request { priority: 1, ..greedy(tokens(2, 30), 10) }).unwrap());
    let mut rest = Vec::new();
    let timings = loop {
        match low.blocking_next().unwrap() {
            Update::Token { id, .. } => rest.push(id),
            Update::Finished { timings, .. } => break timings,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(timings.preemptions, 1);
    assert!(high.timings().total_seconds < timings.total_seconds);
    let expected = alone(&mut engine("llama"), &prompt, &Pipeline::full(), 300);
    assert_eq!(rest, expected.completion_ids[1..]);
}
