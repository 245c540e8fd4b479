//! A trace from a file: which format it is in is seen from how it begins, and Zstandard is unpacked on the way.

use std::{fs, path::Path};

use super::{BurstLog, Trace, TraceError, azure, log, mooncake};
use crate::zstandard::{self, unpack};

/// Ten years. Logs are counted in windows of seconds, which nothing longer has room for.
const LONGEST_S: f64 = 3.2e8;

impl Trace {
    /// The trace in the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is in no known format, or has a line that its format does not allow.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        Self::parse(&unpacked_text(path)?, path)
    }

    /// The trace in `text`, which `path` holds.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(text: &str, path: &Path) -> Result<Self, TraceError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let origin = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let damaged = |(line, reason)| TraceError::Line { path: path.to_owned(), line, reason };
        let trace = if mooncake::is_it(first) {
            mooncake::parse(text, &origin).map_err(damaged)?
        } else if azure::is_it(first) {
            azure::parse(text, &origin).map_err(damaged)?
        } else if log::is_it(first) {
            let log = BurstLog::parse(text).map_err(damaged)?;
            if log.is_fabricated() {
                return Err(TraceError::Fabricated { path: path.to_owned(), rows: log.rows.len() });
            }
            log.trace(&origin)
        } else {
            let beginning = first.chars().take(60).collect();
            return Err(TraceError::UnknownFormat { path: path.to_owned(), beginning });
        };
        if trace.requests.is_empty() {
            return Err(TraceError::Empty { origin: trace.origin, hint: "" });
        }
        let span_s = trace.span_s();
        if !(0.0..=LONGEST_S).contains(&span_s) {
            return Err(TraceError::TooLong { path: path.to_owned(), span_s });
        }
        Ok(trace)
    }
}

/// The text in the file at `path`, packed with zstd or not.
///
/// # Errors
/// The file cannot be read, is damaged, or holds no text.
pub fn unpacked_text(path: &Path) -> Result<String, TraceError> {
    let unreadable = |source| TraceError::Unreadable { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(unreadable)?;
    let bytes = if zstandard::is_packed(&bytes) { unpack(&bytes).map_err(unreadable)? } else { bytes };
    let not_text =
        |_| unreadable(std::io::Error::other("it is neither UTF-8 text nor a Zstandard frame of it"));
    String::from_utf8(bytes).map_err(not_text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Trace, String> {
        Trace::parse(text, Path::new("some/file.csv")).map_err(|error| error.to_string())
    }

    #[test]
    fn formats_are_told_apart_by_how_they_begin() {
        let mooncake = "{\"timestamp\": 0, \"input_length\": 3, \"output_length\": 1, \"hash_ids\": [1]}\n";
        assert_eq!(parse(mooncake).unwrap().block_tokens, 512);
        let azure = "\u{feff}TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,2\n";
        assert_eq!(parse(azure).unwrap().requests[0].input_tokens, 1);
        let log =
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,1,2,3,API log\n";
        assert_eq!(parse(log).unwrap().classes[0].model, "GPT-4");
    }

    #[test]
    fn what_is_no_trace_is_refused_with_a_way_out() {
        let error = parse("a,b,c\n1,2,3\n").unwrap_err();
        assert!(error.contains("Mooncake") && error.contains("begins with 'a,b,c'"), "{error}");
        let error = parse("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,2\n").unwrap_err();
        assert!(error.starts_with("some/file.csv, line 2: 'x' is no time"), "{error}");
        let error = parse("TIMESTAMP,ContextTokens,GeneratedTokens\n").unwrap_err();
        assert_eq!(error, "file.csv has no requests");
        let error = Trace::read(Path::new("no/such/file")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read no/such/file: "), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic_and_what_is_read_is_in_order(
            header in prop::sample::select(vec![
                "TIMESTAMP,ContextTokens,GeneratedTokens",
                "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
                "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type",
                "{\"timestamp\":0,\"input_length\":9,\"output_length\":1}",
                "",
            ]),
            rows in prop::collection::vec(
                "([0-9]{1,9}|-1|x|)(,([0-9]{1,12}|GPT-4|API log|1e308|2023-11-1[0-9] 1[0-9]:59:0[0-9].[0-9]{0,9})){0,8}|\\PC{0,30}",
                0..12,
            ),
        ) {
            let text = format!("{header}\n{}", rows.join("\n"));
            if let Ok(trace) = Trace::parse(&text, Path::new("x")) {
                prop_assert!(trace.requests.is_sorted_by(|a, b| a.arrival_s <= b.arrival_s));
                prop_assert!(trace.requests.iter().all(|request| request.arrival_s >= 0.0));
            }
        }
    }
}
