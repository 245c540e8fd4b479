//! Random texts under random schemas: whatever the logits, what comes out is JSON that an independent validator accepts.

use super::*;
use crate::randomness::{Purpose, uniform};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Tokens after which a text is led to its end.
const WANDERS: usize = 60;
/// Tokens that no text of these schemas needs.
const TOO_LONG: usize = 2000;

/// Chooses at random among what is allowed; after a while, what closes if that is allowed.
fn random_text(constraint: &mut Constraint, seed: u64) -> String {
    let mut bytes = Vec::new();
    for step in 0..TOO_LONG {
        let may = allowed(constraint);
        assert_eq!(may.contains(&END), constraint.may_end());
        assert!(!may.contains(&(END + 1)), "a mark is no text");
        let closes = [END, u32::from(b'"'), u32::from(b'}'), u32::from(b']'), u32::from(b',')];
        let close = closes.into_iter().find(|id| may.contains(id)).filter(|_| step > WANDERS);
        let drawn = uniform(seed, Purpose::Token, step as u64) * may.len() as f64;
        let id = close.unwrap_or(may[drawn as usize]);
        constraint.accept(id).unwrap();
        if id == END {
            return String::from_utf8(bytes).expect("the text is UTF-8");
        }
        bytes.extend(tokenizer().token_bytes(id));
        if constraint.is_finished() {
            return String::from_utf8(bytes).expect("the text is UTF-8");
        }
    }
    panic!("no end: {}", String::from_utf8_lossy(&bytes));
}

fn check(schema: &Value, seed: u64) -> String {
    let source = ConstraintSource::JsonSchema(schema.clone());
    let mut constraint = compiler().compile(&source).unwrap_or_else(|error| panic!("{error} in {schema}"));
    let text = random_text(&mut constraint, seed);
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        // JSON has numbers that no machine has.
        Err(error) if error.to_string().starts_with("number out of range") => return text,
        Err(error) => panic!("{error}: {text} for {schema}"),
    };
    assert!(jsonschema::is_valid(schema, &value), "{text} for {schema}");
    text
}

/// Schemas of every kind of value, some levels deep.
fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(true)),
        Just(json!({})),
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "string"})),
        (0u32..4, 0u32..6)
            .prop_map(|(min, more)| json!({"type": "string", "minLength": min, "maxLength": min + more})),
        Just(json!({"type": "string", "pattern": "^[a-cé]{1,3}(x|y)?$"})),
        Just(json!({"type": "string", "format": "date"})),
        (-50i32..50, 0i32..100)
            .prop_map(|(min, more)| json!({"type": "integer", "minimum": min, "maximum": min + more})),
        (-5i32..5, 1i32..9).prop_map(
            |(min, more)| json!({"type": "number", "minimum": min, "exclusiveMaximum": min + more})
        ),
        Just(json!({"type": ["string", "null", "integer"]})),
        proptest::collection::vec(
            prop_oneof![
                any::<i16>().prop_map(|n| json!(n)),
                "[a\"\\\\é\n😀]{0,4}".prop_map(|s| json!(s)),
                Just(json!({"k": [1, null]})),
            ],
            1..4
        )
        .prop_map(|values| json!({"enum": values})),
        "[ab\"é]{0,3}".prop_map(|s| json!({"const": s})),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let names = proptest::collection::btree_map("[abé\" ]{1,3}", (inner.clone(), any::<bool>()), 0..4);
        prop_oneof![
            (inner.clone(), 0u32..3, 0u32..3)
                .prop_map(|(items, min, more)| json!({"type": "array", "items": items, "minItems": min, "maxItems": min + more})),
            inner.clone().prop_map(|items| json!({"type": "array", "items": items})),
            proptest::collection::vec(inner.clone(), 1..3)
                .prop_map(|items| json!({"type": "array", "prefixItems": items, "items": false, "minItems": items.len()})),
            (names, any::<bool>()).prop_map(|(names, more)| {
                let required: Vec<&String> = names.iter().filter(|(_, (_, required))| *required).map(|(name, _)| name).collect();
                let properties: serde_json::Map<_, _> = names.iter().map(|(name, (schema, _))| (name.clone(), schema.clone())).collect();
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": more})
            }),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| json!({"anyOf": [a, b]})),
            inner.prop_map(|part| json!({"$defs": {"part": part}, "type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn random_texts_follow_random_schemas(schema in schema(), seed: u64) {
        // A reference counts from the root; below another schema it would lead nowhere.
        let text = schema.to_string();
        prop_assume!(text.matches("$defs").count() <= 2 && (text.matches("$defs").count() == 0 || text.starts_with("{\"$defs")));
        check(&schema, seed);
    }
}

#[test]
fn what_clients_send() {
    let schema = json!({
        "title": "CalendarEvent", "type": "object", "additionalProperties": false,
        "description": "from a Pydantic model",
        "$defs": {"Person": {"type": "object", "title": "Person", "additionalProperties": false,
            "properties": {"name": {"type": "string", "title": "Name"}, "age": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": null},
                           "friends": {"type": "array", "items": {"$ref": "#/$defs/Person"}, "maxItems": 1}},
            "required": ["name", "age", "friends"]}},
        "properties": {"name": {"type": "string"}, "day": {"type": "string", "format": "date"},
            "kind": {"type": "string", "enum": ["party", "meeting"]}, "people": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
            "host": {"allOf": [{"$ref": "#/$defs/Person"}], "description": "who invites"}},
        "required": ["name", "day", "kind", "people", "host"],
    });
    for seed in 0..20 {
        check(&schema, seed);
    }
}

#[test]
fn any_object_and_nothing_else() {
    for seed in 0..20 {
        let mut constraint = compiler().compile(&ConstraintSource::JsonObject).unwrap();
        let text = random_text(&mut constraint, seed);
        let value = serde_json::from_str::<Value>(&text);
        let huge = |error: serde_json::Error| error.to_string().starts_with("number out of range");
        assert!(value.map_or_else(huge, |value| value.is_object()), "{text}");
    }
}

#[test]
fn characters_are_finished_before_anything_else() {
    let source = ConstraintSource::JsonSchema(json!({"type": "string"}));
    // The first bytes of é and of an emoji: only bytes that go on with them may come, and tokens that begin with such.
    for (text, first, last) in
        [(&b"\"\xC3"[..], 0x80, 0xBF), (b"\"\xF0", 0x90, 0xBF), (b"\"\xF0\x9F\x98", 0x80, 0xBF)]
    {
        let may = allowed(&mut after(&source, text));
        let expected: Vec<u32> = (0..END)
            .filter(|&id| {
                let bytes = tokenizer().token_bytes(id);
                (first..=last).contains(&bytes[0])
                    && (bytes.len() == 1 || (bytes == b"\xA9b" && text == b"\"\xC3"))
            })
            .collect();
        // `\xA9b` also goes on behind three bytes of an emoji.
        let expected = if text.len() == 4 { [expected, vec![256 + 22]].concat() } else { expected };
        assert_eq!(may, expected, "{text:?}");
    }
}

#[test]
fn white_space_is_bounded() {
    let source = ConstraintSource::JsonSchema(json!({"type": "object"}));
    let space = u32::from(b' ');
    assert!(allowed(&mut after(&source, b"{")).contains(&space));
    assert!(!allowed(&mut after(&source, b"{ ")).contains(&space));
    let mut indented = b"{\n".to_vec();
    indented.extend([b' '; 32]);
    assert!(!allowed(&mut after(&source, &indented)).contains(&space));
    assert!(allowed(&mut after(&source, &indented)).contains(&u32::from(b'"')));
}
