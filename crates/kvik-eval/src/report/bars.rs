//! Scores of all variants side by side, with their intervals, and chance as a line.

use super::{
    TaskReport,
    svg::{Anchor, Drawing, colour, ticks},
    table::short,
};

const ROW: f64 = 26.0;
const TOP: f64 = 14.0;
const RIGHT: f64 = 70.0;
const WIDTH: f64 = 760.0;
/// A character of a label, in pixels.
const CHARACTER: f64 = 6.6;

/// The drawing of `task`.
pub(super) fn bars(task: &TaskReport) -> String {
    let longest = task.rows.iter().map(|row| row.kv.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * CHARACTER + 16.0).clamp(60.0, WIDTH / 2.0);
    let most = task.rows.iter().map(|row| row.score.high).fold(0.0, f64::max);
    let ticks = ticks(if task.more_is_better { most.max(1.0) } else { most });
    let end = ticks.last().copied().unwrap_or(1.0);
    let x = |value: f64| left + (WIDTH - left - RIGHT) * (value / end).clamp(0.0, 1.0);
    let bottom = TOP + ROW * task.rows.len() as f64;
    let mut drawing = Drawing::new(WIDTH, bottom + 26.0);
    for &tick in &ticks {
        drawing.line((x(tick), TOP), (x(tick), bottom), "#8884", 1.0);
        drawing.text(x(tick), bottom + 16.0, Anchor::Middle, &short(tick));
    }
    for (index, row) in task.rows.iter().enumerate() {
        let top = TOP + ROW * index as f64;
        let middle = top + ROW / 2.0;
        let said = format!(
            "{}: {} [{}, {}]",
            row.kv,
            short(row.score.value),
            short(row.score.low),
            short(row.score.high)
        );
        drawing.text(left - 8.0, middle + 4.0, Anchor::End, &row.kv);
        drawing.rectangle((left, top + 5.0), (x(row.score.value) - left, ROW - 10.0), colour(index), &said);
        drawing.line((x(row.score.low), middle), (x(row.score.high), middle), "currentColor", 1.5);
        for end in [row.score.low, row.score.high] {
            drawing.line((x(end), middle - 4.0), (x(end), middle + 4.0), "currentColor", 1.5);
        }
        drawing.text(
            x(row.score.high.max(row.score.value)) + 6.0,
            middle + 4.0,
            Anchor::Start,
            &short(row.score.value),
        );
    }
    if let Some(chance) = task.chance {
        drawing.line((x(chance.value), TOP), (x(chance.value), bottom), "#c00", 1.0);
        drawing.text(x(chance.value) + 3.0, TOP - 3.0, Anchor::Start, "chance");
    }
    drawing.finish(&format!("{} of {}", task.metric, task.task))
}
