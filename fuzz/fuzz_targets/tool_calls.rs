//! An arbitrary answer in each form of calls, in one piece and character by character: the same calls and the same text.
#![no_main]

use kvik_engine::tool_calls::{ToolCallFormat, ToolCallParser, ToolDelta};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    for format in ToolCallFormat::ALL {
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(read(format, &[&text]), read(format, &pieces), "{format:?}");
    }
});

/// A call's name and arguments, and whether it came to its end.
type Call = (String, String, bool);

/// What an answer that comes in `pieces` says: its text and its calls.
fn read<S: AsRef<str>>(format: ToolCallFormat, pieces: &[S]) -> (String, Vec<Call>) {
    let mut parser = ToolCallParser::new(format, ["f".to_owned(), "get_weather".to_owned()]);
    let mut deltas: Vec<ToolDelta> = pieces.iter().flat_map(|piece| parser.push(piece.as_ref())).collect();
    deltas.extend(parser.finish());
    let (mut said, mut calls) = (String::new(), Vec::new());
    for delta in deltas {
        match delta {
            ToolDelta::Text(text) => said += &text,
            ToolDelta::Call { index, name } => {
                assert_eq!(index, calls.len(), "calls are numbered in their order");
                calls.push((name, String::new(), false));
            }
            ToolDelta::Arguments { index, text } => calls[index].1 += &text,
            ToolDelta::End { index, complete } => calls[index].2 = complete,
        }
    }
    (said, calls)
}
