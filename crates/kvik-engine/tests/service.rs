//! The service on tiny random models: what a request gets does not depend on who else is there.

mod serving;

use kvik_engine::{
    Generation, Reply, Request, RequestError, SamplingOptions, Service, ServiceOptions, StopReason,
    SubmitError, Update, Usage, prefix::PrefixSharing,
};
use kvik_kv::Pipeline;
use std::time::{Duration, Instant};

use serving::*;

#[test]
fn batch_mates_change_nothing() {
    for model in ["llama", "gemma3", "qwen3"] {
        let requests: Vec<(Vec<u32>, Pipeline, usize)> =
            (0..12).map(|i| (tokens(i, 3 + 29 * i), pipeline(i), 5 + 7 * (i % 5))).collect();
        let mut engine_alone = engine(model);
        let expected: Vec<Generation> = requests
            .iter()
            .map(|(prompt, pipeline, max_tokens)| alone(&mut engine_alone, prompt, pipeline, *max_tokens))
            .collect();
        for sharing in [PrefixSharing::Off, PrefixSharing::All] {
            let options = ServiceOptions { prefix_sharing: sharing, ..options() };
            let service = Service::start(engine(model), options).unwrap();
            // Twice: the second time prefixes are there.
            for _ in 0..2 {
                let replies: Vec<Reply> = requests
                    .iter()
                    .map(|(prompt, pipeline, max_tokens)| {
                        let request =
                            Request { pipeline: pipeline.clone(), ..greedy(prompt.clone(), *max_tokens) };
                        service.submit(request).unwrap()
                    })
                    .collect();
                for ((reply, expected), request) in replies.into_iter().zip(&expected).zip(&requests) {
                    let what = format!("{model}, {}, {sharing:?}", request.1);
                    assert_same(&answer(reply), expected, &what);
                }
            }
            soon("the snapshot counts them", || service.status().totals.finished == 24);
            let status = service.status();
            assert_eq!(status.totals.preemptions, 0);
            let hits = status.prefixes.hits;
            assert_eq!(hits > 0, sharing == PrefixSharing::All, "{model}: {hits}");
        }
    }
}

#[test]
fn what_outgrows_the_budget_alone_ends() {
    let whole = engine("llama").kv_shape().block_bytes(64, 64);
    let service = service(ServiceOptions { kv_budget_bytes: Some(3 * whole), ..options() });
    let grown = answer(service.submit(greedy(tokens(1, 100), 300)).unwrap());
    // Three tiles are 192 rows, and the last token needs none.
    assert_eq!((grown.reason(), grown.ids.len()), (&StopReason::ContextFull, 192 - 100 + 1));
    // Text that waits for the rest of a stop string comes with the end.
    let whole_text = alone(&mut engine("llama"), &tokens(1, 100), &Pipeline::full(), grown.ids.len()).text;
    let stop = vec![format!("{}\u{1f980}", whole_text.chars().last().unwrap())];
    let held = answer(service.submit(Request { stop, ..greedy(tokens(1, 100), 300) }).unwrap());
    assert_eq!((held.reason(), &held.text), (&StopReason::ContextFull, &whole_text));
    let refused = service.submit(greedy(tokens(1, 200), 1)).unwrap_err();
    assert_eq!(refused, SubmitError::TooLarge { needed_bytes: 4 * whole, budget_bytes: 3 * whole });
    let compressed = Request { pipeline: pipeline(1), ..greedy(tokens(1, 300), 5) };
    let failed = answer(service.submit(compressed).unwrap());
    assert_eq!(failed.end.unwrap_err(), RequestError::OutOfMemory { budget_bytes: 3 * whole });
}

