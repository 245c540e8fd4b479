//! Answers of every family, cut at every place; and forced calls by a model that chooses at random.

use super::*;
use crate::{
    constraint::{Constraint, ConstraintCompiler},
    language_model::fake::byte_tokenizer_with,
    randomness::{Purpose, uniform},
    sampling::TokenMask,
};
use kvik_model::Tokenizer;
use proptest::prelude::*;
use serde_json::json;

/// What an answer came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    text: String,
    /// Name, arguments, and whether it came to its end.
    calls: Vec<(String, String, Option<bool>)>,
}

impl Answer {
    fn add(&mut self, deltas: Vec<ToolDelta>) {
        for delta in deltas {
            match delta {
                ToolDelta::Text(text) => {
                    assert!(!text.is_empty());
                    self.text += &text;
                }
                ToolDelta::Call { index, name } => {
                    assert_eq!(index, self.calls.len());
                    assert!(self.calls.last().is_none_or(|(.., ended)| ended.is_some()));
                    self.calls.push((name, String::new(), None));
                }
                ToolDelta::Arguments { index, text } => {
                    assert!(
                        index + 1 == self.calls.len() && self.calls[index].2.is_none() && !text.is_empty()
                    );
                    self.calls[index].1 += &text;
                }
                ToolDelta::End { index, complete } => {
                    assert!(index + 1 == self.calls.len() && self.calls[index].2.is_none());
                    self.calls[index].2 = Some(complete);
                }
            }
        }
    }
}

fn parser(format: ToolCallFormat) -> ToolCallParser {
    ToolCallParser::new(format, ["get_weather".to_owned(), "find".to_owned()])
}

fn read<'a>(format: ToolCallFormat, pieces: impl IntoIterator<Item = &'a str>) -> Answer {
    let (mut parser, mut answer) = (parser(format), Answer::default());
    pieces.into_iter().for_each(|piece| answer.add(parser.push(piece)));
    answer.add(parser.finish());
    assert_eq!(parser.calls(), answer.calls.len());
    assert!(answer.calls.iter().all(|(.., ended)| ended.is_some()));
    answer
}

/// The answer whole, cut in two at every place, and character by character: always the same.
fn read_all_cuts(format: ToolCallFormat, text: &str) -> Answer {
    let whole = read(format, [text]);
    for cut in (0..=text.len()).filter(|&cut| text.is_char_boundary(cut)) {
        let (head, tail) = text.split_at(cut);
        assert_eq!(read(format, [head, tail]), whole, "{format:?}: {head:?} and {tail:?}");
    }
    let characters = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
    assert_eq!(read(format, characters), whole, "{format:?}: {text:?}");
    whole
}

fn call(name: &str, arguments: &str) -> (String, String, Option<bool>) {
    (name.to_owned(), arguments.to_owned(), Some(true))
}

