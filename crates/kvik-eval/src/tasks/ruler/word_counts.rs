//! Counting words: the common ones of a numbered list (cwe), and the frequent ones of a coded text (fwe).

use std::collections::HashMap;

use super::{Laid, Page, head};
use crate::{EvalError, draw::Draw, tasks::fit::most_that_fit, words};

/// Common words that are asked for.
pub(super) const COMMON: usize = 10;
/// Frequent words that are asked for.
pub(super) const FREQUENT: usize = 3;
/// How often common and other words stand in a list, from [`LONG_TOKENS`] on and below.
const LONG_REPEATS: (usize, usize) = (30, 3);
const SHORT_REPEATS: (usize, usize) = (6, 1);
const LONG_TOKENS: usize = 4096;
/// The exponent of the frequencies of coded words.
const ZIPF_EXPONENT: f64 = 2.0;
/// Letters of a coded word.
const CODED_LETTERS: usize = 6;
/// Words that stand for nothing in a coded text; they are the most frequent.
const NOISE: &str = "...";

const COMMON_INSTRUCTION: &str = "Below is a numbered list of words. In these words, some appear more often than others. \
                                  Memorize the ones that appear most often.";
const COMMON_QUESTION: &str = "\n\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that \
                               appear most often in the list are:";
const FREQUENT_INSTRUCTION: &str = "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded \
     words.\n\n";
const FREQUENT_QUESTION: &str = "\n\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three \
                                 most frequently appeared words in the above coded text? Answer: According to the coded text \
                                 above, the three most frequently appeared words are:";

/// A numbered list, with one solved example before it.
pub(super) fn common(page: &Page<'_>, draw: &mut Draw) -> Result<Laid, EvalError> {
    let example = numbered_list(COMMON, 10, (3, 1), draw);
    let head = head(
        page,
        &format!(
            "{COMMON_INSTRUCTION}{}{COMMON_QUESTION} {}\n\n{COMMON_INSTRUCTION}",
            example.text,
            example.common.join(" ")
        ),
    )?;
    let question = page.prompter.text(COMMON_QUESTION)?;
    let repeats = if page.length >= LONG_TOKENS { LONG_REPEATS } else { SHORT_REPEATS };
    let room = page.length.saturating_sub(head.len() + question.len());
    let others = words::nouns().len() - COMMON;
    let start = draw.clone();
    let fitted = most_that_fit(room, 0, others, |count| {
        let list = numbered_list(COMMON, count, repeats, &mut start.clone());
        Ok((page.prompter.text(&list.text)?, list))
    })?;
    let needed = || head.len() + question.len() + 6 * COMMON * repeats.0;
    let (body, list) = fitted.ok_or_else(|| page.too_short(needed()))?;
    draw.bits();
    let all: Vec<&str> = list.common.iter().chain(&list.others).copied().collect();
    let guess = draw.distinct(COMMON, all.len()).into_iter().map(|index| all[index]);
    Ok(Laid {
        context: page.padded(head, body, &question)?,
        question,
        guess: guess.collect::<Vec<_>>().join(" "),
        references: list.common.iter().map(|&word| word.to_owned()).collect(),
        max_tokens: 60,
    })
}

struct List {
    text: String,
    common: Vec<&'static str>,
    others: Vec<&'static str>,
}