#[test]
fn answers_go_on_while_a_long_prompt_is_read() {
    let service = service(options());
    let short = service.submit(greedy(tokens(1, 5), 10)).unwrap();
    // 900 tokens are at least fifteen steps of 64.
    let long = service.submit(greedy(tokens(2, 900), 2)).unwrap();
    let late = service.submit(greedy(tokens(3, 5), 5)).unwrap();
    let (short, long) = (answer(short).timings(), answer(long).timings());
    assert!(short.total_seconds < long.time_to_first_token_seconds, "{short:?} {long:?}");
    assert_eq!(answer(late).ids.len(), 5);
    soon("the snapshot counts them", || service.status().totals.finished == 3);
    let totals = service.status().totals;
    assert!(totals.steps >= 15 && totals.prompt_tokens == 910, "{totals:?}");
}

#[test]
fn whoever_goes_away_leaves_nothing_behind() {
    let service = service(ServiceOptions { max_running: 2, ..options() });
    let mut running: Vec<Reply> =
        (0..2).map(|i| service.submit(slow(tokens(i, 200), 800)).unwrap()).collect();
    let waiting = service.submit(slow(tokens(5, 200), 800)).unwrap();
    for reply in &mut running {
        while !matches!(reply.blocking_next(), Some(Update::Token { .. })) {}
    }
    soon("a snapshot shows the memory", || service.status().kv.ram_bytes > 0);
    assert_eq!((service.status().running, service.status().waiting), (2, 1));
    drop(waiting);
    drop(running);
    soon("all memory comes back", || service.status().kv.ram_bytes == 0);
    let status = service.status();
    assert_eq!((status.running, status.waiting, status.totals.cancelled), (0, 0, 3));
    assert!(status.totals.completion_tokens < 1600, "{:?}", status.totals);
}

#[test]
fn memory_by_encoding_is_all_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().to_str().unwrap();
    let service = service(ServiceOptions { prefix_sharing: PrefixSharing::All, ..options() });
    let pipelines = [
        ("full".to_owned(), vec!["bf16"]),
        ("kivi(bits=2,residual=32)".to_owned(), vec!["affine-2-bits", "bf16"]),
        (format!("kivi(bits=4,residual=32)+tier(ram=0,path={file})"), vec!["affine-4-bits", "bf16"]),
        ("shadowkv(rank=8,budget=64,outliers=2)".to_owned(), vec!["bf16", "bf16-copies", "low-rank"]),
    ];
    for (seed, (pipeline, encodings)) in pipelines.iter().enumerate() {
        let parsed = Pipeline::parse(pipeline).unwrap();
        let mut reply = service.submit(Request { pipeline: parsed, ..slow(tokens(seed, 500), 400) }).unwrap();
        while !matches!(reply.blocking_next(), Some(Update::Token { .. })) {}
        // Whenever it is asked, the parts are all; and after the prompt, there is what the pipeline makes of it.
        soon(pipeline, || {
            let kv = service.status().kv;
            assert_eq!(kv.encodings.iter().map(|part| part.ram_bytes).sum::<usize>(), kv.ram_bytes);
            assert_eq!(kv.encodings.iter().map(|part| part.file_bytes).sum::<usize>(), kv.file_bytes);
            let mut names: Vec<&str> = kv.encodings.iter().map(|part| &*part.encoding).collect();
            names.sort_unstable();
            let in_file = kv.encodings.iter().find(|part| part.encoding == "affine-4-bits");
            let moved = in_file.is_none_or(|part| part.file_bytes > 0);
            names == *encodings && moved
        });
        drop(reply);
        soon("it ends", || service.status().running == 0);
    }
}

