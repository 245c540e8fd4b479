//! What prompts for a server are made of: its tokens of a text, or the words.

use std::time::Instant;

use crate::{
    client::{Api, CallError, HttpTarget, Outcome, Target},
    trace::prompts::{Material, Part, PromptWriter},
};

/// Words of the prompt that a server is asked to count.
const COUNTED_WORDS: usize = 400;
/// Tokens per word of English, where a server does not count.
const ENGLISH: f64 = 1.35;

/// The tokens of `text` by the server's own tokenizer, if it lends it and `target` takes tokens; else the words, with the
/// tokens per word that the server counts for a prompt of them. Says which, if it is not tokens.
///
/// # Errors
/// The server does not answer a request of one token.
pub async fn material(
    target: &HttpTarget,
    text: &str,
    tokens: bool,
) -> Result<(Material, Option<String>), CallError> {
    if tokens && target.api == Api::Completions {
        match target.tokenize(text).await {
            Ok(tokens) if !tokens.is_empty() => return Ok((Material::Tokens(tokens), None)),
            // Whoever cannot be reached will not count words either.
            Err(error @ CallError::Unreachable { .. }) => return Err(error),
            _ => {}
        }
    }
    let probe = PromptWriter::new(Material::words(text, 1.0), 0);
    let prompt = probe.write(&[Part { kind: "probe", name: 0, tokens: COUNTED_WORDS }]);
    let exchange = target.exchange(target.ask(&prompt, 1, 0), Instant::now(), 0.0).await;
    if let Outcome::Refused { status, message } = &exchange.outcome {
        let status = hyper::StatusCode::from_u16(*status).unwrap_or_default();
        return Err(CallError::Status { path: "the first request".into(), status, message: message.clone() });
    }
    if let Outcome::Unreachable { message } = exchange.outcome {
        let source = std::io::Error::other(message);
        return Err(CallError::Unreachable { address: target.endpoint.to_string(), source });
    }
    let counted = exchange.prompt_tokens as f64 / COUNTED_WORDS as f64;
    let (tokens_per_word, how) =
        if counted > 0.0 { (counted, "as the server counts") } else { (ENGLISH, "assumed") };
    let note = format!(
        "prompts are text, their lengths right on average: {tokens_per_word:.2} tokens per word, {how}"
    );
    Ok((Material::words(text, tokens_per_word), Some(note)))
}