#[test]
fn calls_of_every_family() {
    let paris = || call("get_weather", "{\"city\": \"Paris\", \"days\": [1, {\"a\": \"}]\\\"\"}]}");
    let find = || call("find", "{}");
    let arguments = "{\"city\": \"Paris\", \"days\": [1, {\"a\": \"}]\\\"\"}]}";
    let object = format!("{{\"name\": \"get_weather\", \"arguments\": {arguments}}}");
    let llama = object.replace("arguments", "parameters");
    use ToolCallFormat::*;
    for (format, text, rest, calls) in [
        (Hermes, format!("<tool_call>\n{object}\n</tool_call>"), "", vec![paris()]),
        (
            Hermes,
            format!(
                "Let me see.\n\n<tool_call>{object}</tool_call>\n<tool_call>\n{{\"name\": \"find\"}}\n</tool_call>\n"
            ),
            "Let me see.",
            vec![paris(), find()],
        ),
        // The order of keys, other keys, arguments as a string, no arguments.
        (
            Hermes,
            "<tool_call>{\"id\": [1], \"arguments\": {\"a\": 1}, \"name\": \"x y\"}</tool_call>".into(),
            "",
            vec![call("x y", "{\"a\": 1}")],
        ),
        (Hermes, "<tool_call>{\"name\":\"find\",\"arguments\":null}</tool_call>".into(), "", vec![find()]),
        (
            Hermes,
            "<tool_call>{\"name\":\"find\",\"arguments\":\"{\\\"é\\\": \\\"\\\\n\\\"}\"}</tool_call>".into(),
            "",
            vec![call("find", "{\"é\": \"\\n\"}")],
        ),
        // The closing mark is missing, and the next call begins.
        (
            Hermes,
            format!("<tool_call>{object}\n<tool_call>{object}</tool_call> Done."),
            " Done.",
            vec![paris(), paris()],
        ),
        (
            SmolLm,
            format!("<tool_call>[{object}, {{\"name\": \"find\", \"arguments\": {{}}}}]</tool_call>"),
            "",
            vec![paris(), find()],
        ),
        (SmolLm, "<tool_call>[]</tool_call>".into(), "", vec![]),
        (Llama, llama.clone(), "", vec![paris()]),
        (
            Llama,
            format!("\n{llama}; {{\"type\": \"function\", \"name\": \"find\", \"parameters\": {{}}}}"),
            "",
            vec![paris(), find()],
        ),
        (Llama, format!("<|python_tag|>{llama}"), "", vec![paris()]),
        (Mistral, format!("[TOOL_CALLS] [{object}, {object}]"), "", vec![paris(), paris()]),
        (Mistral, format!("Yes: [TOOL_CALLS][{object}]"), "Yes:", vec![paris()]),
        (
            MistralArgs,
            format!("[TOOL_CALLS]get_weather[ARGS]{arguments}[TOOL_CALLS]find[CALL_ID]a1B2[ARGS]{{}}"),
            "",
            vec![paris(), find()],
        ),
        (MistralArgs, format!("[TOOL_CALLS]get_weather{arguments}"), "", vec![paris()]),
        (Json, object.clone(), "", vec![paris()]),
        (Json, format!("[{object},\n {object}]"), "", vec![paris(), paris()]),
    ] {
        let answer = read_all_cuts(format, &text);
        assert_eq!(answer, Answer { text: rest.into(), calls }, "{format:?}: {text}");
    }
}

#[test]
fn what_is_no_call_is_text_to_the_last_character() {
    for format in ToolCallFormat::ALL {
        for text in [
            "",
            " \n",
            "Hello <tool",
            "a < b, <<tool_cal>, [TOOL_CALL",
            "  {\"name\": \"Ada\", \"born\": 1815}\n",
            "{\"name\": \"nobody\", \"arguments\": {\"x\": 1}}",
            "{\"answer\": [1, 2]} and more",
            "[1, 2, 3]",
            "[]",
            "{",
            "{\"name\": ",
            "<tool_call>no object</tool_call>",
            "<tool_call>{\"name\": 3}</tool_call>",
            "[TOOL_CALLS] ???",
            "<|python_tag|>print(1)",
            "Ünïcödé 😀 <|python_tag 😀",
        ] {
            assert_eq!(
                read_all_cuts(format, text),
                Answer { text: text.into(), calls: vec![] },
                "{format:?}"
            );
        }
    }
}

#[test]
fn an_answer_that_is_cut_off() {
    use ToolCallFormat::*;
    for (format, text, calls) in [
        (
            Hermes,
            "<tool_call>{\"name\": \"find\", \"arguments\": {\"a\": \"b",
            ("find", "{\"a\": \"b", false),
        ),
        (Hermes, "<tool_call>{\"name\": \"find\", \"arguments\": {}", ("find", "{}", false)),
        (Hermes, "<tool_call>{\"name\": \"find\", \"arguments\": {}}\n</tool", ("find", "{}", true)),
        (MistralArgs, "[TOOL_CALLS]find[ARGS]{\"a\"", ("find", "{\"a\"", false)),
    ] {
        let (name, arguments, complete) = calls;
        let expected = (name.to_owned(), arguments.to_owned(), Some(complete));
        assert_eq!(read_all_cuts(format, text), Answer { text: String::new(), calls: vec![expected] });
    }
    // Before a call is certain, what was read is text.
    let text = "<tool_call>{\"name\": \"fi";
    assert_eq!(read_all_cuts(Hermes, text), Answer { text: text.into(), calls: vec![] });
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = parser(ToolCallFormat::Hermes);
    assert_eq!(parser.push("<tool_call>\n{\"name\": \"find\", \"arguments\": "), []);
    let name = "find".to_owned();
    let arguments = |text: &str| ToolDelta::Arguments { index: 0, text: text.to_owned() };
    assert_eq!(parser.push("{\"te"), [ToolDelta::Call { index: 0, name }, arguments("{\"te")]);
    assert_eq!(parser.push("xt\": \"a"), [arguments("xt\": \"a")]);
    assert_eq!(parser.push("\"}"), [arguments("\"}")]);
    assert_eq!(parser.push("}\n</tool_call>"), [ToolDelta::End { index: 0, complete: true }]);
    assert_eq!(parser.finish(), []);
}

