//! Needles over lengths and depths as coloured squares: red is never found, green always.

use super::{
    Grid,
    svg::{Anchor, Drawing},
};

const CELL: (f64, f64) = (64.0, 26.0);
const LEFT: f64 = 52.0;
const TOP: f64 = 26.0;

/// The drawing of the variant at `variant`, named `name`.
pub(super) fn heat_map(grid: &Grid, variant: usize, name: &str) -> String {
    let bottom = TOP + CELL.1 * grid.depths.len() as f64;
    let width =
        (LEFT + CELL.0 * grid.lengths.len() as f64 + 8.0).max(name.chars().count() as f64 * 7.0 + 8.0);
    let mut drawing = Drawing::new(width, bottom + 38.0);
    drawing.text(0.0, 14.0, Anchor::Start, name);
    let cells = grid.scores.get(variant).map_or(&[][..], Vec::as_slice);
    for (row, (depth, scores)) in grid.depths.iter().zip(cells).enumerate() {
        let y = TOP + CELL.1 * row as f64;
        drawing.text(LEFT - 6.0, y + CELL.1 / 2.0 + 4.0, Anchor::End, &format!("{:.0} %", 100.0 * depth));
        for (column, (length, score)) in grid.lengths.iter().zip(scores).enumerate() {
            let corner = (LEFT + CELL.0 * column as f64, y);
            let shown = score.map_or_else(|| "–".to_owned(), |score| format!("{score:.2}"));
            let title = format!("{length} tokens, depth {:.0} %: {shown}", 100.0 * depth);
            let size = (CELL.0 - 1.0, CELL.1 - 1.0);
            drawing.rectangle(corner, size, &score.map_or_else(|| "#8883".to_owned(), fill), &title);
            drawing.text(corner.0 + CELL.0 / 2.0, y + CELL.1 / 2.0 + 4.0, Anchor::Middle, &shown);
        }
    }
    for (column, length) in grid.lengths.iter().enumerate() {
        drawing.text(
            LEFT + CELL.0 * (column as f64 + 0.5),
            bottom + 14.0,
            Anchor::Middle,
            &length.to_string(),
        );
    }
    drawing.text(LEFT, bottom + 31.0, Anchor::Start, "tokens of the prompt");
    drawing.finish(&format!("{name}: share of needles found, by length and depth"))
}

/// From red (0) over yellow to green (1), pale enough for black or white text.
fn fill(score: f64) -> String {
    format!("hsl({:.0} 70% 50% / 0.55)", 120.0 * score.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_drawn_in_its_colour() {
        let grid = Grid {
            lengths: vec![1024, 2048],
            depths: vec![0.0, 1.0],
            scores: vec![vec![vec![Some(1.0), Some(0.5)], vec![Some(0.0), None]]],
        };
        let svg = heat_map(&grid, 0, "full");
        assert_eq!(svg.matches("<rect").count(), 4);
        for part in ["hsl(120 ", "hsl(60 ", "hsl(0 ", "#8883", "2048 tokens, depth 0 %: 0.50", "100 %"] {
            assert!(svg.contains(part), "{part}");
        }
    }
}
