//! BurstGPT's CSV, read and written: a log of requests with the service's own names.
//!
//! `Timestamp` is in seconds, `Log Type` is `Conversation log` or `API log`, and an answer of 0 tokens is a failure.
//! `Session ID` and `Elapsed time` stand only in the third file of the release. A [`BurstLog`] keeps its rows as they were
//! written, so that what was read and not changed is written byte for byte as it was.

use std::{collections::HashMap, fmt::Write};

use super::{Class, Trace, TraceRequest};

const SHORT: &str = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type";
const LONG: &str =
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type";
/// A log of this many rows whose timestamps are the row numbers was made up.
const SUSPICIOUS_ROWS: usize = 100;

/// One line of the log. Numbers that may be written in several ways are kept as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BurstRow {
    /// Seconds, as `45` or `45.0`.
    pub timestamp: String,
    /// The conversation; empty for requests that are none.
    pub session: String,
    /// Seconds until the service's answer was complete.
    pub elapsed: String,
    /// `ChatGPT` or `GPT-4`.
    pub model: String,
    /// Tokens of the prompt.
    pub request_tokens: u32,
    /// Tokens of the answer.
    pub response_tokens: u32,
    /// Their sum, as the log has it.
    pub total_tokens: u64,
    /// `Conversation log` or `API log`.
    pub log_type: String,
}

/// A log as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BurstLog {
    /// The rows.
    pub rows: Vec<BurstRow>,
    /// True with the columns `Session ID` and `Elapsed time`.
    pub sessions: bool,
}

/// Whether `line` is the header of such a log.
pub(super) fn is_it(line: &str) -> bool {
    [SHORT, LONG].contains(&line.trim_end())
}

impl BurstLog {
    /// The log in `text`.
    ///
    /// # Errors
    /// The number of a line, from 1, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut lines = text.lines().enumerate();
        let sessions = match lines.next().map(|(_, line)| line.trim_end()) {
            Some(LONG) => true,
            Some(SHORT) => false,
            _ => return Err((1, format!("the header is neither {SHORT} nor {LONG}"))),
        };
        let rows = lines.filter(|(_, line)| !line.trim().is_empty());
        let rows =
            rows.map(|(index, line)| BurstRow::parse(line, sessions).map_err(|reason| (index + 1, reason)));
        Ok(Self { rows: rows.collect::<Result<_, _>>()?, sessions })
    }

    /// True for a file whose timestamps are its row numbers, as no service's are.
    pub fn is_fabricated(&self) -> bool {
        let counts_up = |(index, row): (usize, &BurstRow)| row.timestamp.parse() == Ok(index as f64);
        self.rows.len() >= SUSPICIOUS_ROWS && self.rows.iter().enumerate().all(counts_up)
    }

    /// The log as CSV.
    pub fn csv(&self) -> String {
        let mut text = format!("{}\n", if self.sessions { LONG } else { SHORT });
        for row in &self.rows {
            let _ = write!(text, "{},", row.timestamp); // to a String: cannot fail
            if self.sessions {
                let _ = write!(text, "{},{},", row.session, row.elapsed);
            }
            let (request, response, total) = (row.request_tokens, row.response_tokens, row.total_tokens);
            let _ = writeln!(text, "{},{request},{response},{total},{}", row.model, row.log_type);
        }
        text
    }

    /// The log as a trace.
    pub fn trace(&self, origin: &str) -> Trace {
        let mut classes: Vec<Class> = Vec::new();
        let mut places: HashMap<(&str, &str), u16> = HashMap::new();
        let mut sessions: HashMap<&str, u64> = HashMap::new();
        let time = |row: &BurstRow| row.timestamp.parse::<f64>().unwrap_or_default();
        let first = self.rows.iter().map(time).fold(f64::INFINITY, f64::min);
        let requests = self.rows.iter().map(|row| {
            let class = *places.entry((&row.model, &row.log_type)).or_insert_with(|| {
                classes.push(Class { model: row.model.clone(), log_type: row.log_type.clone() });
                // No log names more services than this has room for; what did would share the last one.
                u16::try_from(classes.len() - 1).unwrap_or(u16::MAX)
            });
            let next = sessions.len() as u64;
            let session = (!row.session.is_empty()).then(|| *sessions.entry(&row.session).or_insert(next));
            TraceRequest {
                session,
                elapsed_s: row.elapsed.parse().ok(),
                class,
                failed: row.response_tokens == 0,
                ..TraceRequest::plain(time(row) - first, row.request_tokens, row.response_tokens)
            }
        });
        let requests = requests.collect();
        Trace::new(requests, classes, 1, origin.to_owned())
    }

    /// `trace` as a log, with times to the millisecond. Block names have no place in it and are lost.
    pub fn of(trace: &Trace) -> Self {
        let sessions =
            trace.requests.iter().any(|request| request.session.is_some() || request.elapsed_s.is_some());
        let rows = trace.requests.iter().map(|request| {
            let class = trace.classes.get(usize::from(request.class)).cloned().unwrap_or_default();
            let response_tokens = if request.failed { 0 } else { request.output_tokens };
            BurstRow {
                timestamp: milliseconds(request.arrival_s),
                session: request.session.map_or_else(String::new, |session| session.to_string()),
                elapsed: request.elapsed_s.map_or_else(String::new, milliseconds),
                model: class.model,
                request_tokens: request.input_tokens,
                response_tokens,
                total_tokens: u64::from(request.input_tokens) + u64::from(response_tokens),
                log_type: class.log_type,
            }
        });
        Self { rows: rows.collect(), sessions }
    }
}

