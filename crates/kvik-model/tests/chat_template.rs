//! Chat templates against jinja2 under the settings of `transformers`, and hostile ones against the budget.

use kvik_model::{ChatTemplate, ChatTemplateError, Message};
use serde::Deserialize;
use serde_json::Map;

#[derive(Deserialize)]
struct Golden {
    templates: Map<String, serde_json::Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    variables: Map<String, serde_json::Value>,
    expected: Option<String>,
    refused: Option<String>,
}

#[test]
fn well_known_formats_are_those_of_transformers() {
    let golden: Golden = serde_json::from_str(include_str!("goldens/chat_templates.json")).unwrap();
    for case in &golden.cases {
        let template = ChatTemplate::new(golden.templates[&case.template].as_str().unwrap()).unwrap();
        let rendered = template.render(&case.messages, case.add_generation_prompt, &case.variables);
        match (&case.expected, &case.refused, rendered) {
            (Some(expected), _, Ok(rendered)) => assert_eq!(&rendered, expected, "{}", case.template),
            (None, Some(reason), Err(ChatTemplateError::Refused(refused))) => assert_eq!(&refused, reason),
            (_, _, rendered) => panic!("{}: {rendered:?} instead of {:?}", case.template, case.expected),
        }
    }
}

fn render(template: &str) -> Result<String, ChatTemplateError> {
    let messages = [Message::new("user", "Hello")];
    ChatTemplate::new(template)?.render(&messages, true, &Map::new())
}

#[test]
fn templates_that_never_end_or_grow_without_bound_are_stopped() {
    for template in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 9999999 }}{% endfor %}",
        "{{ '%999999999d' | format(1) }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{{ [[]] | tojson(indent=9999999999) }}",
    ] {
        match render(template) {
            Err(ChatTemplateError::Exhausted | ChatTemplateError::Failed(_)) => {}
            rendered => panic!("{template}: {} bytes", rendered.map_or(0, |text| text.len())),
        }
    }
}

#[test]
fn templates_that_nest_without_end_do_not_overflow_the_stack() {
    for template in [
        "{% macro f(a) %}{{ f(a) }}{% endmacro %}{{ f(1) }}".to_owned(),
        format!("{}1{}", "{{ ".to_owned() + &"(".repeat(100_000), ")".repeat(100_000) + " }}"),
        "{% if true %}".repeat(100_000),
    ] {
        let refusal = render(&template).unwrap_err().to_string();
        assert!(refusal.len() < 300, "{refusal}");
    }
    // Within the budget, but dropping what it made recurses as deep as it nested.
    let nest = "{% set ns = namespace(x={}) %}{% for j in range(9) %}{% for i in range(99999) %}\
                {% set ns.x = {'a': ns.x} %}{% endfor %}{% endfor %}";
    let _ = render(nest);
}

#[test]
fn errors_say_what_and_where() {
    let error = |template: &str| render(template).unwrap_err().to_string();
    assert_eq!(
        error("a\n{% if %}"),
        "the model's chat template is broken: unexpected end of block (line 2); use plain completion instead"
    );
    assert_eq!(
        error("{{ raise_exception('No system role.') }}"),
        "the model's chat template refuses this conversation: No system role."
    );
    assert_eq!(
        error("{{ messages[0].content.frobnicate() }}"),
        "the model's chat template failed: string has no method named frobnicate (line 1)"
    );
}

#[test]
fn the_date_is_todays() {
    let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!((2024..3000).contains(&year));
}
