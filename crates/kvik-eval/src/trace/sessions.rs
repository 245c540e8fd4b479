//! Which requests are turns of one conversation, where a trace does not say.
//!
//! A prompt that begins with all the whole blocks of an earlier prompt continues it, or asks the same again. Blocks that
//! many conversations begin with, such as a system prompt, tie nothing: a chain of blocks counts only when it was the whole
//! of one request's prompt.

use std::collections::HashMap;

use super::{Trace, TraceRequest};

/// Blocks that two prompts must share to be turns of one conversation: one may be a system prompt.
const LEAST_BLOCKS: usize = 2;

impl Trace {
    /// Ties requests into conversations by their blocks. Requests without a continuation belong to none.
    pub(super) fn find_sessions(&mut self) {
        // By the last whole block of a prompt and its place, the last request that ended there. A block's name stands for
        // everything before it, too.
        let mut ends: HashMap<(usize, u64), usize> = HashMap::new();
        let mut next = 0;
        for index in 0..self.requests.len() {
            let blocks = self.requests[index].blocks.clone();
            let mut lengths = (LEAST_BLOCKS..=blocks.len()).rev();
            let longest = lengths.find_map(|length| ends.get(&(length, blocks[length - 1])).copied());
            if let Some(previous) = longest {
                let session = *self.requests[previous].session.get_or_insert_with(|| {
                    next += 1;
                    next - 1
                });
                self.requests[index].session = Some(session);
            }
            let whole = whole_blocks(&self.requests[index], self.block_tokens);
            if whole >= LEAST_BLOCKS {
                ends.insert((whole, blocks[whole - 1]), index);
            }
        }
    }
}

/// Blocks of the prompt that are full; the last one often is not, and its name changes when it fills.
fn whole_blocks(request: &TraceRequest, block_tokens: usize) -> usize {
    (request.input_tokens as usize / block_tokens.max(1)).min(request.blocks.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Class;

    #[test]
    fn a_prompt_that_begins_with_a_whole_earlier_one_is_its_next_turn() {
        let request = |arrival: f64, tokens: u32, blocks: &[u64]| TraceRequest {
            blocks: blocks.into(),
            ..TraceRequest::plain(arrival, tokens, 1)
        };
        let requests = vec![
            request(0.0, 2500, &[0, 1, 2]),       // whole: 0 1
            request(1.0, 2500, &[0, 5, 6]),       // another conversation under the same system prompt
            request(2.0, 4500, &[0, 1, 3, 4, 9]), // continues the first
            request(3.0, 4500, &[0, 5, 7, 8, 9]), // continues the second
            request(4.0, 6000, &[0, 1, 3, 4, 10, 11]),
            request(5.0, 900, &[0]), // the system prompt alone
            request(6.0, 2500, &[0, 77, 78]),
        ];
        let mut trace = Trace::new(requests, vec![Class::default()], 1000, "x".into());
        trace.find_sessions();
        assert_eq!(trace.previous_turns(), [None, None, Some(0), Some(1), Some(2), None, None]);
        assert_eq!(trace.requests[6].session, None);
    }
}
