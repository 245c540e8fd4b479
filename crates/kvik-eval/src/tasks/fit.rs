//! Filling a budget of tokens with as many entries of a list as fit.

use crate::EvalError;

/// The most entries, up to `limit`, that `build` writes in at most `budget` tokens, and what it wrote; `None` when not
/// even `least` fit. `build(n)` must not get shorter when `n` grows.
pub(super) fn most_that_fit<T>(
    budget: usize,
    least: usize,
    limit: usize,
    mut build: impl FnMut(usize) -> Result<(Vec<u32>, T), EvalError>,
) -> Result<Option<(Vec<u32>, T)>, EvalError> {
    let mut best = Some(build(least)?).filter(|(ids, _)| ids.len() <= budget);
    if best.is_none() {
        return Ok(None);
    }
    // `fits` entries fit, `too_many` do not.
    let (mut fits, mut too_many) = (least, limit + 1);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        let built = build(middle)?;
        if built.0.len() <= budget {
            (fits, best) = (middle, Some(built));
        } else {
            too_many = middle;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::most_that_fit;

    #[test]
    fn as_many_as_fit_and_no_more() {
        let build = |n: usize| Ok((vec![0; 3 * n + 2], n));
        for (budget, least, limit, expected) in [
            (20, 1, 100, Some(6)),
            (19, 1, 100, Some(5)),
            (500, 1, 4, Some(4)),
            (4, 1, 9, None),
            (5, 1, 1, Some(1)),
        ] {
            let got = most_that_fit(budget, least, limit, build).unwrap().map(|(_, n)| n);
            assert_eq!(got, expected, "{budget} tokens");
        }
    }
}