proptest! {
    /// Any text at all, made of marks, JSON and letters: no cut changes what comes out, nothing panics, and no text is lost where
    /// there is no call.
    #[test]
    fn any_text_and_any_cut(
        parts in proptest::collection::vec(prop_oneof![
            Just("<tool_call>"), Just("</tool_call>"), Just("[TOOL_CALLS]"), Just("[ARGS]"), Just("<|python_tag|>"),
            Just("{\"name\": \"find\", "), Just("\"arguments\": "), Just("\"parameters\": {"), Just("{"), Just("}"), Just("["),
            Just("]"), Just("\""), Just("\\"), Just(","), Just(";"), Just(" "), Just("\n"), Just("é"), Just("find"), Just("null"), Just("<"),
        ], 0..14),
        format in proptest::sample::select(&ToolCallFormat::ALL[..]),
        cuts in proptest::collection::vec(0usize..60, 0..6),
    ) {
        let text = parts.concat();
        let whole = read(format, [text.as_str()]);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| text.floor_char_boundary(cut.min(text.len()))).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]);
        prop_assert_eq!(&read(format, pieces), &whole);
        if whole.calls.is_empty() && !text.contains("[]") {
            prop_assert_eq!(whole.text, text);
        }
    }
}

#[test]
fn the_format_is_what_the_template_mentions() {
    for (template, format) in [
        ("{% if tools %}<tools>… return <tool_call>\n{\"name\": …}\n</tool_call>", ToolCallFormat::Hermes),
        ("… <tool_call>[{\"name\": \"func1\"}]</tool_call>", ToolCallFormat::SmolLm),
        ("You are a helpful AI assistant named SmolLM, trained by Hugging Face", ToolCallFormat::SmolLm),
        ("<|start_header_id|>… {%- if tools_in_user_message %}", ToolCallFormat::Llama),
        ("{{- '[TOOL_CALLS] [' }}", ToolCallFormat::Mistral),
        ("'[TOOL_CALLS]' + tool_call.function.name + '[ARGS]'", ToolCallFormat::MistralArgs),
        ("<start_of_turn>{{ role }}", ToolCallFormat::Json),
        ("<|start_header_id|>{{ role }}", ToolCallFormat::Json),
    ] {
        assert_eq!(ToolCallFormat::of_template(template), format, "{template}");
    }
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters: Option<serde_json::Value>| Tool {
        name: name.into(),
        description: None,
        parameters,
    };
    vec![
        tool(
            "get_weather",
            Some(
                json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 5}, "unit": {"$ref": "#/$defs/unit"}},
                "required": ["city", "unit"], "additionalProperties": false, "$defs": {"unit": {"enum": ["°C", "°F"]}}}),
            ),
        ),
        tool(
            "get",
            Some(
                json!({"properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"], "additionalProperties": false}),
            ),
        ),
        tool("find", None),
    ]
}

/// Bytes, some pieces, and the marks as control tokens or not.
fn tokenizer(marks: &[&str]) -> Tokenizer {
    let marks: Vec<&str> = ["<|end|>"].into_iter().chain(marks.iter().copied()).collect();
    let pieces: [&[u8]; 6] = [b"{\"", b"name", b"\": \"", b"get", b"</", b"]}"];
    byte_tokenizer_with(&pieces, &marks, &json!({"eos_token": "<|end|>"}))
}

/// What a model writes that chooses at random among what is allowed, as its parser reads it.
fn random_answer(
    mut constraint: Constraint,
    tokenizer: &Tokenizer,
    mut parser: ToolCallParser,
    seed: u64,
) -> Answer {
    let mut answer = Answer::default();
    let mut decoder = kvik_model::tokenizer::StreamDecoder::new(false);
    for step in 0..4000 {
        let mut logits = vec![0.0; tokenizer.vocab_len()];
        constraint.mask(&mut logits).unwrap();
        let may: Vec<u32> = (0..logits.len() as u32).filter(|&id| logits[id as usize] == 0.0).collect();
        let id = may[(uniform(seed, Purpose::Token, step) * may.len() as f64) as usize];
        constraint.accept(id).unwrap();
        let ends = tokenizer.is_end_of_generation(id);
        let mut text = String::new();
        decoder.push(tokenizer, id, &mut text);
        answer.add(parser.push_token(id, &text));
        if ends || constraint.is_finished() {
            answer.add(parser.finish());
            return answer;
        }
    }
    panic!("no end: {answer:?}");
}

