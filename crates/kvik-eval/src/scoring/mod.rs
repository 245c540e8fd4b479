//! How an answer is marked, as the benchmarks' own programs do it.
//!
//! A [`Scorer`] gives an answer a mark from 0 to 1. Each is written after the published function that its doc comment
//! names, and held to it by a table of hand-made cases; differences would make scores incomparable.

mod normalise;
mod numbers;

pub use normalise::{normalise, token_f1};
pub use numbers::{final_number, first_integer, first_number};

/// How an answer is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scorer {
    /// 1 if the answer contains the first reference, case and all: SCBench's `get_score_one_kv_retrieval`.
    Contains,
    /// The share of references that the answer contains, whatever the case: `string_match_all` of RULER and SCBench, not
    /// rounded.
    ContainsAll,
    /// 1 if the answer contains any reference, whatever the case: SCBench's `get_score_one_longdialogue_qa_eng`, which
    /// marks many-shot learning.
    ContainsAny,
    /// 1 if the first run of digits in the answer is the first reference: SCBench's `get_score_one_passkey`.
    FirstInteger,
    /// 1 if the first number of the answer, cut to a whole one, is the first reference: SCBench's
    /// `get_score_one_math_find`.
    FirstNumber,
    /// The best F1 between the words of the answer and of a reference, both normalised: SCBench's `qa_f1_score`.
    TokenF1,
    /// 1 if the last number of the answer equals the first reference, whose number follows `####`: GSM8K, with
    /// the "flexible" extraction of the LM evaluation harness.
    FinalNumber,
}

impl Scorer {
    /// The mark of `answer`, from 0 to 1. Without a reference it is 0.
    pub fn score(self, answer: &str, references: &[String]) -> f64 {
        let Some(first) = references.first() else { return 0.0 };
        let contains = |reference: &String| answer.to_lowercase().contains(&reference.to_lowercase());
        match self {
            Self::Contains => mark(answer.contains(first)),
            Self::ContainsAll => {
                references.iter().filter(|reference| contains(reference)).count() as f64
                    / references.len() as f64
            }
            Self::ContainsAny => mark(references.iter().any(contains)),
            Self::FirstInteger => mark(first_integer(answer) == first),
            Self::FirstNumber => {
                let wanted = first.parse().ok();
                mark(wanted.is_some() && first_number(answer).map(f64::trunc) == wanted)
            }
            Self::TokenF1 => {
                references.iter().map(|reference| token_f1(answer, reference)).fold(0.0, f64::max)
            }
            Self::FinalNumber => {
                let wanted = final_number(first);
                mark(wanted.is_some() && final_number(answer) == wanted)
            }
        }
    }
}

fn mark(right: bool) -> f64 {
    if right { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(scorer: Scorer, cases: &[(&str, &[&str], f64)]) {
        for (answer, references, expected) in cases {
            let references: Vec<String> = references.iter().map(|&r| r.to_owned()).collect();
            let got = scorer.score(answer, &references);
            assert!(
                (got - expected).abs() < 1e-12,
                "{answer:?} against {references:?}: {got}, not {expected}"
            );
        }
    }

    #[test]
    fn containment_looks_at_case_only_where_the_official_function_does() {
        check(
            Scorer::Contains,
            &[
                ("The value is \"a1-B2\".", &["a1-B2"], 1.0),
                ("the value is a1-b2", &["a1-B2"], 0.0),
                ("", &["x"], 0.0),
                ("x", &[], 0.0),
            ],
        );
        check(
            Scorer::ContainsAll,
            &[
                ("ABC and DEF", &["abc", "def", "ghi", "jkl"], 0.5),
                ("abcdef", &["ABC", "DEF"], 1.0),
                ("none", &["abc"], 0.0),
            ],
        );
        check(
            Scorer::ContainsAny,
            &[("It is Sport", &["SPORT"], 1.0), ("It is news", &["sport", "art"], 0.0)],
        );
    }

    #[test]
    fn numbers_are_found_as_the_official_functions_find_them() {
        check(
            Scorer::FirstInteger,
            &[
                ("The pass key is 71432. Remember 5.", &["71432"], 1.0),
                ("71,432", &["71432"], 0.0), // Split at every character that is no digit.
                ("-71432", &["71432"], 1.0),
                ("no digits", &["71432"], 0.0),
            ],
        );
        check(
            Scorer::FirstNumber,
            &[
                ("The largest is 94.", &["94"], 1.0),
                ("It is 94.75", &["94"], 1.0),
                ("94th of 95", &["94"], 1.0),
                ("-3", &["3"], 1.0), // The pattern has no sign.
                ("none", &["3"], 0.0),
            ],
        );
        check(
            Scorer::FinalNumber,
            &[
                ("16 - 3 = 13 and so 13 * 2 = $26.00", &["so\n#### 26"], 1.0),
                ("It is 1,234.", &["#### 1234"], 1.0),
                ("#### -5", &["#### -5"], 1.0),
                ("It is 25", &["#### 26"], 0.0),
                ("", &["#### 26"], 0.0),
            ],
        );
    }

    #[test]
    fn f1_takes_the_best_reference() {
        check(
            Scorer::TokenF1,
            &[
                ("The cat, a dog!", &["cat dog"], 1.0),
                ("cat", &["cat dog", "zebra"], 2.0 / 3.0),
                ("cat cat dog", &["cat dog"], 0.8),
                ("bird", &["cat"], 0.0),
                ("", &["cat"], 0.0),
            ],
        );
    }
}
