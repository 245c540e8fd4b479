//! How many tokens of prompts a step may read without holding up those who decode.
//!
//! A step that reads a whole chunk of a prompt takes many times as long as one that only decodes, and everybody whose answer is
//! on its way sees the difference as a pause. So while somebody decodes, a step may take [`MOST_SLOWDOWN`] times as long as it
//! would without prompts, and no more. What it would take is learned: the time of a step is close to linear in its tokens,
//! `a + b × decoded + c × read`, and the three numbers are the least-squares fit of the latest steps.

use super::status::Batch;

/// How much longer a step with prompts may take than one without. Clients see a 99th percentile of the time between two tokens
/// below three medians then.
const MOST_SLOWDOWN: f64 = 2.5;
/// What an observation weighs after each further one: the fit is of about the last fifty.
const FORGET: f64 = 0.98;
/// Pulls the fit towards zero where the latest steps do not tell the three numbers apart; in steps.
const RIDGE: f64 = 1e-3;
/// Prompts get so many tokens at least: fewer cost nearly as much.
const LEAST_TOKENS: usize = 16;
/// Steps before the fit is used.
const LEAST_STEPS: u64 = 8;

/// The cost of steps.
#[derive(Default)]
pub(super) struct Pace {
    /// Sums of products of (1, decoded, read) with each other, and with the seconds.
    products: [[f64; 3]; 3],
    targets: [f64; 3],
    steps: u64,
}

impl Pace {
    /// A step took so long.
    pub(super) fn record(&mut self, batch: Batch, seconds: f64) {
        let x = [1.0, (batch.decode_tokens + batch.replay_tokens) as f64, batch.prefill_tokens as f64];
        for row in 0..3 {
            for column in 0..3 {
                self.products[row][column] = FORGET * self.products[row][column] + x[row] * x[column];
            }
            self.targets[row] = FORGET * self.targets[row] + x[row] * seconds;
        }
        self.steps += 1;
    }

    /// Tokens of prompts that a step in which `decoding` sequences decode may read, of `most`.
    pub(super) fn prefill_tokens(&self, decoding: usize, most: usize) -> usize {
        if decoding == 0 || self.steps < LEAST_STEPS {
            return most;
        }
        let [each_step, each_decoded, each_read] = self.fit();
        let without = each_step + each_decoded * decoding as f64;
        let allowed = (MOST_SLOWDOWN - 1.0) * without / each_read;
        if !allowed.is_finite() {
            return most;
        }
        (allowed as usize).max(LEAST_TOKENS).min(most)
    }

    /// Seconds of each step, of each token decoded and of each token read; none is negative.
    fn fit(&self) -> [f64; 3] {
        let mut matrix = self.products;
        for (index, row) in matrix.iter_mut().enumerate() {
            row[index] += RIDGE;
        }
        let mut solution = self.targets;
        // Gauss's elimination; the matrix is positive definite, so no pivot is zero.
        for pivot in 0..3 {
            for row in pivot + 1..3 {
                let factor = matrix[row][pivot] / matrix[pivot][pivot];
                for column in pivot..3 {
                    matrix[row][column] -= factor * matrix[pivot][column];
                }
                solution[row] -= factor * solution[pivot];
            }
        }
        for row in (0..3).rev() {
            let known: f64 = (row + 1..3).map(|column| matrix[row][column] * solution[column]).sum();
            solution[row] = (solution[row] - known) / matrix[row][row];
        }
        solution.map(|seconds| seconds.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(decode_tokens: usize, prefill_tokens: usize) -> Batch {
        Batch { sequences: decode_tokens + 1, decode_tokens, prefill_tokens, replay_tokens: 0 }
    }

    /// 10 ms a step, 0.5 ms for each token decoded, 0.4 ms for each read.
    fn seconds(batch: Batch) -> f64 {
        0.010 + 0.0005 * batch.decode_tokens as f64 + 0.0004 * batch.prefill_tokens as f64
    }

    fn learned(batches: impl IntoIterator<Item = Batch>) -> Pace {
        let mut pace = Pace::default();
        batches.into_iter().for_each(|batch| pace.record(batch, seconds(batch)));
        pace
    }

    #[test]
    fn what_steps_cost_is_found() {
        let pace = learned((0..60).map(|i| batch(i % 7, (i * 37) % 300)));
        for (got, expected) in pace.fit().into_iter().zip([0.010, 0.0005, 0.0004]) {
            assert!((got / expected - 1.0).abs() < 0.02, "{got} {expected}");
        }
        // Eight decode in 14 ms, so prompts may take 21 ms.
        assert!(pace.prefill_tokens(8, 512).abs_diff(52) <= 2, "{}", pace.prefill_tokens(8, 512));
        assert_eq!(pace.prefill_tokens(8, 30), 30);
        assert_eq!(pace.prefill_tokens(0, 512), 512);
    }

    #[test]
    fn what_cannot_be_told_apart_harms_nobody() {
        // Nothing but whole chunks: all that is known is what one takes.
        let reads = learned((0..60).map(|_| batch(0, 512)));
        assert!((LEAST_TOKENS..=512).contains(&reads.prefill_tokens(4, 512)));
        // Nothing but decoding: prompts cost nothing that is known of.
        let decodes = learned((0..60).map(|_| batch(3, 0)));
        assert_eq!(decodes.prefill_tokens(3, 512), 512);
        assert_eq!(Pace::default().prefill_tokens(3, 512), 512);
    }

    #[test]
    fn the_past_is_forgotten() {
        let mut pace = learned((0..60).map(|i| batch(i % 7, (i * 37) % 300)));
        let slow = (0..400).map(|i| batch(i % 7, (i * 37) % 300));
        slow.for_each(|batch| pace.record(batch, 3.0 * seconds(batch)));
        assert!((pace.fit()[2] / 0.0012 - 1.0).abs() < 0.05);
    }
}
