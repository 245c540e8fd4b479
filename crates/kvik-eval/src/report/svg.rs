//! Drawings as SVG text: a few shapes, sized in pixels, that follow the page's light or dark colours.

use std::fmt::Write;

/// Where a text is tied to its point.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing in the making.
pub(super) struct Drawing {
    width: f64,
    height: f64,
    body: String,
}

/// The colours of lines and bars, told apart also by most people who see fewer (M. Okabe, K. Ito, 2008).
const COLOURS: [&str; 8] =
    ["#555555", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b6d00"];

/// The colour of the `index`-th variant.
pub(super) fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

impl Drawing {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    // Writing to a String cannot fail.

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"currentColor\">{}</text>",
            escape(text)
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    pub(super) fn rectangle(&mut self, corner: (f64, f64), size: (f64, f64), colour: &str, title: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"><title>{}</title></rect>",
            corner.0,
            corner.1,
            size.0.max(0.0),
            size.1.max(0.0),
            escape(title)
        );
    }

    pub(super) fn path(&mut self, points: &[(f64, f64)], colour: &str, title: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"><title>{}</title></polyline>",
            points.join(" "),
            escape(title)
        );
    }

    pub(super) fn dot(&mut self, at: (f64, f64), colour: &str, title: &str) {
        let _ = writeln!(
            self.body,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}</title></circle>",
            at.0,
            at.1,
            escape(title)
        );
    }

    pub(super) fn finish(self, title: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {:.0} {:.0}\" width=\"{:.0}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<title>{}</title>\n{}</svg>\n",
            self.width,
            self.height,
            self.width,
            escape(title),
            self.body
        )
    }
}

/// Text as XML and HTML want it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Round numbers from about 0 to about `most`, at most six.
pub(super) fn ticks(most: f64) -> Vec<f64> {
    if !(most.is_finite() && most > 0.0) {
        return vec![0.0, 1.0];
    }
    let rough = most / 5.0;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * magnitude)
        .into_iter()
        .find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * magnitude);
    (0..).map(|index| f64::from(index) * step).take_while(|tick| *tick < most + step * 0.999).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(
            ticks(1.0).iter().map(|t| format!("{t:.1}")).collect::<Vec<_>>(),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        for most in [0.003, 0.7, 1.0, 17.3, 99.0, 12345.0] {
            let ticks = ticks(most);
            assert!(ticks.len() <= 7 && ticks.len() >= 3, "{most}: {ticks:?}");
            assert!(ticks[ticks.len() - 1] >= most * 0.999, "{most}: {ticks:?}");
        }
        assert_eq!(ticks(f64::NAN), [0.0, 1.0]);
    }

    #[test]
    fn text_cannot_leave_its_place() {
        let mut drawing = Drawing::new(10.0, 10.0);
        drawing.text(0.0, 0.0, Anchor::Start, "</text><script>");
        assert!(!drawing.finish("a & \"b\"").contains("<script>"));
    }
}
