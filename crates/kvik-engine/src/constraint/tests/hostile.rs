//! Sources that are meant to cost: each is refused with a sentence, or compiled and run within bounds.

use super::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}))
}

/// Each definition is made of the next twice.
fn doubling(keyword: &str, depth: usize) -> Value {
    let mut definitions = serde_json::Map::new();
    for level in 0..depth {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        definitions.insert(format!("d{level}"), json!({keyword: [next, next], "type": "object"}));
    }
    definitions
        .insert(format!("d{depth}"), json!({"type": "object", "properties": {"a": {"type": "integer"}}}));
    json!({"$defs": definitions, "$ref": "#/$defs/d0", "description": "doubles"})
}

/// Each definition is made of both of the next.
fn pairs(depth: usize) -> Value {
    let mut definitions = serde_json::Map::new();
    for (level, name) in (0..depth).flat_map(|level| [(level, "d"), (level, "e")]) {
        let next = ["d", "e"].map(|name| json!({"$ref": format!("#/$defs/{name}{}", level + 1)}));
        let own = json!({"type": "object", "properties": {format!("{name}{level}"): {"type": "integer"}}});
        definitions.insert(format!("{name}{level}"), json!({"allOf": [own, next[0], next[1]]}));
    }
    for name in ["d", "e"] {
        definitions.insert(format!("{name}{depth}"), json!({"properties": {name: {"type": "integer"}}}));
    }
    json!({"$defs": definitions, "$ref": "#/$defs/d0"})
}

/// Each definition leads to the next.
fn chain(link: impl Fn(&str) -> Value) -> Value {
    let name = |level: usize| format!("d{level}");
    let mut definitions: serde_json::Map<_, _> =
        (0..4000).map(|level| (name(level), link(&format!("#/$defs/{}", name(level + 1))))).collect();
    definitions.insert(name(4000), json!({"type": "object"}));
    json!({"$defs": definitions, "$ref": "#/$defs/d0"})
}

fn schemas() -> Vec<(&'static str, Value)> {
    let many = |count: usize| -> serde_json::Map<String, Value> {
        (0..count).map(|index| (format!("p{index}"), json!({"type": "string"}))).collect()
    };
    let alternatives = |factor: usize| json!({"anyOf": (0..8).map(|n| json!({"properties": {format!("f{factor}"): {"const": n}}})).collect::<Vec<_>>()});
    vec![
        ("depth 60", nested(30)),
        ("depth 2000", nested(1000)),
        ("allOf doubling", doubling("allOf", 40)),
        ("anyOf doubling", doubling("anyOf", 40)),
        ("allOf of two", pairs(30)),
        ("chain of references", chain(|next| json!({"$ref": next}))),
        ("chain of allOf", chain(|next| json!({"allOf": [{"$ref": next}]}))),
        ("chain of siblings", chain(|next| json!({"$ref": next, "type": "object"}))),
        (
            "common multiples",
            json!({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}, {"multipleOf": 983}]}),
        ),
        ("oneOf doubling", doubling("oneOf", 12)),
        ("allOf of anyOf", json!({"allOf": (0..12).map(alternatives).collect::<Vec<_>>()})),
        ("allOf of anyOf, small", json!({"allOf": (0..3).map(alternatives).collect::<Vec<_>>()})),
        ("self reference", json!({"$ref": "#"})),
        (
            "circle",
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        ),
        (
            "circle of allOf",
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"}),
        ),
        (
            "endless list",
            json!({"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"}),
        ),
        ("missing reference", json!({"$ref": "#/$defs/none"})),
        ("remote reference", json!({"$ref": "https://example.com/schema.json"})),
        ("file reference", json!({"properties": {"a": {"$ref": "file:///etc/passwd"}}})),
        ("relative reference", json!({"items": [{"$ref": "other.json#/a"}]})),
        ("long string", json!({"type": "string", "minLength": 1_000_000_000})),
        ("many items", json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000})),
        ("most items", json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000_000})),
        ("many properties", json!({"type": "object", "properties": many(3000)})),
        ("too many properties", json!({"type": "object", "properties": many(60_000)})),
        ("many values", json!({"enum": (0..20_000).map(|n| format!("value {n}")).collect::<Vec<_>>()})),
        ("multiples", json!({"type": "number", "multipleOf": 0.000_000_1, "minimum": 0, "maximum": 1e15})),
        ("multiples of a prime", json!({"type": "integer", "multipleOf": 999_983})),
        ("patterns of names", json!({"patternProperties": {"^(a|b)*c{500}$": {}, "^(a|b)*d{500}$": {}}})),
        ("pattern", json!({"type": "string", "pattern": "^(([a-z]{1,50}){1,50}){1,50}$"})),
        ("pattern without end", json!({"type": "string", "pattern": "(a|b)*a(a|b){200}$"})),
        ("pattern and length", json!({"type": "string", "pattern": "^(a|b)*a(a|b){60}$", "maxLength": 500})),
        ("pattern that is none", json!({"type": "string", "pattern": "(("})),
        ("impossible", json!({"type": "string", "minLength": 3, "maxLength": 2})),
        ("not", json!({"not": {"type": "string"}})),
        ("a number", json!(3)),
        ("false", json!(false)),
        ("wrong types", json!({"type": 3, "properties": "x", "required": {"a": 1}})),
        ("options", json!({"x-guidance": {"whitespace_pattern": "(a{1,1000}){1,1000}"}, "type": "object"})),
        ("unknown options", json!({"x-guidance": {"lenient": 3}, "type": "object"})),
    ]
}