#[test]
fn a_shared_prefix_is_a_node_with_two_children() {
    let service = service(ServiceOptions { prefix_sharing: PrefixSharing::PerKey, ..options() });
    let prompt = |seed: usize| [tokens(1, 128), tokens(seed, 100)].concat();
    for (owner, seed) in [("ann", 2), ("ann", 3), ("ann", 4), ("ben", 2)] {
        let request = Request { owner: Some(owner.into()), ..greedy(prompt(seed), 3) };
        answer(service.submit(request).unwrap());
    }
    let mut running = service.submit(Request { owner: Some("ann".into()), ..slow(prompt(3), 500) }).unwrap();
    while !matches!(running.blocking_next(), Some(Update::Token { .. })) {}
    let locked =
        || service.status().prefix_trees.iter().flat_map(|tree| tree.nodes.clone()).any(|n| n.locks > 0);
    soon("the running request's lock shows", locked);
    let status = service.status();
    let [ann, ben] = &status.prefix_trees[..] else { panic!("{:?}", status.prefix_trees) };
    assert_eq!((ann.owner.as_deref(), ann.shared_by_all, ann.children), (Some("ann"), false, 1));
    assert_eq!((ben.owner.as_deref(), ben.nodes.len()), (Some("ben"), 1));
    let shape: Vec<_> =
        ann.nodes.iter().map(|node| (node.depth, node.tokens, node.prefix_tokens, node.children)).collect();
    assert_eq!(shape, [(0, 128, 128, 3), (1, 64, 192, 0), (1, 64, 192, 0), (1, 64, 192, 0)]);
    // The latest comes first, and has its lock and the hit of the request that runs.
    assert_eq!((ann.nodes[1].locks, ann.nodes[1].hits), (1, 1));
    let used: Vec<f64> = ann.nodes.iter().map(|node| node.last_used_seconds).collect();
    assert!(used[0] == used[1] && used[1] > used[2] && used[2] > used[3], "{used:?}");
    assert!(used[0] <= status.uptime_seconds);
    let all: usize = status.prefix_trees.iter().flat_map(|tree| &tree.nodes).map(|node| node.bytes).sum();
    assert_eq!(all, status.prefixes.bytes);
}

#[test]
fn a_flood_does_not_starve_others() {
    let service = service(ServiceOptions { max_running: 2, ..options() });
    let of = |owner: &str, seed: usize| Request { owner: Some(owner.into()), ..greedy(tokens(seed, 60), 20) };
    // Both places are taken until all have arrived, however slowly they are submitted.
    let mut first: Vec<Reply> = (0..2)
        .map(|i| service.submit(Request { priority: 1, ..slow(tokens(90 + i, 10), 400) }).unwrap())
        .collect();
    first.iter_mut().for_each(|reply| assert!(matches!(reply.blocking_next(), Some(Update::Started { .. }))));
    let flood: Vec<Reply> = (0..30).map(|i| service.submit(of("flood", i)).unwrap()).collect();
    let calm: Vec<Reply> = (0..3).map(|i| service.submit(of("calm", 50 + i)).unwrap()).collect();
    drop(first);
    let totals = |replies: Vec<Reply>| -> Vec<f64> {
        replies.into_iter().map(|reply| answer(reply).timings().total_seconds).collect()
    };
    let (flood, calm) = (totals(flood), totals(calm));
    // All arrived at nearly the same time. In the order of arrival, 30 requests come before.
    let slowest = calm.iter().copied().fold(0.0, f64::max);
    let before = flood.iter().filter(|total| **total < slowest).count();
    assert!(before <= 10, "{before} of the flood came before");
    soon("the snapshot has both", || {
        let owners = service.status().owners;
        owners.iter().filter(|o| o.owner.is_some()).map(|o| o.served_tokens).sum::<u64>() >= 33 * 79
    });
    let owners = service.status().owners;
    let calm = owners.iter().find(|owner| owner.owner.as_deref() == Some("calm")).unwrap();
    assert_eq!(calm.served_tokens, 3 * 79);
}

#[test]
fn time_runs_out_for_those_who_wait_and_those_who_run() {
    let service = service(ServiceOptions { max_running: 1, ..options() });
    let soon = Some(Instant::now() + Duration::from_millis(150));
    let running = Request { deadline: soon, ..slow(tokens(1, 10), 1000) };
    let running = service.submit(running).unwrap();
    let waiting = Request { deadline: soon, priority: -1, ..greedy(tokens(2, 10), 10) };
    let waiting = service.submit(waiting).unwrap();
    let (running, waiting) = (answer(running), answer(waiting));
    assert_eq!(*running.reason(), StopReason::Deadline);
    assert_eq!(waiting.end.unwrap_err(), RequestError::Deadline);
    assert_eq!(answer(service.submit(greedy(tokens(3, 10), 5)).unwrap()).ids.len(), 5);
    self::soon("the snapshot counts them", || service.status().totals.finished > 0);
    let totals = service.status().totals;
    assert_eq!((totals.overdue, totals.finished, totals.failed), (2, 1, 0));
}

