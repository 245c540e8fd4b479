//! Every task with the real tokenizer of SmolLM2: exact lengths, the same items for the same seed, a solver that gets
//! everything right, and guesses that do not.

use std::{collections::HashSet, sync::LazyLock};

use kvik_eval::{
    data::DataFolder,
    item::{Item, Job},
    prompt::{Prompter, Style},
    tasks::{Choice, Kit, Plan, REGISTRY, Task, next_by_induction},
};
use kvik_model::{ChatTemplate, Checkpoint, Tokenizer};

static MODEL: LazyLock<(Tokenizer, ChatTemplate)> = LazyLock::new(|| {
    let path = kvik::pull::ensure("smollm2").unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let template = ChatTemplate::from_checkpoint(&checkpoint).unwrap().unwrap();
    (Tokenizer::from_checkpoint(&checkpoint).unwrap(), template)
});

fn kit() -> Kit<'static> {
    let (tokenizer, template) = &*MODEL;
    // No folder: the tests need the samples only.
    Kit {
        prompter: Prompter::new(tokenizer, Some(template)).unwrap(),
        data: DataFolder::at("no/such/folder"),
    }
}

fn plan() -> Plan {
    Plan { lengths: vec![900, 1500], items: 6, turns: 5, ..Plan::default() }
}

fn items(name: &str, plan: &Plan) -> Vec<Item> {
    let choice = Choice::parse(name).unwrap();
    choice.task.items(&kit(), plan, &choice.parts).unwrap()
}

/// Tasks whose prompts have the length that is asked for.
const EXACT: [&str; 8] = ["ppl", "kl", "copy", "recall", "passkey", "niah", "ruler", "scbench"];

#[test]
fn prompts_have_exactly_the_length_asked_for() {
    for name in EXACT {
        for item in items(name, &plan()) {
            let asked = match &item.job {
                Job::Answer { turns, .. } => turns[0].question.len(),
                Job::Force(_) => 0,
            };
            assert_eq!(item.context.len() + asked, item.length, "{name} {}", item.id);
        }
    }
}

#[test]
fn items_depend_on_the_seed_alone() {
    for task in REGISTRY {
        let (first, again) = (items(task.name(), &plan()), items(task.name(), &plan()));
        assert_eq!(first, again, "{}", task.name());
        let ids: HashSet<&String> = first.iter().map(|item| &item.id).collect();
        assert_eq!(ids.len(), first.len(), "{}", task.name());
        // Windows of running text are the same for every seed.
        if !["ppl", "kl"].contains(&task.name()) {
            assert_ne!(first, items(task.name(), &Plan { seed: 2, ..plan() }), "{}", task.name());
        }
        // More items do not change those before them, where items are not spread over something.
        if ["ruler", "scbench"].contains(&task.name()) {
            let more = items(task.name(), &Plan { items: 7, ..plan() });
            for item in &first {
                assert!(more.contains(item), "{} {}", task.name(), item.id);
            }
        }
    }
}

/// Runs the solver over all questions and returns the sums of its marks, of the guesses' and of all.
fn solve(task: &dyn Task, items: &[Item]) -> (f64, f64, usize) {
    let (mut solved, mut guessed, mut of) = (0.0, 0.0, 0);
    let kit = kit();
    for item in items {
        match &item.job {
            Job::Answer { turns, .. } => {
                let context = kit.prompter.read(&item.context);
                for turn in turns {
                    let question = kit.prompter.read(&turn.question);
                    let answer = task.solve(turn.family, &context, &question);
                    // Answers of published sets are not in their texts: there the reference must pass.
                    let answer = answer.unwrap_or_else(|| {
                        assert_eq!(task.name(), "gsm8k", "{} {question}", item.id);
                        turn.references[0].clone()
                    });
                    let mark = turn.scorer.score(&answer, &turn.references);
                    assert_eq!(mark, 1.0, "{} {}: {answer:?} for {question:?}", task.name(), item.id);
                    solved += mark;
                    guessed += turn.scorer.score(&turn.guess, &turn.references);
                    of += 1;
                }
            }
            Job::Force(forced) => {
                for span in &forced.spans {
                    let mut right = true;
                    for at in span.start..span.start + span.tokens {
                        let read = [&item.context[..], &forced.continuation[..at]].concat();
                        right &= next_by_induction(&read) == Some(forced.continuation[at]);
                    }
                    solved += f64::from(u8::from(right));
                    let wanted = &forced.continuation[span.start..span.start + span.tokens];
                    guessed += f64::from(u8::from(span.guess == wanted));
                    of += 1;
                }
            }
        }
    }
    (solved, guessed, of)
}

