//! What a load measured: a table for a terminal, and a page with plots over time.

use std::fmt::Write;

use super::{
    charts::{Line, chart},
    html::{page, table},
    svg::escape,
    table::{Table, short},
};
use crate::{
    client::Sample,
    load::{LoadReport, Milliseconds, Moment},
};

impl LoadReport {
    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = format!("{} at {}: {}\n", self.model, self.target, self.load);
        for table in [self.figures(), self.latencies()] {
            text.push('\n');
            text.push_str(&table.text("  "));
        }
        for failure in &self.failures {
            let said = failure.messages.iter().map(|message| format!("\n    {message}")).collect::<String>();
            let _ = write!(text, "\n  {} {}{said}", failure.requests, failure.kind); // to a String: cannot fail
        }
        if !self.failures.is_empty() {
            text.push('\n');
        }
        for note in self.remarks() {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    /// The report as a page that needs nothing but itself.
    pub fn html(&self) -> String {
        let mut body =
            format!("<p>{}</p>\n", escape(&format!("{} at {}: {}", self.model, self.target, self.load)));
        for note in self.remarks() {
            let _ = writeln!(body, "<p><strong>Note:</strong> {}</p>", escape(&note));
        }
        table(&mut body, &self.figures());
        table(&mut body, &self.latencies());
        if !self.failures.is_empty() {
            body.push_str("<h2>Failures</h2>\n");
            let mut failures = Table::new(["how", "requests", "what was said"]);
            for failure in &self.failures {
                let said = failure.messages.join("; ");
                failures.push(vec![failure.kind.to_owned(), failure.requests.to_string(), said]);
            }
            table(&mut body, &failures);
        }
        body.push_str("<h2>Over time, in seconds</h2>\n");
        self.plots(&mut body);
        page(&format!("Load on {}", self.model), &body)
    }

    fn remarks(&self) -> Vec<String> {
        let stopped = (!self.finished).then(|| "the load was stopped before its end".to_owned());
        self.notes.iter().cloned().chain(stopped).collect()
    }

    /// Counts and rates.
    fn figures(&self) -> Table {
        let mut figures = Table::new(["load", "", ""]);
        let mut row = |what: &str, figure: String, per_second: String| {
            figures.push(vec![what.to_owned(), figure, per_second]);
        };
        let per_second = |rate: f64| format!("{}/s", short(rate));
        let rates = &self.throughput;
        row("requests", self.requests.to_string(), String::new());
        row("complete", self.complete.to_string(), per_second(rates.requests_per_second));
        row("failed", self.failed().to_string(), String::new());
        row("seconds", short(self.seconds), String::new());
        row("prompt tokens", self.tokens.prompt.to_string(), per_second(rates.prompt_tokens_per_second));
        row(
            "answer tokens",
            self.tokens.completion.to_string(),
            per_second(rates.completion_tokens_per_second),
        );
        let total = self.tokens.prompt + self.tokens.completion;
        row("all tokens", total.to_string(), per_second(rates.total_tokens_per_second));
        if let Some(share) = self.cached_share() {
            row("prompt from cache", self.tokens.cached.to_string(), format!("{:.1} %", 100.0 * share));
        }
        if self.levels.any() {
            let levels = &self.levels;
            row(
                "levels kept",
                format!("{:.1} %", 100.0 * levels.kept),
                per_second(levels.goodput_requests_per_second),
            );
            row("answer tokens within", String::new(), per_second(levels.goodput_tokens_per_second));
        }
        if let Some(server) = &self.server {
            let counts = [
                ("preemptions", server.preemptions),
                ("most in a batch", server.most_running),
                ("most waiting", server.most_waiting),
            ];
            for (what, count) in counts.into_iter().filter_map(|(what, count)| Some((what, count?))) {
                row(what, format!("{count:.0}"), String::new());
            }
            if let Some(share) = server.most_kv_share {
                row("most KV memory in use", format!("{:.1} %", 100.0 * share), String::new());
            }
        }
        figures
    }

    /// Percentiles, with their limits.
    fn latencies(&self) -> Table {
        let mut latencies = Table::new(["milliseconds", "mean", "p50", "p90", "p95", "p99", "max", "limit"]);
        let rows = [
            ("to the first token", self.ttft, self.levels.ttft_ms),
            ("per token behind it", self.tpot, self.levels.tpot_ms),
            ("between pieces", self.itl, None),
            ("to the last token", self.latency, self.levels.latency_ms),
            ("client late by", self.lateness, None),
        ];
        for (what, found, limit) in rows {
            let Some(Milliseconds { mean, p50, p90, p95, p99, max }) = found else { continue };
            let mut cells = vec![what.to_owned()];
            cells.extend([mean, p50, p90, p95, p99, max].map(short));
            cells.extend(limit.map(short));
            latencies.push(cells);
        }
        latencies
    }

    fn plots(&self, body: &mut String) {
        type Of = fn(&Moment) -> Option<f64>;
        let labels: Vec<String> = self.moments.iter().map(|moment| short(moment.at_s)).collect();
        let mut plot = |title: &str, lines: &[(&'static str, Of)]| {
            let lines: Vec<Line<'_>> = lines
                .iter()
                .map(|(name, of)| Line { name, values: self.moments.iter().map(of).collect() })
                .filter(|line| line.values.iter().any(Option::is_some))
                .collect();
            if !lines.is_empty() {
                let _ = writeln!(body, "<h3>{}</h3>", escape(title));
                body.push_str(&chart(title, &labels, &lines, 0.0));
            }
        };
        plot(
            "Requests that are due, per second",
            &[("requests per second", |m| Some(m.arrivals_per_second))],
        );
        plot("Requests under way", &[("requests", |m| Some(m.under_way))]);
        plot(
            "Answers, tokens per second",
            &[("tokens per second", |m| Some(m.completion_tokens_per_second))],
        );
        plot(
            "To the first token, ms",
            &[("median", |m| m.ttft_p50_ms), ("99th percentile", |m| m.ttft_p99_ms)],
        );
        plot("Between pieces, ms", &[("median", |m| m.itl_p50_ms), ("99th percentile", |m| m.itl_p99_ms)]);
        plot("Prompt tokens from the cache, share", &[("share", |m| m.cached_share)]);
        if self.failed() > 0 {
            plot("Failures", &[("requests", |m| Some(m.failed as f64))]);
        }
        self.server_plots(body);
    }

    /// The server's own counters, at the times at which it told them.
    fn server_plots(&self, body: &mut String) {
        type Of = fn(&Sample) -> Option<f64>;
        let samples = &self.samples;
        let labels: Vec<String> = samples.iter().map(|sample| short(sample.at_s)).collect();
        let mut plot = |title: &str, lines: &[(&'static str, Of)]| {
            let lines: Vec<Line<'_>> = lines
                .iter()
                .map(|(name, of)| Line { name, values: samples.iter().map(of).collect() })
                .filter(|line| line.values.iter().any(Option::is_some))
                .collect();
            if !lines.is_empty() {
                let _ = writeln!(body, "<h3>{}</h3>", escape(title));
                body.push_str(&chart(title, &labels, &lines, 0.0));
            }
        };
        plot("The server's requests", &[("in the batch", |s| s.running), ("waiting", |s| s.waiting)]);
        plot("The server's KV memory in use, share", &[("share", |s| s.kv_share)]);
        plot(
            "The server's KV memory, MiB",
            &[("MiB", |s| s.kv_bytes.map(|bytes| bytes / f64::from(1 << 20)))],
        );
        plot("Preemptions since the server began", &[("preemptions", |s| s.preemptions)]);
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        client::{Exchange, Outcome, Sample},
        load::{Levels, LoadReport},
    };

    fn report() -> LoadReport {
        let exchange = |index: u32| Exchange {
            first_s: Some(f64::from(index) + 0.25),
            last_s: Some(f64::from(index) + 0.75),
            end_s: f64::from(index) + 0.75,
            gaps_s: vec![0.25; 2],
            prompt_tokens: 10,
            completion_tokens: 3,
            outcome: if index == 7 {
                Outcome::Refused { status: 400, message: "<b>too long</b>".into() }
            } else {
                Outcome::Complete
            },
            ..Exchange::due(f64::from(index), f64::from(index), 3)
        };
        let exchanges: Vec<Exchange> = (0..20).map(exchange).collect();
        let samples =
            vec![Sample { at_s: 1.0, running: Some(3.0), preemptions: Some(1.0), ..Sample::default() }];
        let levels = Levels { ttft_ms: Some(300.0), ..Levels::default() };
        LoadReport::new("http://x", "tiny", "a test", &exchanges, samples, levels)
    }

    #[test]
    fn the_table_says_what_was_measured() {
        let text = report().text();
        assert!(
            text.starts_with("tiny at http://x: a test\n") && text.contains("1 refused\n    <b>too long</b>"),
            "{text}"
        );
        let row =
            |what: &str| text.lines().find_map(|line| line.trim().strip_prefix(what)).map(str::trim).unwrap();
        assert!(row("complete").starts_with("19 ") && row("levels kept").starts_with("95.0 %"), "{text}");
        let line = text.lines().find(|line| line.contains("to the first token")).unwrap();
        assert_eq!(line.split_whitespace().filter(|word| *word == "250").count(), 6, "{line}");
    }

    #[test]
    fn the_page_has_its_plots_and_no_foreign_markup() {
        let page = report().html();
        assert!(page.matches("<svg").count() >= 8 && page.ends_with("</html>\n"));
        assert!(!page.contains("<b>too long") && page.contains("&lt;b&gt;too long"));
        assert!(page.contains("The server&#x27;s requests") || page.contains("The server's requests"));
    }
}
