//! One file over HTTP, however often the line breaks.
//!
//! Bytes are appended to a `*.part` file; after a break the next request asks for the rest with a `Range` header.
//! Attempts that bring bytes are free; after [`ATTEMPTS`] in a row that bring none the transfer gives up.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ureq::Agent;
use ureq::http::Response;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};

use super::progress::Progress;

/// How many requests in a row may fail before the whole transfer does.
pub(super) const ATTEMPTS: u32 = 5;

/// One file to fetch.
pub(super) struct Transfer<'a> {
    pub(super) agent: &'a Agent,
    pub(super) url: &'a str,
    pub(super) token: Option<&'a str>,
    /// Where the bytes go; what is there already is kept.
    pub(super) part: &'a Path,
    /// The whole file's size.
    pub(super) bytes: u64,
    /// The pause after the first failure; it doubles with each.
    pub(super) pause: Duration,
}

/// Why a transfer gave up.
pub(super) enum TransferError {
    /// The server answered, and its answer will not change.
    Status(u16),
    /// The line broke too often.
    Broken(String),
    /// The disk refused, with so many bytes still to come.
    Write { missing: u64, source: io::Error },
}

/// How one request ended short of the whole file.
enum Setback {
    /// Worth another try.
    Again(String),
    GiveUp(TransferError),
}

impl Transfer<'_> {
    /// Fetches what is missing. On success the part file has `bytes` bytes.
    pub(super) fn run(&self, progress: &Progress) -> Result<(), TransferError> {
        let broken = |source| TransferError::Write { missing: self.bytes, source };
        let options = OpenOptions::new().append(true).create(true).open(self.part);
        let mut file = options.map_err(broken)?;
        let mut have = file.metadata().map_err(broken)?.len();
        if have > self.bytes {
            file.set_len(0).map_err(broken)?;
            have = 0;
        }
        progress.add(have);
        let mut failures = 0;
        while have < self.bytes {
            let before = have;
            match self.attempt(&mut file, &mut have, progress) {
                Ok(()) => continue,
                Err(Setback::GiveUp(error)) => return Err(error),
                Err(Setback::Again(why)) => {
                    failures = if have > before { 1 } else { failures + 1 };
                    if failures == ATTEMPTS {
                        return Err(TransferError::Broken(why));
                    }
                    thread::sleep(self.pause * 2_u32.pow(failures - 1));
                }
            }
        }
        Ok(())
    }

    /// One request for everything from byte `have` on.
    fn attempt(&self, file: &mut File, have: &mut u64, progress: &Progress) -> Result<(), Setback> {
        let mut request = self.agent.get(self.url);
        if let Some(token) = self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if *have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
        }
        let mut response = request.call().map_err(|error| Setback::Again(error.to_string()))?;
        let status = response.status().as_u16();
        match status {
            206 if range_start(&response) == Some(*have) => {}
            // The server ignores ranges and sends the file from its start.
            200 => self.restart(file, have, progress)?,
            206 | 416 => {
                self.restart(file, have, progress)?;
                return Err(Setback::Again("the server does not hold the range that was asked for".into()));
            }
            _ if is_passing(status) => return Err(Setback::Again(format!("the server answered {status}"))),
            _ => return Err(Setback::GiveUp(TransferError::Status(status))),
        }
        self.copy(&mut response.body_mut().as_reader(), file, have, progress)
    }

    fn copy(
        &self,
        body: &mut impl Read,
        file: &mut File,
        have: &mut u64,
        progress: &Progress,
    ) -> Result<(), Setback> {
        let mut block = vec![0; 256 << 10];
        while *have < self.bytes {
            let room = block.len().min((self.bytes - *have) as usize);
            let count = match body.read(&mut block[..room]) {
                Ok(0) => return Err(Setback::Again("the connection closed early".into())),
                Ok(count) => count,
                Err(error) => return Err(Setback::Again(error.to_string())),
            };
            file.write_all(&block[..count]).map_err(|source| {
                Setback::GiveUp(TransferError::Write { missing: self.bytes - *have, source })
            })?;
            *have += count as u64;
            progress.add(count as u64);
        }
        Ok(())
    }

    fn restart(&self, file: &mut File, have: &mut u64, progress: &Progress) -> Result<(), Setback> {
        if *have > 0 {
            let broken = |source| Setback::GiveUp(TransferError::Write { missing: self.bytes, source });
            file.set_len(0).map_err(broken)?;
            progress.retract(*have);
            *have = 0;
        }
        Ok(())
    }
}

/// Whether an answer may be another one soon: too many requests, or trouble on the server's side.
pub(super) fn is_passing(status: u16) -> bool {
    status == 429 || status == 408 || status >= 500
}

/// The first byte that a partial answer says it holds: `Content-Range: bytes START-END/SIZE`.
fn range_start<B>(response: &Response<B>) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
