//! Languages that are listed in full: a token may come exactly if some text of the language goes on with it, and the text
//! may end exactly where it is one of the language.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

/// Follows every token that is allowed, and those that these allow, and compares each mask with the listed language.
fn agrees(source: &ConstraintSource, language: &HashSet<Vec<u8>>) {
    let prefixes: HashSet<&[u8]> =
        language.iter().flat_map(|text| (0..=text.len()).map(move |end| &text[..end])).collect();
    let tokens: Vec<Vec<u8>> = (0..END).map(|id| tokenizer().token_bytes(id)).collect();
    let mut seen = HashSet::new();
    let mut open = vec![(Vec::new(), compiler().compile(source).unwrap())];
    while let Some((text, mut constraint)) = open.pop() {
        let follows = |token: &Vec<u8>| prefixes.contains(&[&text[..], token].concat()[..]);
        let mut expected: Vec<u32> = (0..END).filter(|&id| follows(&tokens[id as usize])).collect();
        let goes_on = !expected.is_empty();
        expected.extend(language.contains(&text).then_some(END));
        let shown = String::from_utf8_lossy(&text);
        assert_eq!(constraint.is_finished(), !goes_on, "{source:?} behind {shown:?}");
        assert_eq!(constraint.may_end(), language.contains(&text), "{source:?} behind {shown:?}");
        assert_eq!(allowed(&mut constraint), expected, "{source:?} behind {shown:?}");
        for id in expected.into_iter().filter(|&id| id != END) {
            let text = [&text[..], &tokens[id as usize]].concat();
            if seen.insert(text.clone()) {
                let mut constraint = constraint.clone();
                constraint.accept(id).unwrap();
                open.push((text, constraint));
            }
        }
    }
}

/// All texts of up to `length` characters of `alphabet` that match.
fn matching(regex: &str, alphabet: &[&str], length: usize) -> HashSet<Vec<u8>> {
    let regex = regex::Regex::new(&format!("^(?s:{regex})$")).unwrap();
    let mut all = vec![String::new()];
    let mut last = 0..1;
    for _ in 0..length {
        let longer: Vec<String> = all[last.clone()]
            .iter()
            .flat_map(|text| alphabet.iter().map(move |c| format!("{text}{c}")))
            .collect();
        last = all.len()..all.len() + longer.len();
        all.extend(longer);
    }
    all.into_iter().filter(|text| regex.is_match(text)).map(String::into_bytes).collect()
}

#[test]
fn regular_expressions() {
    for regex in ["a{1,4}", "(ab|ba){0,2}", "a?b?é?", "(a|aab)(b|bab)?", "é{2,3}|a", "a😀?b", ""] {
        let alphabet = ["a", "b", "é", "😀"];
        agrees(&ConstraintSource::Regex(regex.into()), &matching(regex, &alphabet, 6));
        agrees(&ConstraintSource::Regex(format!("^{regex}$")), &matching(regex, &alphabet, 6));
    }
}

#[test]
fn grammars() {
    let listed = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    agrees(
        &ConstraintSource::Grammar(
            "start: \"a\" middle \"b\" | \"[[\" middle \"]]\"\nmiddle: \"é\"? \"ba\"".into(),
        ),
        &listed(&["abab", "aébab", "[[ba]]", "[[éba]]"]),
    );
    // A mark is asked for by number, and never as text.
    let mark = END + 1;
    let mut constraint = after(&ConstraintSource::Grammar(format!("start: \"a\" <[{mark}]> \"b\"")), b"a");
    assert_eq!(allowed(&mut constraint), [mark]);
    constraint.accept(mark).unwrap();
    assert_eq!(allowed(&mut constraint), [u32::from(b'b')]);
    let mut text = after(&ConstraintSource::Grammar("start: /.*/".into()), b"");
    assert!(!allowed(&mut text).contains(&mark));
}

#[test]
fn json_without_white_space() {
    let schema = serde_json::json!({
        "x-guidance": {"whitespace_flexible": false},
        "type": "object",
        "properties": {"a": {"enum": [true, "é", -1, 12]}, "b": {"type": "array", "items": {"const": null}, "maxItems": 2}},
        "required": ["a"],
        "additionalProperties": false,
    });
    let mut language = HashSet::new();
    for a in ["true", "\"é\"", "-1", "12"] {
        for b in ["", ",\"b\":[]", ",\"b\":[null]", ",\"b\":[null,null]"] {
            language.insert(format!("{{\"a\":{a}{b}}}").into_bytes());
        }
    }
    agrees(&ConstraintSource::JsonSchema(schema), &language);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Characters of one to four bytes, and tokens that cut them.
    #[test]
    fn choices(choices in proptest::collection::vec("[ab\\[\"é😀|.\n]{0,6}", 1..6)) {
        let language = choices.iter().map(|choice| choice.clone().into_bytes()).collect();
        agrees(&ConstraintSource::Choice(choices), &language);
    }
}

#[test]
fn a_token_that_is_not_allowed_is_an_error() {
    let mut constraint = after(&ConstraintSource::Choice(vec!["ab".into()]), b"a");
    assert!(constraint.accept(u32::from(b'a')).is_err());
}

#[test]
fn padding_and_unknown_ends() {
    // A model without any token that ends a text: a constraint ends by itself.
    let tokenizer = byte_tokenizer_with(&[], &[], &serde_json::json!({}));
    let compiler = ConstraintCompiler::new(&tokenizer).unwrap();
    let mut constraint = compiler.compile(&ConstraintSource::Regex("ab?".into())).unwrap();
    let mut logits = vec![1.0; 300];
    constraint.mask(&mut logits).unwrap();
    assert!(logits[256..].iter().all(|&logit| logit == f32::NEG_INFINITY));
    constraint.accept(u32::from(b'a')).unwrap();
    assert!(!constraint.is_finished() && constraint.may_end());
    constraint.accept(u32::from(b'b')).unwrap();
    assert!(constraint.is_finished());
    assert!(constraint.mask(&mut logits).is_err());
}
