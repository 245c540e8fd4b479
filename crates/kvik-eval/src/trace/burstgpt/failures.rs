//! How often the service does not answer: more often when much is asked at once.
//!
//! The load at an arrival is the number of arrivals in the seconds before it. Arrivals are cut into groups of equal size by
//! load, each group has its share of failures, and shares that fall while the load rises are pooled (isotonic regression by
//! pool-adjacent-violators, M. Ayer et al., 1955), because a smaller load is no reason to fail more often.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;

/// The time over which the load is counted.
pub const LOAD_SECONDS: f64 = 10.0;
/// Groups, at most.
const GROUPS: usize = 16;
/// Arrivals in a group, at least.
const LEAST_IN_GROUP: usize = 200;

/// Shares of failures by load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Failures {
    /// By rising load; without any, nothing fails.
    pub groups: Vec<Group>,
}

/// Arrivals at about one load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Arrivals in the seconds before, at most.
    pub load: u32,
    /// The share that fails.
    pub share: f64,
}

impl Failures {
    /// The same share of failures at every load.
    pub fn constant(share: f64) -> Self {
        Self { groups: vec![Group { load: u32::MAX, share }] }
    }

    /// Fitted to pairs of a load and whether the request failed.
    pub fn fit(mut outcomes: Vec<(u32, bool)>) -> Self {
        if !outcomes.iter().any(|outcome| outcome.1) {
            return Self::default();
        }
        outcomes.sort_unstable();
        let count = (outcomes.len() / LEAST_IN_GROUP).clamp(1, GROUPS);
        // Largest load, failures, arrivals.
        let mut pooled: Vec<(u32, f64, f64)> = Vec::new();
        let mut from = 0;
        for group in 0..count {
            let mut end = ((group + 1) * outcomes.len() / count).max(from);
            // Equal loads stay together.
            while end < outcomes.len() && end > 0 && outcomes[end].0 == outcomes[end - 1].0 {
                end += 1;
            }
            let rows = &outcomes[from..end];
            let Some(&(load, _)) = rows.last() else { continue };
            pooled.push((load, rows.iter().filter(|row| row.1).count() as f64, rows.len() as f64));
            from = end;
            while let [.., before, last] = pooled[..] {
                if before.1 / before.2 <= last.1 / last.2 {
                    break;
                }
                pooled.truncate(pooled.len() - 2);
                pooled.push((last.0, before.1 + last.1, before.2 + last.2));
            }
        }
        let group = |(load, failed, all): (u32, f64, f64)| Group { load, share: failed / all };
        Self { groups: pooled.into_iter().map(group).collect() }
    }

    /// The probability that a request fails at `load`.
    pub fn share(&self, load: u32) -> f64 {
        let after = self.groups.partition_point(|group| group.load < load);
        self.groups.get(after).or(self.groups.last()).map_or(0.0, |group| group.share)
    }

    /// Whether one does.
    pub fn draw(&self, load: u32, draw: &mut Draw) -> bool {
        draw.unit() < self.share(load)
    }
}

/// For each of `arrivals` (in order), how many came in the [`LOAD_SECONDS`] before.
pub fn loads(arrivals: &[f64]) -> Vec<u32> {
    let mut from = 0;
    let load = |(index, &at): (usize, &f64)| {
        while arrivals[from] < at - LOAD_SECONDS {
            from += 1;
        }
        (index - from) as u32
    };
    arrivals.iter().enumerate().map(load).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_what_came_in_the_seconds_before() {
        assert_eq!(loads(&[0.0, 1.0, 10.5, 30.0, 30.0]), [0, 1, 1, 0, 1]);
    }

    #[test]
    fn failures_rise_with_the_load_and_their_share_is_kept() {
        let truth = |load: u32| if load < 50 { 0.01 } else { 0.3 };
        let outcomes: Vec<(u32, bool)> = (0..20_000)
            .map(|n| {
                let mut draw = Draw::new(1, "load", n);
                let load = draw.below(100) as u32;
                (load, draw.unit() < truth(load))
            })
            .collect();
        let failures = Failures::fit(outcomes.clone());
        assert!(failures.groups.is_sorted_by(|a, b| a.load < b.load && a.share <= b.share), "{failures:?}");
        assert!(
            (failures.share(10) - 0.01).abs() < 0.01 && (failures.share(90) - 0.3).abs() < 0.03,
            "{failures:?}"
        );
        let share =
            |fails: &dyn Fn(usize) -> bool| (0..20_000).filter(|&n| fails(n)).count() as f64 / 20_000.0;
        let drawn = share(&|n| failures.draw(outcomes[n].0, &mut Draw::new(2, "fail", n as u64)));
        assert!((drawn - share(&|n| outcomes[n].1)).abs() < 0.01, "{drawn}");
    }

    #[test]
    fn a_share_that_falls_with_the_load_is_no_reason() {
        let outcomes = (0..4000).map(|n| (n / 40, n < 2000 && n % 10 == 0)).collect();
        assert_eq!(Failures::fit(outcomes).groups, [Group { load: 99, share: 0.05 }]);
        assert_eq!(Failures::fit(vec![(1, false); 10]).share(5), 0.0);
        assert_eq!(Failures::constant(0.02).share(1000), 0.02);
    }
}
