//! The loop against a bigram model over bytes, whose greedy text is a formula.

use super::*;
use crate::language_model::fake::{Bigram, byte_tokenizer};

const CONTEXT_TOKENS: usize = 200;

/// A session with its model, and what the events of its last request said.
#[derive(Default)]
struct Bench {
    model: Bigram,
    tokens: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    text_of_events: String,
    prefill_events: Vec<(usize, usize)>,
}

impl Bench {
    fn generate(&mut self, request: &GenerateRequest) -> Result<Generation, EngineError> {
        self.generate_until(request, 16, |_| ControlFlow::Continue(()))
    }

    fn generate_until(
        &mut self,
        request: &GenerateRequest,
        prefill_chunk_tokens: usize,
        mut flow: impl FnMut(&Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let Self { model, tokens, text_of_events, prefill_events, .. } = self;
        let tokenizer = byte_tokenizer(self.bos, self.eos);
        text_of_events.clear();
        prefill_events.clear();
        let generator = Generator {
            sequence: Sequence { model, tokens },
            tokenizer: &tokenizer,
            context_tokens: CONTEXT_TOKENS,
            prefill_chunk_tokens,
            mask: None,
        };
        let result = generator.run(request, &mut |event| {
            match event {
                Event::Prefill { done, total } => prefill_events.push((done, total)),
                Event::Token { text, .. } => text_of_events.push_str(text),
            }
            flow(&event)
        });
        assert_eq!(self.model.cached, self.tokens, "the session knows what the cache holds");
        if let Ok(generation) = &result {
            assert_eq!(generation.text, self.text_of_events);
        }
        result
    }
}

fn greedy(prompt: &[u32], max_tokens: impl Into<Option<usize>>) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        max_tokens: max_tokens.into(),
        sampling: SamplingOptions::greedy(),
        ..GenerateRequest::default()
    }
}

fn text_of(ids: &[u32]) -> String {
    String::from_utf8_lossy(&ids.iter().map(|&id| id as u8).collect::<Vec<_>>()).into_owned()
}

