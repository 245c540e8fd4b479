//! The methods of the registry on SmolLM2: what must not change a bit, and what a cache that was exported goes on with.

mod smollm2;

use kvik_engine::{Engine, Session};
use kvik_kv::{Direction, Pipeline, methods::METHODS};
use kvik_model::tokenizer::EncodeOptions;

const PROMPT: &str = include_str!("../../../data/text/war-and-peace-head.txt");

fn prompt(engine: &Engine, tokens: usize) -> Vec<u32> {
    let ids = engine.tokenizer().unwrap().encode(&PROMPT[..20 * tokens], EncodeOptions::default()).unwrap();
    ids[..tokens].to_vec()
}

/// Bits of the logits behind a prompt and behind each of ten tokens decoded after it.
fn logits(engine: &mut Engine, session: &mut Session, prompt: &[u32]) -> Vec<u32> {
    let (prompt, rest) = prompt.split_at(prompt.len() - 10);
    let mut bits: Vec<u32> =
        engine.read(session, prompt, true).unwrap().into_iter().map(f32::to_bits).collect();
    engine.decode(session, rest, &mut |_, l| bits.extend(l.iter().map(|l| l.to_bits()))).unwrap();
    bits
}

#[test]
fn no_methods_and_budgets_beyond_the_text_change_no_bit() {
    let mut engine = smollm2::engine(1);
    let prompt = prompt(&engine, 210);
    let mut session = engine.session();
    let plain = logits(&mut engine, &mut session, &prompt);
    drop(session);
    let choose = METHODS.iter().filter(|method| method.direction == Direction::Tokens);
    let large = choose.filter(|method| method.calibration.is_none()).map(|method| {
        assert!(method.parameters.iter().any(|p| p.name == "budget"), "{}: say what is large", method.name);
        format!("{}(budget=1000)", method.name)
    });
    // What is recent stays exact, and a ratio of 1 is everything.
    let more = [
        "full",
        "kivi(residual=256)",
        "streaming(budget=1000,positions=slot)",
        "h2o(budget=1000,positions=slot)",
    ];
    for kv in large.chain(more.map(String::from)) {
        let mut session = engine.session_with(&Pipeline::parse(&kv).unwrap()).unwrap();
        assert!(logits(&mut engine, &mut session, &prompt) == plain, "{kv}");
    }
    let mut session = engine.session_with(&Pipeline::parse("h2o(budget=64)").unwrap()).unwrap();
    assert!(logits(&mut engine, &mut session, &prompt) != plain, "a small budget does change some");
}
