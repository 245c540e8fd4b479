//! Server-sent events, as the WHATWG HTML standard defines their parsing (section 9.2.6), from bytes in any pieces.

/// Bytes of one line, at most: no token's event comes near, and an endless line must not fill memory.
const MOST_LINE_BYTES: usize = 16 << 20;

/// Finds events in a stream of bytes.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The line that is not ended yet.
    line: Vec<u8>,
    /// The data lines of the event that is not ended yet, each with a line feed behind it.
    data: Vec<u8>,
    /// True if the last byte was a carriage return, so that a line feed now belongs to it.
    after_return: bool,
    /// True behind the first line, where a byte order mark may stand.
    begun: bool,
}

/// The stream is not what the standard allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event's data is not UTF-8.
    #[error("an event is not UTF-8 text")]
    NotText,
    /// A line does not end.
    #[error("a line has more than {MOST_LINE_BYTES} bytes")]
    TooLong,
}

impl SseParser {
    /// Takes `bytes` in and hands the data of every event that they end to `event`.
    ///
    /// # Errors
    /// From an event that is not text or does not end.
    pub fn feed(&mut self, bytes: &[u8], mut event: impl FnMut(&str)) -> Result<(), SseError> {
        for &byte in bytes {
            let follows_return = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if follows_return => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    self.end_line(&mut event)?;
                }
                _ if self.line.len() >= MOST_LINE_BYTES => return Err(SseError::TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, event: &mut impl FnMut(&str)) -> Result<(), SseError> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.begun, true) && line.starts_with(&[0xEF, 0xBB, 0xBF]) {
            line.drain(..3);
        }
        if line.is_empty() {
            // The line feed behind the last data line does not belong to the event.
            if self.data.pop().is_some() {
                let data = std::mem::take(&mut self.data);
                event(std::str::from_utf8(&data).map_err(|_| SseError::NotText)?);
            }
            return Ok(());
        }
        // Comments and other fields mean nothing here.
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        if &line[..colon] == b"data" {
            let value = line.get(colon + 1..).unwrap_or_default();
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.data.push(b'\n');
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut found) = (SseParser::default(), Vec::new());
        for piece in pieces {
            parser.feed(piece, |event| found.push(event.to_owned())).unwrap();
        }
        found
    }

    #[test]
    fn the_standards_examples() {
        assert_eq!(events(&[b"data: YHOO\ndata: +2\ndata: 10\n\n"]), ["YHOO\n+2\n10"]);
        let stream =
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        assert_eq!(events(&[stream]), ["first event", "second event", " third event"]);
        assert_eq!(events(&[b"data\n\ndata\ndata\n\ndata:"]), ["", "\n"]);
        assert_eq!(events(&[b"data:test\n\ndata: test\n\n"]), ["test", "test"]);
    }

    #[test]
    fn line_ends_marks_and_unended_events() {
        assert_eq!(events(&[b"\xEF\xBB\xBFdata: a\r\n\r\ndata: b\r\rdata: c\n\ndata: d\n"]), ["a", "b", "c"]);
        assert_eq!(events(&[b"data: a\r", b"\n\r", b"\ndata: b\n\n"]), ["a", "b"]);
        assert_eq!(SseParser::default().feed(b"data: \xFF\n\n", |_| {}), Err(SseError::NotText));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            lines in proptest::collection::vec("(data|id|)(: ?)?[a-zäß€😀]{0,6}(\r\n|\r|\n)", 0..40),
            cut in 1_usize..7,
        ) {
            let stream = lines.concat();
            let pieces: Vec<&[u8]> = stream.as_bytes().chunks(cut).collect();
            prop_assert_eq!(events(&pieces), events(&[stream.as_bytes()]));
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _ = SseParser::default().feed(&bytes, |_| {});
        }
    }
}
