//! Log-probabilities of an answer's tokens, as chats and as completions report them.

use kvik_engine::TokenLogprob;
use kvik_model::Tokenizer;

use crate::wire::{
    chat::{ChatTokenLogprob, ChatTopLogprob},
    completion::CompletionLogprobs,
};

/// As chats report one.
pub fn for_chat(tokenizer: &Tokenizer, token: &TokenLogprob) -> ChatTokenLogprob {
    let spelled = |id: u32| (tokenizer.token_text(id), tokenizer.token_bytes(id));
    let top = token.top.iter().map(|&(id, logprob)| {
        let (token, bytes) = spelled(id);
        ChatTopLogprob { token, logprob: finite(logprob), bytes }
    });
    let top_logprobs = top.collect();
    let (text, bytes) = spelled(token.id);
    ChatTokenLogprob { token: text, logprob: finite(token.logprob), bytes, top_logprobs }
}

/// Adds one to those of a completion; `offset` is how many characters the answer has before it.
pub fn for_completion(
    tokenizer: &Tokenizer,
    token: &TokenLogprob,
    offset: usize,
    list: &mut CompletionLogprobs,
) {
    list.tokens.push(spelled(tokenizer, token.id));
    list.token_logprobs.push(finite(token.logprob));
    let top = token.top.iter().map(|&(id, logprob)| (spelled(tokenizer, id), finite(logprob)));
    list.top_logprobs.push(top.collect());
    list.text_offset.push(offset);
}

/// The text of a token; `bytes:\xe2\x80` where it is no text by itself, as OpenAI writes it, so that no two are the same.
fn spelled(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8(tokenizer.token_bytes(id)).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        bytes.fold("bytes:".to_owned(), |text, byte| text + &byte)
    })
}

/// JSON has no infinity; OpenAI writes -9999 for it.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