/// `common` words `repeats.0` times each and `others` words `repeats.1` times each, in random order.
fn numbered_list(common: usize, others: usize, repeats: (usize, usize), draw: &mut Draw) -> List {
    let mut common = words::different_nouns(common + others, draw);
    let others = common.split_off(common.len() - others);
    let repeated = |words: &[&'static str], times| words.repeat(times);
    let mut list = [repeated(&common, repeats.0), repeated(&others, repeats.1)].concat();
    draw.shuffle(&mut list);
    let lines = list.iter().enumerate().map(|(index, word)| format!("{}. {word}", index + 1));
    let text = format!("\n\n{}", lines.collect::<Vec<_>>().join(" "));
    List { text, common, others }
}

/// A coded text: random letters, the more frequent the lower their rank.
pub(super) fn frequent(page: &Page<'_>, draw: &mut Draw) -> Result<Laid, EvalError> {
    let head = head(page, FREQUENT_INSTRUCTION)?;
    let question = page.prompter.text(FREQUENT_QUESTION)?;
    let mut coded: Vec<String> = Vec::new();
    while coded.len() < (page.length / 50).max(8) {
        let word: String = (0..CODED_LETTERS).map(|_| char::from(b'a' + draw.below(26) as u8)).collect();
        if !coded.contains(&word) {
            coded.push(word);
        }
    }
    let start = draw.clone();
    let room = page.length.saturating_sub(head.len() + question.len());
    let fitted = most_that_fit(room, 40, page.length.max(41), |count| {
        let mut text = zipf(&coded, count);
        start.clone().shuffle(&mut text);
        Ok((page.prompter.text(&text.join(" "))?, ()))
    })?;
    let needed = || head.len() + question.len() + 40 * 5;
    let (body, ()) = fitted.ok_or_else(|| page.too_short(needed()))?;
    draw.bits();
    let guess = draw.distinct(FREQUENT, coded.len()).into_iter().map(|index| coded[index].as_str());
    Ok(Laid {
        context: page.padded(head, body, &question)?,
        question,
        guess: guess.collect::<Vec<_>>().join(", "),
        references: coded[..FREQUENT].to_vec(),
        max_tokens: 50,
    })
}

/// About `count` words: noise at rank 1, `coded[i]` at rank `i + 2`, each about `rank^-2 / sum` of all, and every word less
/// often than the one before it as long as that is among those asked for.
fn zipf(coded: &[String], count: usize) -> Vec<&str> {
    let share = |rank: usize| (rank as f64).powf(-ZIPF_EXPONENT);
    let sum: f64 = (1..=coded.len() + 1).map(share).sum();
    let times = |rank: usize| ((count as f64 * share(rank) / sum).round() as usize).max(1);
    let mut text = vec![NOISE; times(1)];
    let mut most = usize::MAX;
    for (index, word) in coded.iter().enumerate().rev() {
        // From the rarest on: whoever is asked for stands more often than any that comes behind.
        let behind = if most == usize::MAX { 0 } else { most };
        let here = if index < FREQUENT { times(index + 2).max(behind + 1) } else { times(index + 2) };
        most = here.max(behind);
        text.extend(std::iter::repeat_n(word.as_str(), here));
    }
    text
}

/// The `count` words that stand most often in `text`, numbers of a list and noise passed over.
pub(super) fn most_frequent(text: &str, count: usize) -> String {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in text.split_whitespace().filter(|word| word.bytes().all(|b| b.is_ascii_lowercase())) {
        *counts.entry(word).or_default() += 1;
    }
    let mut ranked: Vec<(&str, usize)> = counts.into_iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    ranked.into_iter().take(count).map(|(word, _)| word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_asked_words_of_a_coded_text_are_strictly_the_most_frequent() {
        let coded: Vec<String> = (0..20).map(|i| format!("w{}", char::from(b'a' + i))).collect();
        for count in [40, 100, 1000] {
            let text = zipf(&coded, count);
            let times = |word: &str| text.iter().filter(|w| **w == word).count();
            let rest = coded[FREQUENT..].iter().map(|word| times(word)).max().unwrap();
            assert!(times(&coded[0]) > times(&coded[1]) && times(&coded[1]) > times(&coded[2]));
            assert!(times(&coded[2]) > rest);
            assert!(text.len().abs_diff(count) < 40, "{}", text.len());
        }
        // rank^-2 / sum: 1000 / 1.60 for the noise, a quarter of it for the first word.
        let text = zipf(&coded, 1000);
        assert!(text.iter().filter(|w| **w == NOISE).count().abs_diff(626) < 5);
    }
}