#[test]
fn a_full_queue_turns_requests_away() {
    let service = service(ServiceOptions { max_running: 1, max_waiting: 3, ..options() });
    let mut first = service.submit(slow(tokens(1, 10), 900)).unwrap();
    while !matches!(first.blocking_next(), Some(Update::Token { .. })) {}
    let queued: Vec<Reply> = (0..3).map(|i| service.submit(greedy(tokens(i, 10), 3)).unwrap()).collect();
    let refused = service.submit(greedy(tokens(1, 10), 3)).unwrap_err();
    assert!(
        matches!(refused, SubmitError::Overloaded { retry_after } if retry_after >= Duration::from_secs(1))
    );
    drop(first);
    for reply in queued {
        assert_eq!(answer(reply).ids.len(), 3);
    }
    assert_eq!(service.status().totals.overloaded, 1);
}

#[test]
fn draining_finishes_what_was_accepted() {
    let service = service(options());
    let replies: Vec<Reply> = (0..20).map(|i| service.submit(greedy(tokens(i, 50), 30)).unwrap()).collect();
    service.drain();
    assert_eq!(service.submit(greedy(tokens(1, 10), 3)).unwrap_err(), SubmitError::Draining);
    service.stop(Duration::from_secs(60));
    for reply in replies {
        assert_eq!(answer(reply).ids.len(), 30);
    }
}

#[test]
fn what_is_not_done_in_time_is_told_so() {
    let service = service(options());
    let replies: Vec<Reply> = (0..20).map(|i| service.submit(slow(tokens(i, 50), 900)).unwrap()).collect();
    service.stop(Duration::from_millis(30));
    let answers: Vec<Answer> = replies.into_iter().map(answer).collect();
    assert!(answers.iter().any(|answer| answer.end == Err(RequestError::Stopped)));
    let status = service.status();
    assert_eq!((status.running, status.waiting), (0, 0));
}

#[test]
fn logits_are_steered() {
    let service = service(options());
    let prompt = tokens(1, 20);
    let plain = answer(service.submit(greedy(prompt.clone(), 30)).unwrap());

    let biased = Request { logit_bias: vec![(77, 100.0)], ..greedy(prompt.clone(), 5) };
    assert_eq!(answer(service.submit(biased).unwrap()).ids, [77; 5]);
    // With a bias that all other tokens lose to, penalties wear it down token by token.
    let worn = Request {
        logit_bias: vec![(77, 60.0), (78, 50.0)],
        frequency_penalty: 2.0,
        presence_penalty: 0.0,
        ..greedy(prompt.clone(), 20)
    };
    let worn = answer(service.submit(worn).unwrap()).ids;
    assert!(worn[..2] == [77, 77] && worn.contains(&78), "{worn:?}");

    // The first token of the plain answer made the end of the text: min_tokens keeps it away.
    let end = service.shared().tokenizer.as_ref().unwrap().end_of_generation()[0];
    let eager =
        Request { logit_bias: vec![(end, 100.0)], ignore_end_of_text: false, ..greedy(prompt.clone(), 30) };
    let ended = answer(service.submit(eager).unwrap());
    assert_eq!((ended.ids.as_slice(), ended.reason()), ([end].as_slice(), &StopReason::EndOfText));
    let eager = Request {
        logit_bias: vec![(end, 100.0)],
        ignore_end_of_text: false,
        min_tokens: 4,
        ..greedy(prompt, 30)
    };
    let ended = answer(service.submit(eager).unwrap());
    assert_eq!((ended.ids.len(), ended.ids[4]), (5, end));
    assert_eq!(ended.ids[..4], plain.ids[..4]);
}

