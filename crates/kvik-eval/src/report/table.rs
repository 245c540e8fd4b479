//! Tables for a terminal: aligned columns, the first to the left, the others to the right.

use std::fmt::Write;

use super::{Report, TaskReport};
use crate::statistics::Estimate;

/// Rows of cells, the first of which is the header.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![header.into_iter().map(Into::into).collect()] }
    }

    pub(super) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    pub(super) fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    pub(super) fn text(&self, indent: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a String cannot fail.
                let _ = match column {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

impl Report {
    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for task in &self.tasks {
            let _ = writeln!(text, "{}: {} ({} items, 95 % intervals)", task.task, task.about, task.items);
            text.push_str(&task.scores().text("  "));
            for breakdown in task.breakdown_tables() {
                text.push('\n');
                text.push_str(&breakdown.text("  "));
            }
            if let Some(divergence) = task.divergence_table() {
                text.push('\n');
                text.push_str(&divergence.text("  "));
            }
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        if !self.finished {
            text.push_str("note: the run was stopped before its end; with --resume FILE it would go on where it stopped\n");
        }
        text
    }
}

impl TaskReport {
    /// Scores, memory and time, variant by variant.
    pub(super) fn scores(&self) -> Table {
        let mut header =
            vec!["kv", &self.metric, "against full", "KV MiB", "of full", "prompt tok/s", "decode ms/tok"];
        let mib = |bytes: f64| format!("{:.2}", bytes / f64::from(1 << 20));
        let files = self.rows.iter().any(|row| row.kv_file_bytes > 0.0);
        if files {
            header.push("file MiB");
        }
        let mut table = Table::new(header);
        for row in &self.rows {
            let mut cells = vec![
                row.kv.clone(),
                with_interval(row.score),
                row.difference.map_or_else(String::new, signed),
                mib(row.kv_bytes),
                format!("{:.1} %", 100.0 * row.kv_share),
                format!("{:.0}", row.prefill_tokens_per_second),
                row.decode_ms_per_token.map_or_else(String::new, |ms| format!("{ms:.2}")),
            ];
            if files {
                cells.push(mib(row.kv_file_bytes));
            }
            table.push(cells);
        }
        if let Some(chance) = self.chance {
            table.push(vec!["chance".to_owned(), with_interval(chance)]);
        }
        table
    }

    /// One table for each property.
    pub(super) fn breakdown_tables(&self) -> Vec<Table> {
        let table = |breakdown: &super::Breakdown| {
            let header =
                std::iter::once(format!("by {}", breakdown.by)).chain(breakdown.values.iter().cloned());
            let mut table = Table::new(header);
            for (row, scores) in self.rows.iter().zip(&breakdown.scores) {
                let cells =
                    scores.iter().map(|score| score.map_or_else(String::new, |score| short(score.value)));
                table.push(std::iter::once(row.kv.clone()).chain(cells).collect());
            }
            table
        };
        self.breakdowns.iter().map(table).collect()
    }

    /// Percentiles and agreement, variant by variant.
    pub(super) fn divergence_table(&self) -> Option<Table> {
        if self.divergence.is_empty() {
            return None;
        }
        let mut table = Table::new(["KL over positions", "top-1 agreement", "p50", "p90", "p99", "max"]);
        for row in &self.divergence {
            let p = &row.percentiles;
            let mut cells = vec![row.kv.clone(), format!("{:.2} %", 100.0 * row.top1_agreement)];
            cells.extend([p.p50, p.p90, p.p99, p.max].map(short));
            table.push(cells);
        }
        Some(table)
    }
}

/// A number with about three digits that mean something.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

fn with_interval(estimate: Estimate) -> String {
    format!("{} [{}, {}]", short(estimate.value), short(estimate.low), short(estimate.high))
}

fn signed(estimate: Estimate) -> String {
    let sign = |value: f64| if value > 0.0 { format!("+{}", short(value)) } else { short(value) };
    format!("{} [{}, {}]", sign(estimate.value), sign(estimate.low), sign(estimate.high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other() {
        let mut table = Table::new(["kv", "score"]);
        table.push(vec!["full".into(), "1".into()]);
        table.push(vec!["snapkv(budget=4)".into(), "0.25".into()]);
        table.push(vec!["chance".into()]);
        let expected =
            "  kv                score\n  full                  1\n  snapkv(budget=4)   0.25\n  chance\n";
        assert_eq!(table.text("  "), expected);
    }

    #[test]
    fn numbers_keep_three_digits_that_mean_something() {
        let shown: Vec<String> = [0.0, 1234.5, 12.345, 1.0, 0.12345, 0.0001234, -0.5].map(short).to_vec();
        assert_eq!(shown, ["0", "1234", "12.35", "1.000", "0.123", "1.2e-4", "-0.500"]);
        assert_eq!(signed(Estimate { value: 0.1, low: -0.2, high: 0.0 }), "+0.100 [-0.200, 0]");
    }
}
