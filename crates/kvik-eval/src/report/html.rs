//! One page that needs nothing but itself: tables, and plots drawn as SVG.

use std::fmt::Write;

use super::{Report, TaskReport, bars::bars, charts, heat_map::heat_map, svg::escape, table::Table};

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; font-family: ui-monospace, monospace; }
svg { max-width: 100%; height: auto; margin: .5rem 0; }
.maps { display: flex; flex-wrap: wrap; gap: 1.5rem; }
h2 { margin-top: 2.5rem; }
.about { color: #888; }";

impl Report {
    /// The report as a page.
    pub fn html(&self) -> String {
        let mut body = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            body,
            "<p>Seed {}. First questions stand {}. Intervals hold the true value with 95 % confidence (bootstrap over \
             items); memory is what the allocator holds after the prompt.</p>",
            self.seed,
            if self.question == "after" { "behind the prompt" } else { "at the end of the prompt" }
        );
        let unfinished = (!self.finished).then(|| "The run was stopped before its end.".to_owned());
        for note in self.notes.iter().chain(&unfinished) {
            let _ = writeln!(body, "<p><strong>Note:</strong> {}</p>", escape(note));
        }
        for task in &self.tasks {
            section(&mut body, task);
        }
        page(&format!("Kvik evaluation of {}", self.model), &body)
    }
}

/// A page of this title around `body`.
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{0}</title>\n<style>\n{STYLE}\n</style>\n<h1>{0}</h1>\n{body}</html>\n",
        escape(title)
    )
}

fn section(page: &mut String, task: &TaskReport) {
    let _ = writeln!(
        page,
        "<h2>{}</h2>\n<p class=\"about\">{}; {} items</p>",
        task.task,
        escape(&task.about),
        task.items
    );
    page.push_str(&bars(task));
    table(page, &task.scores());
    if let Some(grid) = &task.grid {
        page.push_str("<div class=\"maps\">\n");
        for (variant, row) in task.rows.iter().enumerate() {
            page.push_str(&heat_map(grid, variant, &row.kv));
        }
        page.push_str("</div>\n");
    }
    for (breakdown, numbers) in task.breakdowns.iter().zip(task.breakdown_tables()) {
        let _ = writeln!(page, "<h3>By {}</h3>", breakdown.by);
        page.push_str(&charts::breakdown(task, breakdown));
        table(page, &numbers);
    }
    if let Some(numbers) = task.divergence_table() {
        page.push_str("<h3>By position</h3>\n");
        page.push_str(&charts::positions(&task.divergence));
        table(page, &numbers);
    }
}

/// Writes `table` to the end of `page`.
pub(super) fn table(page: &mut String, table: &Table) {
    page.push_str("<table>\n");
    for (index, row) in table.rows().iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<{tag}>{}</{tag}>", escape(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}
