//! Lines: one for each variant, over lengths, turns, positions or time.

use super::{
    Breakdown, Divergence, TaskReport,
    svg::{Anchor, Drawing, colour, ticks},
    table::short,
};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
/// A line of the legend.
const LEGEND: f64 = 18.0;
/// Positions are drawn as means over about this many points.
const POINTS: usize = 32;

/// One line: its name, and its values where there are any.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) values: Vec<Option<f64>>,
}

/// The scores of `breakdown` as lines.
pub(super) fn breakdown(task: &TaskReport, breakdown: &Breakdown) -> String {
    let lines: Vec<Line<'_>> = task
        .rows
        .iter()
        .zip(&breakdown.scores)
        .map(|(row, scores)| Line {
            name: &row.kv,
            values: scores.iter().map(|score| score.map(|score| score.value)).collect(),
        })
        .collect();
    let least_top = if task.more_is_better { 1.0 } else { 0.0 };
    chart(&format!("{} by {}", task.metric, breakdown.by), &breakdown.values, &lines, least_top)
}

/// The divergence by position, means over neighbours.
pub(super) fn positions(rows: &[Divergence]) -> String {
    let longest = rows.iter().map(|row| row.by_position.len()).max().unwrap_or(0);
    let step = longest.div_ceil(POINTS).max(1);
    let labels: Vec<String> = (0..longest).step_by(step).map(|at| (at + 1).to_string()).collect();
    let lines: Vec<Line<'_>> = rows
        .iter()
        .map(|row| Line {
            name: &row.kv,
            values: row
                .by_position
                .chunks(step)
                .map(|c| Some(c.iter().sum::<f64>() / c.len() as f64))
                .collect(),
        })
        .collect();
    chart("mean KL (nats) by position behind the prompt", &labels, &lines, 0.0)
}

/// `lines` over `labels`, on a scale from 0 to at least `least_top`.
pub(super) fn chart(title: &str, labels: &[String], lines: &[Line<'_>], least_top: f64) -> String {
    let values = lines.iter().flat_map(|line| &line.values).flatten();
    let ticks = ticks(values.copied().filter(|value| value.is_finite()).fold(least_top, f64::max));
    let end = ticks.last().copied().unwrap_or(1.0);
    let bottom = TOP + HEIGHT;
    let x = |at: usize| LEFT + (WIDTH - LEFT - RIGHT) * (at as f64 + 0.5) / labels.len().max(1) as f64;
    let y = |value: f64| bottom - HEIGHT * (value / end).clamp(0.0, 1.0);
    let mut drawing = Drawing::new(WIDTH, bottom + 44.0 + LEGEND * lines.len() as f64);
    for &tick in &ticks {
        drawing.line((LEFT, y(tick)), (WIDTH - RIGHT, y(tick)), "#8884", 1.0);
        drawing.text(LEFT - 6.0, y(tick) + 4.0, Anchor::End, &short(tick));
    }
    // No more labels than fit side by side.
    let every = labels.len().div_ceil(10).max(1);
    for (at, label) in labels.iter().enumerate().step_by(every) {
        drawing.text(x(at), bottom + 16.0, Anchor::Middle, label);
    }
    for (index, line) in lines.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            line.values.iter().enumerate().filter_map(|(at, value)| Some((x(at), y((*value)?)))).collect();
        drawing.path(&points, colour(index), line.name);
        for (&point, value) in points.iter().zip(line.values.iter().flatten()) {
            drawing.dot(point, colour(index), &format!("{}: {}", line.name, short(*value)));
        }
        let at = bottom + 40.0 + LEGEND * index as f64;
        drawing.rectangle((LEFT, at - 9.0), (14.0, 10.0), colour(index), line.name);
        drawing.text(LEFT + 20.0, at, Anchor::Start, line.name);
    }
    drawing.finish(title)
}
