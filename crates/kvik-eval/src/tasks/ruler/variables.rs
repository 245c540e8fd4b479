//! Chains of variables: `VAR ABCDE = 12345`, `VAR FGHIJ = VAR ABCDE`, … scattered over noise; which hold 12345?

use std::sync::LazyLock;

use regex::Regex;

use super::{Laid, Page, head};
use crate::{EvalError, draw::Draw, haystack::Needle, prompt::Prompter};

/// Assignments that follow the first in a chain.
const HOPS: usize = 3;
/// Chains that are not asked for: RULER's easiest setting has none, and then all variables are the answer.
const OTHER_CHAINS: usize = 1;
/// Letters of a name.
const NAME_LETTERS: usize = 5;

const INSTRUCTION: &str =
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";

/// A chain of variables that all hold one value.
pub(crate) struct Chain {
    /// The value.
    pub(crate) value: String,
    /// The variables, in the order of their assignments.
    pub(crate) names: Vec<String>,
}

/// `count` chains of `names` variables, all different, with different values.
pub(crate) fn chains(count: usize, names: usize, draw: &mut Draw) -> Vec<Chain> {
    let mut taken = std::collections::HashSet::new();
    let mut fresh = |draw: &mut Draw, make: &dyn Fn(&mut Draw) -> String| {
        let mut made = make(draw);
        while !taken.insert(made.clone()) {
            made = make(draw);
        }
        made
    };
    let name = |draw: &mut Draw| (0..NAME_LETTERS).map(|_| char::from(b'A' + draw.below(26) as u8)).collect();
    (0..count)
        .map(|_| Chain {
            value: fresh(draw, &|draw| draw.number(5).to_string()),
            names: (0..names).map(|_| fresh(draw, &name)).collect(),
        })
        .collect()
}

/// The assignments of `chains` as needles whose depths rise along each chain.
pub(crate) fn needles(
    prompter: &Prompter<'_>,
    chains: &[Chain],
    draw: &mut Draw,
) -> Result<Vec<Needle>, EvalError> {
    let mut needles = Vec::new();
    for chain in chains {
        let mut depths: Vec<usize> = chain.names.iter().map(|_| draw.below(1001)).collect();
        depths.sort_unstable();
        let mut source = chain.value.clone();
        for (name, depth) in chain.names.iter().zip(depths) {
            let tokens = prompter.text(&format!(" VAR {name} = {source}."))?;
            needles.push(Needle { tokens, depth: depth as f64 / 1000.0 });
            source = format!("VAR {name}");
        }
    }
    Ok(needles)
}

/// A prompt with one chain that is asked for and others that are not.
pub(super) fn lay(page: &Page<'_>, draw: &mut Draw) -> Result<Laid, EvalError> {
    let chains = chains(1 + OTHER_CHAINS, 1 + HOPS, draw);
    let needles = needles(page.prompter, &chains, draw)?;
    let value = &chains[0].value;
    let head = head(page, INSTRUCTION)?;
    let question = page.prompter.text(&format!(
        "\n\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to the \
         chain(s) of variable assignment in the text above, {} variables are assigned the value {value}, they are:",
        1 + HOPS
    ))?;
    let around = head.len() + question.len();
    let hidden: usize = needles.iter().map(|needle| needle.tokens.len()).sum();
    let body = page.length.checked_sub(around).and_then(|room| page.noise.fill(room, &needles, draw));
    let body = body.ok_or_else(|| page.too_short(around + hidden))?;
    let all: Vec<&String> = chains.iter().flat_map(|chain| &chain.names).collect();
    let guess = draw.distinct(1 + HOPS, all.len()).into_iter().map(|index| all[index].as_str());
    Ok(Laid {
        context: [head, body].concat(),
        question,
        guess: guess.collect::<Vec<_>>().join(", "),
        references: chains[0].names.clone(),
        max_tokens: 40,
    })
}

/// An assignment: a name, and the number or name behind the equals sign.
static ASSIGNMENT: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"VAR ([A-Z]+) = (?:VAR )?([A-Z0-9]+)\.").ok());

/// All variables that hold `value` after the assignments of `text`, in their order.
pub(crate) fn follow(text: &str, value: &str) -> Vec<String> {
    let mut holding: Vec<String> = Vec::new();
    for found in ASSIGNMENT.as_ref().into_iter().flat_map(|pattern| pattern.captures_iter(text)) {
        let (name, source) = (&found[1], &found[2]);
        if source == value || holding.iter().any(|known| known == source) {
            holding.push(name.to_owned());
        }
    }
    holding
}

/// Follows the chain of the value that `question` asks for.
pub(super) fn solve(context: &str, question: &str) -> Option<String> {
    let value = question.split_once("the value ")?.1.split_whitespace().next()?;
    Some(follow(context.split_once("\n\n")?.1, value).join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_followed() {
        let text = " VAR AAAAA = 123. Grass. VAR CCCCC = 77. VAR BBBBB = VAR AAAAA. VAR DDDDD = VAR CCCCC. VAR E = VAR BBBBB.";
        assert_eq!(follow(text, "123"), ["AAAAA", "BBBBB", "E"]);
        assert_eq!(follow(text, "77"), ["CCCCC", "DDDDD"]);
        assert_eq!(follow(text, "1"), [""; 0]);
    }
}
