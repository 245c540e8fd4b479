//! Constraints on tiny random models of every architecture: whatever the weights say, the text has the form that was asked for.

mod tiny;

use kvik_engine::{
    ConstraintSource, Engine, EngineError, EngineOptions, GenerateRequest, SamplingOptions, StopReason,
};
use serde_json::{Value, json};
use std::{ops::ControlFlow, path::Path};
use tiny::folders;

fn load(folder: &Path) -> Engine {
    let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
    Engine::load(&folder.join("model.gguf"), &options).unwrap()
}

fn request(source: ConstraintSource, seed: u64) -> GenerateRequest {
    GenerateRequest {
        prompt: vec![3, 40, 50, 60],
        sampling: SamplingOptions { temperature: 1.5, seed: Some(seed), ..SamplingOptions::default() },
        logprobs: Some(1),
        constraint: Some(source),
        ..GenerateRequest::default()
    }
}

#[test]
fn texts_have_the_form_that_was_asked_for() {
    let schema = json!({
        "type": "array", "minItems": 1, "maxItems": 3,
        "items": {"anyOf": [{"type": "string", "maxLength": 4, "pattern": "^[A-Za-z]*$"}, {"type": "integer", "minimum": -9, "maximum": 99}]},
    });
    let regex = regex::Regex::new("^[0-9]{2,4}-(th|a+b)$").unwrap();
    let inner = regex::Regex::new(r"^\((x{1,5}|\[y?\])\)$").unwrap();
    for folder in folders() {
        let mut engine = load(&folder);
        for seed in 0..4 {
            let mut generate = |source: ConstraintSource, stop: &StopReason| {
                let mut session = engine.session();
                let request = GenerateRequest { max_tokens: Some(60), ..request(source, seed) };
                let generation =
                    engine.generate(&mut session, &request, &mut |_| ControlFlow::Continue(())).unwrap();
                assert_eq!(generation.stop, *stop, "{}: {}", folder.display(), generation.text);
                // The model's own probabilities, whatever was taken out.
                assert!(
                    generation.logprobs.iter().all(|token| token.logprob.is_finite() && token.logprob < 0.0)
                );
                generation.text
            };
            let end = StopReason::EndOfText;
            let choices = ["yes", "no", "perhaps"].map(str::to_owned);
            let chosen = generate(ConstraintSource::Choice(choices.to_vec()), &end);
            assert!(choices.contains(&chosen), "{chosen:?}");
            let text = generate(ConstraintSource::JsonSchema(schema.clone()), &end);
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(jsonschema::is_valid(&schema, &value), "{text}");
            let text = generate(ConstraintSource::Regex("[0-9]{2,4}-(th|a{1,30}b)".into()), &end);
            assert!(regex.is_match(&text), "{text}");
            let grammar = "start: \"(\" inner \")\"\ninner: \"x\"{1,5} | \"[\" \"y\"? \"]\"";
            let text = generate(ConstraintSource::Grammar(grammar.into()), &end);
            assert!(inner.is_match(&text), "{text}");
        }
    }
}

#[test]
fn a_constraint_ends_the_text_though_the_end_is_ignored() {
    let mut engine = load(&folders()[0]);
    let mut session = engine.session();
    let choice = ConstraintSource::Choice(vec!["th".into(), "thth".into()]);
    let request = GenerateRequest { ignore_end_of_text: true, ..request(choice, 1) };
    let generation = engine.generate(&mut session, &request, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generation.stop, StopReason::EndOfText);
    assert!(["th", "thth"].contains(&generation.text.as_str()), "{}", generation.text);
}

#[test]
fn what_cannot_be_is_refused_before_the_prompt_is_read() {
    let folder = folders().into_iter().find(|folder| folder.ends_with("qwen3")).unwrap();
    let mut engine = load(&folder);
    let mut session = engine.session();
    for (source, reason) in [
        (ConstraintSource::Regex("(".into()), "the regular expression cannot be used: "),
        (ConstraintSource::Grammar("start: nothing".into()), "the grammar cannot be used: "),
        (ConstraintSource::Choice(vec![]), "the list of choices is empty: give at least one text"),
        (
            ConstraintSource::JsonSchema(json!({"$ref": "http://x/y"})),
            "the JSON schema refers to \"http://x/y\", and ",
        ),
        // The vocabulary of this model has no brace.
        (ConstraintSource::JsonObject, "the JSON schema cannot be used: "),
    ] {
        let error = engine
            .generate(&mut session, &request(source, 1), &mut |_| ControlFlow::Continue(()))
            .unwrap_err();
        assert!(matches!(error, EngineError::Constraint(_)), "{error}");
        assert!(error.to_string().starts_with(reason), "{error}");
    }
    assert!(session.tokens().is_empty());
}
