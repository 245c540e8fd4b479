//! Constraints on SmolLM2: what they cost beside a vocabulary of 49,152 tokens, and what the command gives.

mod smollm2;

use std::{
    ops::ControlFlow,
    process::Command,
    time::{Duration, Instant},
};

use kvik_engine::{
    ConstraintSource, GenerateRequest, SamplingOptions, StopReason, sampling::TokenMask, tool_calls,
};
use kvik_model::tokenizer::EncodeOptions;
use serde_json::{Value, json};

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "languages": {"type": "array", "items": {"enum": ["English", "French", "中文"]}, "maxItems": 3},
            "address": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                        "required": ["city", "zip"], "additionalProperties": false},
        },
        "required": ["name", "age", "languages", "address"],
        "additionalProperties": false,
    })
}

/// Well below the time of a forward pass, which is tens of milliseconds: measured are tens of microseconds.
const MASK_LIMIT: Duration = Duration::from_millis(5);

#[test]
fn a_mask_costs_little_beside_a_forward_pass() {
    let engine = smollm2::engine(1);
    let start = Instant::now();
    let compiler = engine.constraint_compiler().unwrap();
    println!("compiler for {} tokens: {:.1?}", engine.model_config().vocabulary, start.elapsed());
    let text = "{\"name\": \"Ada \\\"Countess\\\" Lovelace of Ōtāhuhu\", \"age\": 36, \"languages\": [\"English\", \"中文\"], \
                \"address\": {\"city\": \"London, Marylebone\", \"zip\": \"12345\"}}";
    let json_text = "(\\{|\\}|\\[|\\]|:|,| |\"[^\"\\\\]*\"|[0-9]+|\\\\\"|[^\\n])*";
    let grammar = "start: value\nvalue: object | list | STRING | NUMBER\nobject: \"{\" (pair (\", \" pair)*)? \"}\"\npair: STRING \": \" value\n\
                   list: \"[\" (value (\", \" value)*)? \"]\"\nSTRING: /\"([^\"\\\\\\n]|\\\\.)*\"/\nNUMBER: /[0-9]+/";
    for (name, source) in [
        ("JSON schema", ConstraintSource::JsonSchema(person())),
        ("any JSON object", ConstraintSource::JsonObject),
        ("regular expression", ConstraintSource::Regex(json_text.into())),
        ("grammar", ConstraintSource::Grammar(grammar.into())),
    ] {
        let start = Instant::now();
        let mut constraint = compiler.compile(&source).unwrap();
        let compiling = start.elapsed();
        let tokens = engine.tokenizer().unwrap().encode(text, EncodeOptions::default()).unwrap();
        let mut logits = vec![0.0f32; engine.model_config().vocabulary];
        let mut times: Vec<Duration> = Vec::new();
        for id in tokens {
            logits.fill(0.0);
            let start = Instant::now();
            constraint.mask(&mut logits).unwrap();
            let masked = start.elapsed();
            assert_eq!(logits[id as usize], 0.0, "{name} forbids {id} of {text}");
            let start = Instant::now();
            constraint.accept(id).unwrap();
            times.push(masked + start.elapsed());
        }
        assert!(constraint.may_end(), "{name}");
        times.sort_unstable();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        let mean = times.iter().sum::<Duration>() / times.len() as u32;
        println!(
            "{name}: compiled in {compiling:.1?}; a token takes {mean:.1?}, median {median:.1?}, at most {most:.1?}"
        );
        assert!(median < MASK_LIMIT, "{name}: {median:?}");
    }
}

#[test]
fn greedy_answers_follow_schema_and_tools() {
    let mut engine = smollm2::engine(1);
    let tools = [tool_calls::Tool {
        name: "get_weather".into(),
        description: Some("The weather in a city".into()),
        parameters: Some(
            json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"], "additionalProperties": false}),
        ),
    }];
    let template = engine.chat_template().unwrap().unwrap().clone();
    let format = tool_calls::ToolCallFormat::of_template(template.source());
    assert_eq!(format, tool_calls::ToolCallFormat::SmolLm);
    assert!(!template.knows_tools());
    let tool =
        json!({"type": "function", "function": {"name": "get_weather", "parameters": tools[0].parameters}});
    let choice = tool_calls::ToolChoice::Required;
    let forced = tool_calls::forced_call(format, engine.tokenizer().unwrap(), &tools, &choice, false)
        .unwrap()
        .unwrap();

    let mut answer = |system: &str, question: &str, source: ConstraintSource| {
        let messages =
            [kvik_model::Message::new("system", system), kvik_model::Message::new("user", question)];
        let request = GenerateRequest {
            prompt: template.encode(engine.tokenizer().unwrap(), &messages, true).unwrap(),
            max_tokens: Some(300),
            sampling: SamplingOptions::greedy(),
            constraint: Some(source),
            ..GenerateRequest::default()
        };
        let mut session = engine.session();
        let generation = engine.generate(&mut session, &request, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(generation.stop, StopReason::EndOfText, "{}", generation.text);
        println!("{}", generation.text);
        generation.text
    };
    let text = answer("Answer in JSON.", "Describe Marie Curie.", ConstraintSource::JsonSchema(person()));
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value["age"].is_u64() && value["address"]["zip"].as_str().unwrap().len() == 5, "{text}");

    let text = answer(&tool_calls::instructions(format, &[tool]), "What is the weather in Paris?", forced);
    let mut parser = tool_calls::ToolCallParser::new(format, ["get_weather".to_owned()]);
    let deltas = [parser.push(&text), parser.finish()].concat();
    let [
        tool_calls::ToolDelta::Call { name, .. },
        tool_calls::ToolDelta::Arguments { text, .. },
        tool_calls::ToolDelta::End { complete: true, .. },
    ] = &deltas[..]
    else {
        panic!("{deltas:?}")
    };
    assert_eq!(name, "get_weather");
    assert_eq!(serde_json::from_str::<Value>(text).unwrap()["city"], "Paris");
}

#[test]
fn the_command_takes_a_schema_a_grammar_and_an_expression() {
    let folder = tempfile::tempdir().unwrap();
    let model = smollm2::path();
    let schema = folder.path().join("person.json");
    std::fs::write(&schema, person().to_string()).unwrap();
    let grammar = folder.path().join("answer.lark");
    std::fs::write(&grammar, "start: \"The answer is \" /[0-9]{1,3}/ \".\"").unwrap();
    let run = |constraint: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kvik"))
            .args(["generate", "What is 2 + 3?", "--temperature", "0", "--max-tokens", "250", "--model"])
            .arg(&model)
            .args(constraint)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let person: Value = serde_json::from_str(&run(&["--json-schema", schema.to_str().unwrap()])).unwrap();
    assert!(person["languages"].is_array());
    let answer = run(&["--grammar", grammar.to_str().unwrap()]);
    assert!(answer.starts_with("The answer is ") && answer.ends_with(".\n"), "{answer:?}");
    let digits = run(&["--regex", "[0-9]{4}"]);
    assert!(digits.len() == 5 && digits[..4].bytes().all(|byte| byte.is_ascii_digit()), "{digits:?}");
    let choice = run(&["--choice", "five", "--choice", "six"]);
    assert!(["five\n", "six\n"].contains(&choice.as_str()), "{choice:?}");
}