#[test]
fn solvers_get_everything_right_and_guesses_little() {
    // The most that guesses may get: for labels, a quarter and six deviations.
    for (name, most_guessed) in [
        ("copy", 0.02),
        ("recall", 0.2),
        ("passkey", 0.0),
        ("niah", 0.0),
        ("ruler:niah_single", 0.0),
        ("ruler:niah_multikey", 0.0),
        ("ruler:niah_multivalue", 0.0),
        ("ruler:niah_multiquery", 0.0),
        ("ruler:vt", 0.8),
        ("ruler:cwe", 0.5),
        ("ruler:fwe", 0.5),
        ("scbench:kv", 0.3),
        ("scbench:prefix_suffix", 0.2),
        ("scbench:vt", 0.5),
        ("scbench:many_shot", 0.6),
        ("scbench:mf", 0.2),
        ("gsm8k", 0.5),
    ] {
        let choice = Choice::parse(name).unwrap();
        let items = items(name, &Plan { lengths: vec![1500], ..plan() });
        let (solved, guessed, of) = solve(choice.task, &items);
        assert!(of >= 6, "{name}");
        assert_eq!(solved, of as f64, "{name}");
        assert!(guessed <= most_guessed * of as f64, "{name}: {guessed} of {of}");
    }
}

#[test]
fn guesses_hit_where_there_is_little_to_choose_from() {
    let choice = Choice::parse("scbench:many_shot").unwrap();
    let items = items("scbench:many_shot", &Plan { lengths: vec![900], items: 20, ..plan() });
    let (_, guessed, of) = solve(choice.task, &items);
    // 200 questions, each twice (both modes): a quarter, with a deviation of 0.043 over the 100 different ones.
    assert!((guessed / of as f64 - 0.25).abs() < 0.2, "{guessed} of {of}");
}

#[test]
fn the_chat_template_is_cut_at_the_messages() {
    let (tokenizer, template) = &*MODEL;
    let prompter = &kit().prompter;
    let messages = [
        kvik_model::Message::new("user", "One?"),
        kvik_model::Message::new("assistant", "Two."),
        kvik_model::Message::new("user", "Three?"),
    ];
    let whole = template.encode(tokenizer, &messages, true).unwrap();
    let pieces = [
        prompter.opening(Style::Chat),
        prompter.text("One?").unwrap(),
        prompter.ask(Style::Chat).unwrap(),
        prompter.text("Two.").unwrap(),
        prompter.next(Style::Chat).unwrap(),
        prompter.text("Three?").unwrap(),
        prompter.ask(Style::Chat).unwrap(),
    ];
    assert_eq!(pieces.concat(), whole);
}

#[test]
fn impossible_lengths_are_refused_in_a_sentence() {
    for name in EXACT {
        let choice = Choice::parse(name).unwrap();
        let result = choice.task.items(&kit(), &Plan { lengths: vec![3], ..plan() }, &choice.parts);
        match result {
            // One token of context is all that running text needs.
            Ok(_) => assert!(["ppl", "kl"].contains(&name), "{name}"),
            Err(error) => assert!(error.to_string().contains("needs at least"), "{name}: {error}"),
        }
    }
    let choice = Choice::parse("recall").unwrap();
    let error = choice.task.items(&kit(), &Plan { lengths: vec![60_000], ..plan() }, &[]).unwrap_err();
    assert!(error.to_string().contains("1,500 words"), "{error}");
    let choice = Choice::parse("ppl").unwrap();
    let error = choice.task.items(&kit(), &Plan { items: 10_000, ..plan() }, &[]).unwrap_err();
    assert!(error.to_string().contains("KVIK_DATA"), "{error}");
}
