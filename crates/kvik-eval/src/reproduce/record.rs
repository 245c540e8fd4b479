//! What is kept of an experiment, and the table that the book shows.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// One number that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What it is.
    pub what: String,
    /// Under which pipeline.
    pub kv: String,
    /// The number.
    pub value: f64,
    /// Its 95 % interval, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interval: Option<(f64, f64)>,
    /// Its unit; empty for a ratio.
    pub unit: String,
}

/// A number that was held to a threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is.
    pub what: String,
    /// What was measured.
    pub measured: f64,
    /// What it was held to.
    pub threshold: f64,
    /// True if it has to be at least that, false if at most.
    pub at_least: bool,
    /// Its unit; empty for a ratio.
    pub unit: String,
}

impl Finding {
    /// True if the threshold holds.
    pub fn holds(&self) -> bool {
        if self.at_least { self.measured >= self.threshold } else { self.measured <= self.threshold }
    }
}

/// What it was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Threads that were used.
    pub threads: usize,
    /// The instruction set of the kernels.
    pub isa: String,
}

/// One run of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The experiment.
    pub name: String,
    /// Its paper.
    pub paper: String,
    /// What the paper says.
    pub claim: String,
    /// What was done here.
    pub setting: String,
    /// True for the short form that only shows that the experiment runs.
    pub quick: bool,
    /// The model.
    pub model: String,
    /// The commit that the program was built from, if known; `-dirty` behind it if the sources had changed since.
    pub commit: Option<String>,
    /// The machine.
    pub machine: Machine,
    /// How long it took.
    pub seconds: f64,
    /// Everything that was measured.
    pub measurements: Vec<Measurement>,
    /// What decides.
    pub findings: Vec<Finding>,
}

impl Record {
    /// True if every threshold holds, and there is one.
    pub fn holds(&self) -> bool {
        !self.findings.is_empty() && self.findings.iter().all(Finding::holds)
    }

    /// The record as text for a terminal or, between code fences, for a page.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{}: {}\n\nClaim    {}\nSetting  {}",
            self.name, self.paper, self.claim, self.setting
        );
        let Machine { processor, threads, isa } = &self.machine;
        let _ = writeln!(
            out,
            "Machine  {processor}, {threads} threads, {isa}; {}; {:.0} s\n",
            self.model, self.seconds
        );
        let width = |of: fn(&Measurement) -> &String| {
            self.measurements.iter().map(|m| of(m).chars().count()).max().unwrap_or(0)
        };
        let (what_width, kv_width) = (width(|m| &m.what), width(|m| &m.kv));
        for Measurement { what, kv, value, interval, unit } in &self.measurements {
            let interval = interval
                .map_or(String::new(), |(low, high)| format!(" ({} to {})", number(low), number(high)));
            let _ = writeln!(out, "{what:what_width$}  {kv:kv_width$}  {} {unit}{interval}", number(*value));
        }
        out.push('\n');
        for finding in &self.findings {
            let Finding { what, measured, threshold, at_least, unit } = finding;
            let sign = if *at_least { ">=" } else { "<=" };
            let verdict = if finding.holds() { "holds" } else { "fails" };
            let _ = writeln!(
                out,
                "{verdict}  {what}: {} {unit}, {sign} {} {unit}",
                number(*measured),
                number(*threshold)
            );
        }
        let verdict = if self.holds() { "The claim holds here." } else { "The claim does not hold here." };
        let _ = writeln!(
            out,
            "\n{verdict}{}",
            if self.quick { " (A quick run: it shows that the experiment works.)" } else { "" }
        );
        out
    }
}

/// The book's table of all `records`.
pub fn table(records: &[Record]) -> String {
    let mut page = String::from(
        "# Reproductions\n\nWhat papers claim, measured at the scale of one small machine by `kvik reproduce NAME`. This page is made from \
         the records in `reproductions/` (`kvik reproduce --table`). A claim that fails here is kept as it came out.\n\n\
         | experiment | claim | verdict | measured |\n| --- | --- | --- | --- |\n",
    );
    for record in records {
        let verdict = if record.holds() { "holds" } else { "fails" };
        let quick = if record.quick { " (quick)" } else { "" };
        let findings = record.findings.iter().map(|finding| {
            let sign = if finding.at_least { "≥" } else { "≤" };
            let mark = if finding.holds() { "" } else { "**" };
            let unit = if finding.unit.is_empty() { String::new() } else { format!(" {}", finding.unit) };
            let (measured, threshold) = (number(finding.measured), number(finding.threshold));
            format!("{mark}{}: {measured}{unit} ({sign} {threshold}){mark}", finding.what)
        });
        let findings = findings.collect::<Vec<_>>().join("; ");
        let link = format!("[`{0}`](#{0})", record.name);
        let _ = writeln!(page, "| {link} | {} | {verdict}{quick} | {findings} |", record.claim);
    }
    for record in records {
        let _ = write!(page, "\n## {}\n\n```text\n{}```\n", record.name, record.text());
    }
    page
}

/// A number with three or four digits that say something.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.01 => 4,
        _ => return format!("{value:.2e}"),
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_from_its_json_and_one_failure_fails_the_claim() {
        let finding = |measured| Finding {
            what: "x".into(),
            measured,
            threshold: 0.9,
            at_least: true,
            unit: String::new(),
        };
        let mut record = Record {
            name: "a".into(),
            paper: "b".into(),
            claim: "c".into(),
            setting: "d".into(),
            quick: false,
            model: "m".into(),
            commit: None,
            machine: Machine { processor: "p".into(), threads: 2, isa: "scalar".into() },
            seconds: 1.0,
            measurements: vec![Measurement {
                what: "w".into(),
                kv: "full".into(),
                value: 0.5,
                interval: Some((0.4, 0.6)),
                unit: "ms".into(),
            }],
            findings: vec![finding(0.95)],
        };
        assert!(record.holds());
        record.findings.push(finding(0.85));
        assert!(!record.holds());
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert!(record.text().contains("fails  x: 0.8500 , >= 0.9000"), "{}", record.text());
        assert!(table(&[record]).contains("| fails |"));
    }
}
