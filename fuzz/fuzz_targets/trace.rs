//! An arbitrary log of traffic: it is read, or refused with a sentence that says where.
#![no_main]

use std::path::Path;

use kvik_eval::trace::Trace;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    match Trace::parse(&text, Path::new("log")) {
        Ok(trace) => {
            assert!(!trace.requests.is_empty());
            assert!(trace.span_s().is_finite() && trace.span_s() >= 0.0);
            assert!(trace.gaps_s().iter().all(|gap| *gap >= 0.0), "requests are in the order of their arrival");
            // A turn comes behind the one before it.
            let turns = trace.previous_turns();
            assert!(turns.iter().enumerate().all(|(turn, before)| before.is_none_or(|before| before < turn)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
