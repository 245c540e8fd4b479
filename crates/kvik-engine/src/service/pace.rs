//! How many tokens of prompts a step may read without holding up those who decode.
//!
//! A step that reads a chunk of a prompt takes many times as long as one that only decodes, and everybody whose answer is on its
//! way sees the difference as a pause. So steps with prompts take as long as [`MOST_SLOWDOWN`] steps in which the usual number of
//! sequences decode, whoever is there at the moment: a server that has much to do is then hardly ever without a prompt to read, and
//! the pauses that clients see are even. But small chunks make worse use of a step, so the chunks grow with the number of those who
//! wait for their turn.
//!
//! What a step would take is learned: its time is close to linear in its tokens, `each step + each decoded token + each token read +
//! (both at once)`, and the four numbers are the least-squares fit of the latest steps.

use super::status::{Batch, PaceStatus};

/// How much longer a step with prompts may take than one without. Clients see a 99th percentile of the time between two tokens
/// below three medians then.
const MOST_SLOWDOWN: f64 = 2.5;
/// Prompts get so many tokens at least: fewer cost nearly as much.
const LEAST_TOKENS: usize = 16;
/// So many more for each request that waits.
const TOKENS_A_WAITING: usize = 2;
/// A chunk of so many tokens makes good use of a step; larger ones would only make the step longer.
const ENOUGH_TOKENS: usize = 96;
/// What an observation weighs after each further one: the fit is of about the last five hundred.
const FORGET: f64 = 0.998;
/// The same for the usual number of sequences: about the last thousand steps.
const FORGET_USUAL: f64 = 0.999;
/// How strongly the fit stays where it was when the latest steps do not tell the numbers apart: as one step of a tenth of a second.
const RIDGE: f64 = 100.0;
/// No step is shorter, in seconds.
const SHORTEST_STEP: f64 = 1e-6;
/// Steps before the fit is used.
const LEAST_STEPS: u64 = 8;

/// Numbers of a fit.
const TERMS: usize = 4;

/// The cost of steps.
#[derive(Default)]
pub(super) struct Pace {
    /// Sums of products of the terms with each other, and with the seconds.
    products: [[f64; TERMS]; TERMS],
    targets: [f64; TERMS],
    fit: [f64; TERMS],
    steps: u64,
    /// Tokens decoded, and the same with each step's weighed by their number.
    decoded: f64,
    squares: f64,
}

/// What steps cost, in seconds; nothing is negative.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    step: f64,
    decoded: f64,
    read: f64,
    /// A step that does both has it besides.
    both: f64,
}

impl Pace {
    /// A step took so long.
    pub(super) fn record(&mut self, batch: Batch, seconds: f64) {
        let (decoded, read) =
            ((batch.decode_tokens + batch.replay_tokens) as f64, batch.prefill_tokens as f64);
        let both = if decoded > 0.0 && read > 0.0 { 1.0 } else { 0.0 };
        // Relative errors count, or the longest steps alone would say what all cost.
        let terms = [1.0, decoded, read, both].map(|term| term / seconds.max(SHORTEST_STEP));
        for row in 0..TERMS {
            for column in 0..TERMS {
                self.products[row][column] = FORGET * self.products[row][column] + terms[row] * terms[column];
            }
            self.targets[row] = FORGET * self.targets[row] + terms[row];
        }
        self.fit = self.solve();
        self.steps += 1;
        if decoded > 0.0 {
            self.decoded = FORGET_USUAL * self.decoded + decoded;
            self.squares = FORGET_USUAL * self.squares + decoded * decoded;
        }
    }

    /// Tokens of prompts that a step in which `decoding` sequences decode may read, of `most`, while `waiting` requests wait.
    pub(super) fn prefill_tokens(&self, decoding: usize, waiting: usize, most: usize) -> usize {
        if decoding == 0 || self.steps < LEAST_STEPS {
            return most;
        }
        let cost = self.cost();
        let without = |sequences: f64| cost.step + cost.decoded * sequences;
        let usual = self.usual().unwrap_or(decoding as f64);
        let allowed = (MOST_SLOWDOWN * without(usual) - without(decoding as f64) - cost.both) / cost.read;
        if allowed.is_nan() || allowed == f64::INFINITY {
            return most;
        }
        let least = (LEAST_TOKENS + TOKENS_A_WAITING * waiting).min(ENOUGH_TOKENS);
        (allowed as usize).clamp(least, ENOUGH_TOKENS).min(most)
    }

    /// What is known, for those who look on.
    pub(super) fn status(&self) -> PaceStatus {
        let Cost { step, decoded, read, both } = self.cost();
        PaceStatus {
            step_seconds: step,
            decoded_seconds: decoded,
            read_seconds: read,
            both_seconds: both,
            usual_sequences: self.usual().unwrap_or(0.0),
        }
    }

    /// Sequences that decode together. Whose number the mean is of is a token: half of the tokens have about so many beside them.
    fn usual(&self) -> Option<f64> {
        (self.decoded > 0.0).then(|| self.squares / self.decoded)
    }