#[test]
fn forced_calls_are_calls_with_valid_arguments() {
    let tools = tools();
    let schemas = [
        tools[0].parameters.clone().unwrap(),
        tools[1].parameters.clone().unwrap(),
        json!({"type": "object", "additionalProperties": false}),
    ];
    for format in ToolCallFormat::ALL {
        for marks in [&[][..], &["[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>", "<|python_tag|>"]] {
            let tokenizer = tokenizer(marks);
            let compiler = ConstraintCompiler::new(&tokenizer).unwrap();
            let parser = ToolCallParser::new(format, tools.iter().map(|tool| tool.name.clone()));
            let parser = parser.with_tokenizer(&tokenizer);
            let mut called = std::collections::BTreeSet::new();
            for (choice, parallel) in [
                (ToolChoice::Required, true),
                (ToolChoice::Required, false),
                (ToolChoice::Named("get".into()), false),
            ] {
                let source = forced_call(format, &tokenizer, &tools, &choice, parallel).unwrap().unwrap();
                let constraint =
                    compiler.compile(&source).unwrap_or_else(|error| panic!("{format:?}: {error}"));
                for seed in 0..12 {
                    let answer = random_answer(constraint.clone(), &tokenizer, parser.clone(), seed);
                    assert_eq!(answer.text, "", "{format:?} {answer:?}");
                    assert!(
                        !answer.calls.is_empty() && (parallel || answer.calls.len() == 1),
                        "{format:?} {answer:?}"
                    );
                    for (name, arguments, complete) in &answer.calls {
                        assert_eq!(*complete, Some(true), "{format:?} {answer:?}");
                        let index = tools.iter().position(|tool| tool.name == *name).unwrap();
                        let arguments = serde_json::from_str(arguments).unwrap();
                        assert!(jsonschema::is_valid(&schemas[index], &arguments), "{name} {arguments}");
                        assert!(choice == ToolChoice::Required || name == "get");
                        called.insert(index);
                    }
                }
            }
            assert_eq!(called.len(), 3, "{format:?}: all tools are called sooner or later");
        }
    }
}

#[test]
fn tools_and_choices_that_make_no_sense_are_refused() {
    let (tokenizer, format) = (tokenizer(&[]), ToolCallFormat::Hermes);
    let forced = |tools: &[Tool], choice: ToolChoice| forced_call(format, &tokenizer, tools, &choice, true);
    assert_eq!(forced(&tools(), ToolChoice::Auto), Ok(None));
    assert_eq!(forced(&[], ToolChoice::None), Ok(None));
    assert_eq!(forced(&[], ToolChoice::Required), Err(InvalidTools::NoTools));
    let unknown = forced(&tools(), ToolChoice::Named("fly".into())).unwrap_err().to_string();
    assert!(unknown.contains("\"fly\"") && unknown.contains("get_weather, get, find"), "{unknown}");
    for name in ["", "a b", "a\"b", "\n", &"x".repeat(65)] {
        let tool = Tool { name: name.into(), description: None, parameters: None };
        assert_eq!(forced(&[tool], ToolChoice::Auto), Err(InvalidTools::Name(name.into())));
    }
    let parameters = Some(json!({"properties": {"a": {"$ref": "https://example.com/schema"}}}));
    let tool = Tool { name: "far".into(), description: None, parameters };
    assert!(matches!(forced(&[tool], ToolChoice::Required), Err(InvalidTools::Parameters { .. })));
}

#[test]
fn instructions_show_the_form_that_is_parsed() {
    let tool = json!({"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}});
    for format in ToolCallFormat::ALL {
        let text = instructions(format, std::slice::from_ref(&tool));
        assert!(text.contains(&tool.to_string()));
        let example = text.split("in this form:\n").nth(1).unwrap().split("\nIf none").next().unwrap();
        let example = example.replace("function name", "find");
        let expected = call("find", "{\"parameter\": \"value\"}");
        assert_eq!(read_all_cuts(format, &example), Answer { text: String::new(), calls: vec![expected] });
    }
}