fn others() -> Vec<(&'static str, ConstraintSource)> {
    let regex = |text: &str| ConstraintSource::Regex(text.into());
    let grammar = |text: String| ConstraintSource::Grammar(text);
    vec![
        ("repeats of repeats", regex("((a{1000}){1000}){1000}")),
        ("alternatives", regex("(a|aa|aaa)*(b|bb)*(a|aa|aaa)*b{1,5000}")),
        ("states", regex("(a|b)*a(a|b){30}c")),
        ("states at the start", regex("(.*a.{20}|.*b.{25}|.*c.{30})d")),
        ("all of Unicode", regex("(\\w|\\s|\\p{Greek}){1,10000}")),
        ("parentheses", regex(&"(".repeat(5000))),
        ("nested", regex(&format!("{}a{}", "(".repeat(3000), ")".repeat(3000)))),
        ("nested stars", regex(&format!("{}a{}", "(".repeat(200), ")*".repeat(200)))),
        ("long", regex(&"a".repeat(10_000))),
        ("look-ahead", regex("(?=a)b")),
        ("nothing fits", regex("[^\\x00-\\x{10FFFF}]")),
        ("no grammar", grammar("hello".into())),
        ("empty grammar", grammar(String::new())),
        ("GBNF", grammar("root ::= \"a\"".into())),
        ("grammar without end", grammar("start: start".into())),
        ("only longer", grammar("start: \"a\" start".into())),
        ("ambiguous", grammar("start: start start start | \"a\" | \"a\" start \"a\" |".into())),
        ("ambiguous words", grammar("start: (w w w w)*\nw: /[a-z]+/ | /[a-z0-9]+/ | \"ab\" | w w".into())),
        ("open parentheses", grammar(format!("start: {}", "(".repeat(60_000)))),
        ("nested rules", grammar(format!("start: {}\"a\"{}", "(".repeat(150), ")*".repeat(150)))),
        (
            "chain",
            grammar(
                (0..5000).fold("start: r0\n".into(), |all, n| format!("{all}r{n}: \"(\" r{} \")\"\n", n + 1))
                    + "r5000: \"a\"\n",
            ),
        ),
        (
            "chain of terminals",
            grammar(
                (0..3000).fold("start: T0\n".into(), |all, n| format!("{all}T{n}: \"a\" T{}?\n", n + 1))
                    + "T3000: \"a\"\n",
            ),
        ),
        ("repeats of rules", grammar("start: (a{1000}){1000}\na: \"x\" | \"y\"".into())),
        (
            "not and and",
            grammar("start: A\nA: /(a|b){50}.*/ & ~/.*ab.{30}/ & ~/.*ba.{40}/ & /.*a.{35}/".into()),
        ),
        ("schema in a grammar", grammar(format!("start: %json {}", doubling("allOf", 40)))),
        ("deep schema in a grammar", grammar(format!("start: %json {}", nested(100)))),
        (
            "substrings",
            grammar(format!("start: S\nS: %regex {{ \"substring_chars\": \"{}\" }}", "ab".repeat(20_000))),
        ),
        ("no choice", ConstraintSource::Choice(vec![])),
        ("many choices", ConstraintSource::Choice((0..4000).map(|n| format!("{:012}", n * 7919)).collect())),
        ("too many choices", ConstraintSource::Choice((0..5000).map(|n| n.to_string()).collect())),
    ]
}

/// As a server runs them: on threads of ordinary size.
fn run(name: &str, source: &ConstraintSource) -> (Duration, Duration, String) {
    let start = Instant::now();
    let compiled = compiler().compile(source);
    let compiling = start.elapsed();
    let mut slowest = Duration::ZERO;
    let outcome = match compiled {
        Err(error) => error.to_string(),
        Ok(mut constraint) => {
            let mut outcome = "runs".to_owned();
            for step in 0..60u32 {
                let start = Instant::now();
                let mut logits = vec![0.0; tokenizer().vocab_len()];
                if let Err(error) = constraint.mask(&mut logits) {
                    outcome = error.to_string();
                    slowest = slowest.max(start.elapsed());
                    break;
                }
                let may: Vec<u32> =
                    (0..logits.len() as u32).filter(|&id| logits[id as usize] == 0.0).collect();
                let id = may[(step * 7919) as usize % may.len()];
                let accepted = constraint.accept(id);
                slowest = slowest.max(start.elapsed());
                if let Err(error) = accepted {
                    outcome = error.to_string();
                    break;
                }
                if constraint.is_finished() {
                    break;
                }
            }
            outcome
        }
    };
    println!("{name:>26}: compile {compiling:>10.2?}, slowest step {slowest:>10.2?}, {outcome}");
    (compiling, slowest, outcome)
}

#[test]
fn nothing_costs_without_bound() {
    let schemas = schemas().into_iter().map(|(name, schema)| (name, ConstraintSource::JsonSchema(schema)));
    let mut wrong = Vec::new();
    for (name, source) in schemas.chain(others()) {
        let (compiling, slowest, outcome) = run(name, &source);
        if compiling > Duration::from_secs(20) || slowest > Duration::from_secs(2) {
            wrong.push(format!("{name} took {compiling:?} to compile and {slowest:?} for a step"));
        }
        if outcome.len() > 600 || outcome.contains("panic") || outcome.contains('\n') {
            wrong.push(format!("{name}: {outcome}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