#[test]
fn greedy_follows_the_formula_for_any_chunk_size() {
    let prompt: Vec<u32> = (0..50).collect();
    for chunk_tokens in [1, 3, 7, 50, 512] {
        let mut bench = Bench::default();
        let request = greedy(&prompt, 20);
        let generation = bench.generate_until(&request, chunk_tokens, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(generation.completion_ids, Bigram::greedy(&prompt, 20));
        assert_eq!(generation.text, text_of(&generation.completion_ids));
        assert_eq!(generation.stop, StopReason::MaxTokens);
        assert_eq!(generation.prefill_tokens, 50);
        assert!(bench.model.longest_forward <= chunk_tokens.min(50));
        let chunks: Vec<_> =
            (1..=50usize.div_ceil(chunk_tokens)).map(|n| (n * chunk_tokens).min(50)).collect();
        assert_eq!(bench.prefill_events, chunks.iter().map(|&done| (done, 50)).collect::<Vec<_>>());
        // The last token is chosen and not computed.
        assert_eq!(bench.model.computed, 50 + 19);
        assert_eq!(generation.kv_bytes_in_use, 69 * Bigram::KV_BYTES);
        assert_eq!(generation.kv_bytes_uncompressed_bf16, 69 * 20);
    }
}

#[test]
fn a_second_prompt_computes_what_the_first_did_not() {
    let mut bench = Bench::default();
    let first = bench.generate(&greedy(&[1, 2, 3, 4], 5)).unwrap();
    assert_eq!(bench.tokens.len(), 4 + 4);

    // The conversation so far and two more tokens: the last answer token was never computed.
    let mut longer = [first.prompt_ids, first.completion_ids].concat();
    longer.extend([77, 78]);
    let second = bench.generate(&greedy(&longer, 5)).unwrap();
    assert_eq!(second.prefill_tokens, 3);
    assert_eq!(second.completion_ids, Bigram::greedy(&[78], 5));

    // The same prompt again: its last token gives the logits.
    let third = bench.generate(&greedy(&longer, 5)).unwrap();
    assert_eq!(third.prefill_tokens, 1);
    assert_eq!(third.completion_ids, second.completion_ids);

    // A prompt that parts in the middle, and one that shares nothing.
    assert_eq!(bench.generate(&greedy(&[1, 2, 9, 4], 1)).unwrap().prefill_tokens, 2);
    assert_eq!(bench.generate(&greedy(&[5], 1)).unwrap().prefill_tokens, 1);
    assert_eq!(bench.tokens, [5]);
}

#[test]
fn a_cache_that_cannot_go_back_is_computed_anew() {
    let mut bench = Bench { model: Bigram { window: 6, ..Bigram::default() }, ..Bench::default() };
    let prompt: Vec<u32> = (0..20).collect();
    let first = bench.generate(&greedy(&prompt, 10)).unwrap();
    // Back by nine answer tokens and the last of the prompt: further than the window.
    let again = bench.generate(&greedy(&prompt, 10)).unwrap();
    assert_eq!(again.prefill_tokens, 20);
    assert_eq!(again.completion_ids, first.completion_ids);
    // Back by six: within.
    let near = [prompt, first.completion_ids[..4].to_vec()].concat();
    assert_eq!(bench.generate(&greedy(&near, 1)).unwrap().prefill_tokens, 1);
}

#[test]
fn the_end_of_text_token_ends_the_text_and_is_not_in_it() {
    let ids = Bigram::greedy(&[7], 10);
    let mut bench = Bench { eos: Some(ids[6]), ..Bench::default() };
    let ended = bench.generate(&greedy(&[7], 10)).unwrap();
    assert_eq!(ended.stop, StopReason::EndOfText);
    assert_eq!(ended.completion_ids, ids[..7]);
    assert_eq!(ended.text, text_of(&ids[..6]));
    let ignored = GenerateRequest { ignore_end_of_text: true, ..greedy(&[7], 10) };
    assert_eq!(bench.generate(&ignored).unwrap().completion_ids, ids);
}

#[test]
fn a_stop_string_ends_the_text_before_itself() {
    let text = text_of(&Bigram::greedy(&[40], 30));
    let middle: Vec<char> = text.chars().skip(10).take(3).collect();
    let stop: String = middle.iter().collect();
    let expected = &text[..text.find(&stop).unwrap()];
    let request = GenerateRequest { stop: vec!["never".into(), stop.clone()], ..greedy(&[40], 30) };
    let mut bench = Bench::default();
    let generation = bench.generate(&request).unwrap();
    assert_eq!(generation.stop, StopReason::StopString(stop));
    assert_eq!(generation.text, expected);
}

#[test]
fn text_held_for_a_stop_string_comes_with_the_last_token() {
    let text = text_of(&Bigram::greedy(&[40], 30));
    // A stop that begins like the end of the text and goes on otherwise.
    let end: String = text.chars().skip(text.chars().count() - 2).collect();
    let request = GenerateRequest { stop: vec![end + "\u{1}\u{2}"], ..greedy(&[40], 30) };
    let generation = Bench::default().generate(&request).unwrap();
    assert_eq!((generation.text, generation.stop), (text, StopReason::MaxTokens));
}

#[test]
fn the_context_bounds_prompt_and_completion() {
    let mut bench = Bench::default();
    for max_tokens in [None, Some(CONTEXT_TOKENS)] {
        let full = bench.generate(&greedy(&[9; 150], max_tokens)).unwrap();
        assert_eq!(full.stop, StopReason::ContextFull);
        assert_eq!(full.completion_ids.len(), 50);
    }
    assert_eq!(bench.generate(&greedy(&[9; 150], 50)).unwrap().stop, StopReason::MaxTokens);
    assert_eq!(bench.generate(&greedy(&[9; 199], None)).unwrap().completion_ids.len(), 1);
    let error = bench.generate(&greedy(&[9; 200], None)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the prompt has 200 tokens and the context holds 200, of which at least one is for the answer: shorten the \
         prompt or choose a larger context"
    );
}

#[test]
fn an_empty_prompt_is_the_beginning_of_a_text() {
    let mut bench = Bench::default();
    assert!(matches!(bench.generate(&greedy(&[], 3)), Err(EngineError::EmptyPrompt)));
    bench.bos = Some(3);
    let generation = bench.generate(&greedy(&[], 3)).unwrap();
    assert_eq!(generation.prompt_ids, [3]);
    assert_eq!(generation.completion_ids, Bigram::greedy(&[3], 3));
}

#[test]
fn no_tokens_asked_for_only_fills_the_session() {
    let mut bench = Bench::default();
    let generation = bench.generate(&greedy(&[1, 2, 3], 0)).unwrap();
    assert_eq!((generation.completion_ids.len(), generation.stop), (0, StopReason::MaxTokens));
    assert_eq!(bench.tokens, [1, 2, 3]);
}

#[test]
fn the_caller_can_stop_after_every_chunk_and_token() {
    let prompt: Vec<u32> = (0..40).collect();
    for chunks in 1..=3 {
        let mut bench = Bench::default();
        let mut seen = 0;
        let stop_after = |event: &Event<'_>| {
            seen += usize::from(matches!(event, Event::Prefill { .. }));
            if seen == chunks { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stopped = bench.generate_until(&greedy(&prompt, 5), 16, stop_after).unwrap();
        assert_eq!(stopped.stop, StopReason::Cancelled);
        assert_eq!(stopped.prefill_tokens, (chunks * 16).min(40));
        assert_eq!(bench.tokens.len(), (chunks * 16).min(40));
        // The session goes on from where it was stopped.
        let resumed = bench.generate(&greedy(&prompt, 5)).unwrap();
        assert_eq!(resumed.completion_ids, Bigram::greedy(&prompt, 5));
        assert_eq!(resumed.prefill_tokens, 40 - (chunks * 16).min(39));
    }

    let mut tokens = 0;
    let stopped = Bench::default()
        .generate_until(&greedy(&prompt, 5), 16, |event| {
            tokens += usize::from(matches!(event, Event::Token { .. }));
            if tokens == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(stopped.stop, StopReason::Cancelled);
    assert_eq!(stopped.completion_ids, Bigram::greedy(&prompt, 3));
}

#[test]
fn logprobs_are_the_models_own() {
    let request = GenerateRequest { logprobs: Some(2), ..greedy(&[1, 2], 6) };
    let sampled = GenerateRequest {
        sampling: SamplingOptions { temperature: 3.0, repeat_penalty: 2.0, ..SamplingOptions::default() },
        ..request.clone()
    };
    for request in [request, sampled] {
        let generation = Bench::default().generate(&request).unwrap();
        let mut before = 2;
        assert_eq!(generation.logprobs.len(), 6);
        for (token, &id) in generation.logprobs.iter().zip(&generation.completion_ids) {
            assert_eq!(token.id, id);
            assert!((f64::from(token.logprob) - Bigram::log_probability(before, id)).abs() < 1e-5);
            assert_eq!(token.top.len(), 2);
            assert_eq!(token.top[0].0, Bigram::most_likely_after(before));
            before = id;
        }
    }
}

#[test]
fn a_seed_repeats_a_text_and_another_gives_another() {
    let sampled = |seed| {
        let sampling = SamplingOptions {
            temperature: 2.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            ..Default::default()
        };
        Bench::default().generate(&GenerateRequest { sampling, ..greedy(&[1, 2], 30) }).unwrap()
    };
    let fresh = sampled(None);
    assert_eq!(sampled(Some(fresh.seed)).completion_ids, fresh.completion_ids);
    assert_ne!(sampled(Some(fresh.seed ^ 1)).completion_ids, fresh.completion_ids);
}

#[test]
fn a_broken_model_is_an_error_with_the_position() {
    let mut bench = Bench { model: Bigram { not_a_number_from: 5, ..Bigram::default() }, ..Bench::default() };
    let error = bench.generate(&greedy(&[1, 2, 3], 20)).unwrap_err();
    assert!(matches!(error, EngineError::NoFiniteLogit { position: 6 }), "{error}");
}

#[test]
fn requests_that_mean_nothing_are_refused() {
    let mut bench = Bench::default();
    let unknown = bench.generate(&greedy(&[1, 256], 1)).unwrap_err();
    assert!(matches!(unknown, EngineError::UnknownToken { id: 256, position: 1, vocab_size: 256 }));
    let empty_stop = GenerateRequest { stop: vec![String::new()], ..greedy(&[1], 1) };
    assert!(matches!(bench.generate(&empty_stop), Err(EngineError::Stop(_))));
    let sampling = SamplingOptions { temperature: -1.0, ..SamplingOptions::default() };
    let cold = GenerateRequest { sampling, ..greedy(&[1], 1) };
    assert!(matches!(bench.generate(&cold), Err(EngineError::Sampling(_))));
    assert!(bench.tokens.is_empty());
}
