//! Tables for people: aligned columns in a terminal, or Markdown.

use std::fmt::Write;

/// Rows of cells under a header. The first column is text, the others are numbers, set to the right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(header: Vec<String>) -> Self {
        Self { header, rows: Vec::new() }
    }

    /// Adds a row. Cells that it lacks stay empty.
    pub fn push(&mut self, mut row: Vec<String>) {
        row.resize(self.header.len(), String::new());
        self.rows.push(row);
    }

    /// With spaces between the columns.
    pub fn text(&self) -> String {
        self.lines("", "  ", "")
    }

    /// As a Markdown table.
    pub fn markdown(&self) -> String {
        let mut lines = self.lines("| ", " | ", " |");
        let rule = self.widths().into_iter().enumerate().fold(String::from("|"), |rule, (column, width)| {
            let dashes = "-".repeat(width);
            if column == 0 { format!("{rule} {dashes} |") } else { format!("{rule} {}: |", &dashes[1..]) }
        });
        let after_header = lines.find('\n').map_or(lines.len(), |end| end + 1);
        lines.insert_str(after_header, &format!("{rule}\n"));
        lines
    }

    fn lines(&self, open: &str, between: &str, close: &str) -> String {
        let widths = self.widths();
        let mut out = String::new();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let mut line = open.to_owned();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { between };
                // Writing to a String cannot fail.
                let _ = match column {
                    0 => write!(line, "{gap}{cell:<width$}"),
                    _ => write!(line, "{gap}{cell:>width$}"),
                };
            }
            out.push_str((line + close).trim_end());
            out.push('\n');
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells =
                std::iter::once(&self.header).chain(&self.rows).map(|row| row[column].chars().count());
            // A Markdown rule needs two characters.
            cells.max().unwrap_or(0).max(2)
        };
        (0..self.header.len()).map(width).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    fn table() -> Table {
        let mut table = Table::new(vec!["figure".into(), "tokens/s".into()]);
        table.push(vec!["prefill 512".into(), "1234".into()]);
        table.push(vec!["ratio ×".into()]);
        table
    }

    #[test]
    fn numbers_stand_under_each_other() {
        assert_eq!(table().text(), "figure       tokens/s\nprefill 512      1234\nratio ×\n");
    }

    #[test]
    fn markdown_has_a_rule_under_the_header() {
        let want = "\
| figure      | tokens/s |
| ----------- | -------: |
| prefill 512 |     1234 |
| ratio ×     |          |
";
        assert_eq!(table().markdown(), want);
    }
}