#[test]
fn embeddings_depend_on_the_prompt_alone() {
    let embed = |service: &Service, prompt: &[u32]| {
        let request = Request { prompt: prompt.to_vec(), want_hidden: true, ..Request::default() };
        let mut reply = service.submit(request).unwrap();
        let mut embedding = None;
        while let Some(update) = reply.blocking_next() {
            match update {
                Update::Embedding(mean) => embedding = Some(mean),
                Update::Finished { usage, .. } => {
                    let expected = Usage { prompt_tokens: prompt.len(), ..Usage::default() };
                    assert_eq!(usage, expected);
                }
                Update::Started { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        embedding.unwrap()
    };
    let (prompt, other) = (tokens(1, 200), tokens(2, 200));
    let calm = embed(&service(ServiceOptions { step_tokens: 512, ..options() }), &prompt);
    let busy = service(options());
    let answers: Vec<Reply> = (0..4).map(|i| busy.submit(greedy(tokens(i, 90), 40)).unwrap()).collect();
    assert_eq!(embed(&busy, &prompt), calm);
    assert_ne!(embed(&busy, &other), calm);
    assert_eq!(calm.len(), busy.shared().model.hidden_size);
    for reply in answers {
        assert_eq!(answer(reply).ids.len(), 40);
    }
}

#[test]
fn prompts_that_arrive_together_are_read_once() {
    let service = service(ServiceOptions { prefix_sharing: PrefixSharing::All, ..options() });
    let common = tokens(1, 512);
    let prompt = |i: usize| [common.clone(), tokens(i, 20)].concat();
    let replies: Vec<Reply> = (0..6).map(|i| service.submit(greedy(prompt(i), 10)).unwrap()).collect();
    let answers: Vec<Answer> = replies.into_iter().map(answer).collect();
    let mut engine_alone = engine("llama");
    for (index, got) in answers.iter().enumerate() {
        assert_same(got, &alone(&mut engine_alone, &prompt(index), &Pipeline::full(), 10), "shared");
        assert_eq!(got.prefix_tokens, got.usage().cached_tokens);
        assert!(index == 0 || got.prefix_tokens >= 512, "{}", got.prefix_tokens);
    }
    soon("the snapshot counts them", || service.status().totals.finished == 6);
    assert_eq!(service.status().totals.prompt_tokens, 532 + 5 * 20);
}

#[test]
fn requests_that_mean_nothing_are_refused_at_once() {
    let service = service(options());
    let refused = |request: Request| service.submit(request).unwrap_err();
    let too_long = refused(greedy(tokens(1, CONTEXT_TOKENS), 1));
    let expected = SubmitError::TooLong { prompt_tokens: CONTEXT_TOKENS, context_tokens: CONTEXT_TOKENS };
    assert_eq!(too_long, expected);
    let invalid = |request: Request, part: &str| {
        let SubmitError::Invalid(sentence) = refused(request) else { panic!("{part}") };
        assert!(sentence.contains(part), "{sentence}");
    };
    invalid(greedy(vec![1, 5000], 1), "token 5000 at position 1");
    let cold = SamplingOptions { temperature: -1.0, ..SamplingOptions::default() };
    invalid(Request { sampling: cold, ..greedy(vec![5], 1) }, "temperature");
    invalid(Request { stop: vec![String::new()], ..greedy(vec![5], 1) }, "stop string");
    invalid(Request { logit_bias: vec![(5000, 1.0)], ..greedy(vec![5], 1) }, "token 5000");
    invalid(Request { presence_penalty: f32::NAN, ..greedy(vec![5], 1) }, "penalty");
    let odd = Pipeline::parse("hadamard").unwrap();
    invalid(Request { pipeline: odd, ..greedy(vec![5], 1) }, "hadamard");
    // And nothing of them is left.
    assert_eq!((service.status().waiting, service.status().totals.requests), (0, 0));

    let options = ServiceOptions { step_tokens: 8, max_running: 8, ..options() };
    let refused = Service::start(engine("llama"), options).err().unwrap().to_string();
    assert!(refused.contains("more tokens than sequences"), "{refused}");
}
