//! Arithmetic over a long list (`mf`): its largest, smallest, second largest, second smallest and median number.

use super::{Page, Question, Shared};
use crate::{EvalError, draw::Draw, tasks::fit::most_that_fit};

/// What is asked, in turn.
const ASKED: [&str; 5] = ["largest", "smallest", "second largest", "second smallest", "median"];
/// Numbers are below this.
const END: usize = 100;

/// A list of an odd number of numbers.
pub(super) fn list(page: &Page<'_>, draw: &mut Draw) -> Result<Shared, EvalError> {
    let numbers: Vec<usize> = (0..page.length).map(|_| draw.below(END)).collect();
    let question = |numbers: &[usize], turn: usize, draw: &mut Draw| {
        let asked = ASKED[turn % ASKED.len()];
        let answer = order_statistic(numbers, asked).map_or_else(String::new, |number| number.to_string());
        Question {
            text: format!(
                "\n\nWhat is the {asked} number in the above list? The {asked} number of the list is:"
            ),
            references: vec![answer.clone()],
            answer: format!("{answer}."),
            guess: numbers[draw.below(numbers.len())].to_string(),
        }
    };
    let room = page.room(&question(&[0], 0, draw))?;
    let budget = room.saturating_sub(page.opening().len());
    // `steps` rather than numbers are counted, to keep their number odd.
    let fitted = most_that_fit(budget, 2, (numbers.len() - 1) / 2, |steps| {
        let count = 2 * steps + 1;
        let written: Vec<String> = numbers[..count].iter().map(ToString::to_string).collect();
        let text = format!("Read the list of numbers below.\n\n[{}]", written.join(", "));
        Ok((page.prompter.text(&text)?, count))
    });
    // Shorter lists than lengths asked for are a mistake of the plan.
    let needed = page.length - room + page.opening().len() + 32;
    if numbers.len() < 5 {
        return Err(page.too_short(needed));
    }
    let (body, count) = fitted?.ok_or_else(|| page.too_short(needed))?;
    let questions = (0..page.turns).map(|turn| question(&numbers[..count], turn, draw)).collect();
    let context = page.exact(room, &body).ok_or_else(|| page.too_short(needed))?;
    Ok(Shared { context, questions })
}

/// The number of `numbers` that `asked` names; numbers that stand several times count as often.
fn order_statistic(numbers: &[usize], asked: &str) -> Option<usize> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    let at = match asked {
        "largest" => last,
        "smallest" => 0,
        "second largest" => last.checked_sub(1)?,
        "second smallest" => 1,
        _ => last / 2,
    };
    sorted.get(at).copied()
}

/// Reads the list and looks up what `question` asks for.
pub(super) fn look_up(context: &str, question: &str) -> Option<String> {
    let list = context.rsplit_once('[')?.1.split_once(']')?.0;
    let numbers: Vec<usize> = list.split(", ").filter_map(|number| number.parse().ok()).collect();
    let asked = question.split_once("What is the ")?.1.split_once(" number")?.0;
    Some(order_statistic(&numbers, asked)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::order_statistic;

    #[test]
    fn order_statistics_count_repeats() {
        let numbers = [5, 9, 1, 9, 3];
        let got: Vec<_> = super::ASKED.iter().map(|asked| order_statistic(&numbers, asked)).collect();
        assert_eq!(got, [Some(9), Some(1), Some(9), Some(3), Some(5)]);
        assert_eq!(order_statistic(&[], "largest"), None);
    }
}