    fn cost(&self) -> Cost {
        let [step, decoded, read, both] = self.fit.map(|seconds| seconds.max(0.0));
        Cost { step, decoded, read, both }
    }

    fn solve(&self) -> [f64; TERMS] {
        let mut matrix = self.products;
        let mut solution = self.targets;
        for (index, row) in matrix.iter_mut().enumerate() {
            row[index] += RIDGE;
            solution[index] += RIDGE * self.fit[index];
        }
        // Gauss's elimination; the matrix is positive definite, so no pivot is zero.
        for pivot in 0..TERMS {
            for row in pivot + 1..TERMS {
                let factor = matrix[row][pivot] / matrix[pivot][pivot];
                for column in pivot..TERMS {
                    matrix[row][column] -= factor * matrix[pivot][column];
                }
                solution[row] -= factor * solution[pivot];
            }
        }
        for row in (0..TERMS).rev() {
            let known: f64 = (row + 1..TERMS).map(|column| matrix[row][column] * solution[column]).sum();
            solution[row] = (solution[row] - known) / matrix[row][row];
        }
        solution
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(decode_tokens: usize, prefill_tokens: usize) -> Batch {
        Batch { sequences: decode_tokens + 1, decode_tokens, prefill_tokens, replay_tokens: 0 }
    }

    /// 5 ms a step, 0.5 ms for each token decoded, 0.4 ms for each read, 3 ms for doing both.
    fn seconds(batch: Batch) -> f64 {
        let both = if batch.decode_tokens > 0 && batch.prefill_tokens > 0 { 0.003 } else { 0.0 };
        0.005 + 0.0005 * batch.decode_tokens as f64 + 0.0004 * batch.prefill_tokens as f64 + both
    }

    fn learned(batches: impl IntoIterator<Item = Batch>) -> Pace {
        let mut pace = Pace::default();
        batches.into_iter().for_each(|batch| pace.record(batch, seconds(batch)));
        pace
    }

    /// Up to 16 sequences, every third step without prompts.
    fn mixed(steps: usize) -> impl Iterator<Item = Batch> {
        (0..steps).map(|i| batch((i * 5) % 17, if i % 3 == 0 { 0 } else { (i * 37) % 300 }))
    }

    #[test]
    fn what_steps_cost_is_found() {
        let cost = learned(mixed(400)).cost();
        let expected = [(cost.step, 0.005), (cost.decoded, 0.0005), (cost.read, 0.0004), (cost.both, 0.003)];
        for (got, expected) in expected {
            assert!((got / expected - 1.0).abs() < 0.05, "{cost:?}");
        }
    }

    #[test]
    fn steps_with_prompts_take_the_same_time_whoever_decodes() {
        let pace = learned(mixed(400));
        let usual = pace.usual().unwrap();
        assert!((10.0..12.0).contains(&usual), "{usual}");
        let allowed = MOST_SLOWDOWN * (0.005 + 0.0005 * usual);
        for decoding in [1, 5, 11, 20] {
            let read = pace.prefill_tokens(decoding, 0, 512);
            let time = seconds(batch(decoding, read));
            assert!((time / allowed - 1.0).abs() < 0.05, "{decoding} decode, {read} are read in {time} s");
        }
        assert_eq!(pace.prefill_tokens(1, 0, 30), 30);
        assert_eq!(pace.prefill_tokens(0, 0, 512), 512);
    }

    #[test]
    fn chunks_grow_with_those_who_wait() {
        let pace = learned(mixed(400));
        let read = |waiting| pace.prefill_tokens(200, waiting, 512);
        assert_eq!([read(0), read(1), read(10), read(100)], [16, 18, 36, 96]);
        assert_eq!(pace.prefill_tokens(200, 100, 50), 50);
    }

    #[test]
    fn what_cannot_be_told_apart_harms_nobody() {
        // Nothing but whole chunks: all that is known is what one takes.
        let reads = learned((0..60).map(|_| batch(0, 512)));
        assert!((LEAST_TOKENS..=512).contains(&reads.prefill_tokens(4, 0, 512)));
        // Nothing but decoding: prompts cost nothing that is known of.
        let decodes = learned((0..60).map(|_| batch(3, 0)));
        assert_eq!(decodes.prefill_tokens(3, 0, 512), 512);
        assert_eq!(Pace::default().prefill_tokens(3, 0, 512), 512);
        // What was known once stays known when nothing changes any more.
        let steady = learned(mixed(400).chain((0..5000).map(|_| batch(8, 0)))).cost();
        assert!(
            (steady.read / 0.0004 - 1.0).abs() < 0.05 && (steady.step / 0.005 - 1.0).abs() < 0.1,
            "{steady:?}"
        );
    }

    #[test]
    fn the_past_is_forgotten() {
        let mut pace = learned(mixed(400));
        mixed(4000).for_each(|batch| pace.record(batch, 3.0 * seconds(batch)));
        assert!((pace.cost().read / 0.0012 - 1.0).abs() < 0.05);
    }
}
