//! Mooncake's JSON lines: `timestamp` in milliseconds, `input_length`, `output_length` and `hash_ids`, one for each 512
//! tokens of the prompt; an id stands for its block and everything before it.

use serde::Deserialize;

use super::{Class, Trace, TraceRequest};

/// Tokens that a hash id stands for.
pub(super) const BLOCK_TOKENS: usize = 512;

#[derive(Deserialize)]
struct Row {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// Whether `line` looks like one of these.
pub(super) fn is_it(line: &str) -> bool {
    line.starts_with('{') && line.contains("\"input_length\"")
}

/// The trace in `text`.
///
/// # Errors
/// The number of a line, from 1, and what is wrong with it.
pub(super) fn parse(text: &str, origin: &str) -> Result<Trace, (usize, String)> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let requests = lines.map(|(index, line)| {
        let at = index + 1;
        let row: Row = serde_json::from_str(line).map_err(|error| (at, format!("no request: {error}")))?;
        if !(row.timestamp.is_finite() && row.timestamp >= 0.0) {
            return Err((at, format!("the timestamp {} is no time from 0 on", row.timestamp)));
        }
        let most = (row.input_length as usize).div_ceil(BLOCK_TOKENS);
        if row.hash_ids.len() > most {
            let (ids, tokens) = (row.hash_ids.len(), row.input_length);
            return Err((
                at,
                format!("{ids} hash ids of {BLOCK_TOKENS} tokens are more than a prompt of {tokens} has"),
            ));
        }
        Ok(TraceRequest {
            blocks: row.hash_ids.into(),
            ..TraceRequest::plain(row.timestamp / 1000.0, row.input_length, row.output_length)
        })
    });
    let requests = requests.collect::<Result<Vec<_>, _>>()?;
    let mut trace = Trace::new(requests, vec![Class::default()], BLOCK_TOKENS, origin.to_owned());
    trace.find_sessions();
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request() {
        let text = concat!(
            r#"{"timestamp": 1500, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]}"#,
            "\n\n",
            r#"{"timestamp": 0, "input_length": 10, "output_length": 2}"#,
        );
        let trace = parse(text, "x").unwrap();
        assert_eq!(trace.requests[0], TraceRequest::plain(0.0, 10, 2));
        assert_eq!((trace.requests[1].arrival_s, &trace.requests[1].blocks[..]), (1.5, &[7, 8][..]));
        assert!(is_it(text.lines().next().unwrap()) && !is_it("{\"a\": 1}"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (line, reason) in [
            ("{", "no request: EOF"),
            (r#"{"timestamp": -1, "input_length": 1, "output_length": 1}"#, "the timestamp -1 is no time"),
            (r#"{"timestamp": 0, "input_length": -1, "output_length": 1}"#, "no request: invalid value"),
            (
                r#"{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}"#,
                "2 hash ids of 512 tokens are more than a prompt of 512 has",
            ),
        ] {
            let (at, said) = parse(&format!("\n{line}\n"), "x").unwrap_err();
            assert!(at == 2 && said.contains(reason), "{at}: {said}");
        }
    }
}