/// Seconds to the millisecond.
fn milliseconds(seconds: f64) -> String {
    format!("{:?}", (seconds * 1000.0).round() / 1000.0)
}

impl BurstRow {
    fn parse(line: &str, sessions: bool) -> Result<Self, String> {
        let fields: Vec<&str> = line.trim_end_matches('\r').split(',').collect();
        let (timestamp, session, elapsed, rest) = match (sessions, &fields[..]) {
            (true, [timestamp, session, elapsed, rest @ ..]) => (*timestamp, *session, *elapsed, rest),
            (false, [timestamp, rest @ ..]) => (*timestamp, "", "", rest),
            _ => return Err(format!("{} fields where there are 8", fields.len())),
        };
        let &[model, request, response, total, log_type] = rest else {
            return Err(format!("{} fields where there are {}", fields.len(), if sessions { 8 } else { 6 }));
        };
        let time = |what: &str, text: &str| match text.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(()),
            _ => Err(format!("'{text}' is no {what} in seconds")),
        };
        time("Timestamp", timestamp)?;
        if !elapsed.is_empty() {
            time("Elapsed time", elapsed)?;
        }
        let tokens =
            |what: &str, text: &str| text.parse().map_err(|_| format!("'{text}' is no number of {what}"));
        Ok(Self {
            timestamp: timestamp.to_owned(),
            session: session.to_owned(),
            elapsed: elapsed.to_owned(),
            model: model.to_owned(),
            request_tokens: tokens("Request tokens", request)?,
            response_tokens: tokens("Response tokens", response)?,
            total_tokens: total.parse().map_err(|_| format!("'{total}' is no number of Total tokens"))?,
            log_type: log_type.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE_1: &str = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
        5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,Conversation log\n\
        118,GPT-4,417,276,693,Conversation log\n120,ChatGPT,90,0,90,API log\n";
    const FILE_3: &str = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
        0.0,abc,3.25,ChatGPT,10,20,30,Conversation log\n0.5,,1.0,GPT-4,7,9,16,API log\n\
        61.0,abc,2,ChatGPT,45,3,48,Conversation log\n";

    #[test]
    fn both_forms_come_back_byte_for_byte() {
        for text in [FILE_1, FILE_3] {
            assert_eq!(BurstLog::parse(text).unwrap().csv(), text);
        }
    }

    #[test]
    fn a_log_is_a_trace_with_classes_sessions_and_failures() {
        let trace = BurstLog::parse(FILE_1).unwrap().trace("x");
        assert_eq!(trace.classes.len(), 3);
        assert_eq!((trace.requests[0].arrival_s, trace.requests[1].arrival_s), (0.0, 40.0));
        let failed: Vec<bool> = trace.requests.iter().map(|request| request.failed).collect();
        assert_eq!((failed, trace.resolution_s), (vec![false, false, false, true], 1.0));
        let trace = BurstLog::parse(FILE_3).unwrap().trace("x");
        assert_eq!(trace.previous_turns(), [None, None, Some(0)]);
        assert_eq!((trace.requests[1].session, trace.requests[1].class), (None, 1));
        // Answered 3.25 s behind the beginning, and asked again after 61 s.
        assert_eq!(trace.think_s(0, 2), 57.75);
    }

    #[test]
    fn a_trace_that_was_written_is_read_as_it_was() {
        let trace = BurstLog::parse(FILE_3).unwrap().trace("x");
        let text = BurstLog::of(&trace).csv();
        assert_eq!(BurstLog::parse(&text).unwrap().trace("x"), trace);
        assert!(text.contains("\n0.5,,1.0,GPT-4,7,9,16,API log\n"), "{text}");
    }

    #[test]
    fn rows_that_count_up_are_not_a_log() {
        let made_up = |rows: usize| {
            let row = |n: usize| format!("{n},ChatGPT,50,60,110,Conversation log\n");
            BurstLog::parse(&format!("{SHORT}\n{}", (0..rows).map(row).collect::<String>())).unwrap()
        };
        assert!(made_up(250).is_fabricated() && !made_up(20).is_fabricated());
        assert!(!BurstLog::parse(FILE_1).unwrap().is_fabricated());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (line, reason) in [
            ("1,ChatGPT,1,2,3", "5 fields where there are 6"),
            ("x,ChatGPT,1,2,3,API log", "'x' is no Timestamp"),
            ("NaN,ChatGPT,1,2,3,API log", "'NaN' is no Timestamp"),
            ("1,ChatGPT,1.5,2,3,API log", "'1.5' is no number of Request tokens"),
            ("1,ChatGPT,1,2,,API log", "'' is no number of Total tokens"),
        ] {
            let (at, said) = BurstLog::parse(&format!("{FILE_1}{line}\n")).unwrap_err();
            assert!(at == 6 && said.contains(reason), "{at}: {said}");
        }
        let (at, said) = BurstLog::parse("Timestamp,Model\n1,2\n").unwrap_err();
        assert!(at == 1 && said.contains("neither"), "{said}");
    }
}
