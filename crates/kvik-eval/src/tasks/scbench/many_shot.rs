//! In-context classification: hundreds of short texts with labels, and then texts without.
//!
//! SCBench takes tasks of BIG-Bench Hard. Here texts list three words of one topic, and the labels are colours that are
//! dealt out to the topics anew for each context: what a label means is said by the shots alone.

use super::{Page, Question, Shared};
use crate::{EvalError, draw::Draw, tasks::fit::most_that_fit};

/// Words of one topic a line.
const TOPICS: [&[&str]; 4] = [
    &["lion", "horse", "rabbit", "tiger", "sheep", "eagle", "snake", "wolf", "duck", "bear"],
    &["bread", "cheese", "soup", "rice", "butter", "salad", "honey", "pasta", "cake", "apple"],
    &["piano", "violin", "guitar", "drum", "flute", "trumpet", "harp", "cello", "organ", "banjo"],
    &["shirt", "jacket", "glove", "scarf", "boot", "hat", "skirt", "sock", "coat", "belt"],
];
const LABELS: [&str; 4] = ["red", "green", "blue", "yellow"];
/// Words of a text.
const WORDS: usize = 3;

const INSTRUCTION: &str =
    "Each text has a label. Learn the labels from the examples, then label the last text.";

/// As many shots as fit; every text is of a topic that the shots show.
pub(super) fn shots(page: &Page<'_>, draw: &mut Draw) -> Result<Shared, EvalError> {
    let mut labels = LABELS;
    draw.shuffle(&mut labels);
    let text = |topic: usize, draw: &mut Draw| {
        let words = TOPICS[topic];
        draw.distinct(WORDS, words.len()).into_iter().map(|at| words[at]).collect::<Vec<_>>().join(", ")
    };
    // Topics go round, each round in another order, so that any number of shots shows all of them alike.
    let mut order: Vec<usize> = Vec::new();
    let mut shots: Vec<String> = Vec::new();
    while shots.len() < page.length {
        if order.is_empty() {
            order = (0..TOPICS.len()).collect();
            draw.shuffle(&mut order);
        }
        let topic = order.pop().unwrap_or(0);
        shots.push(format!("\n\nText: {}\nLabel: {}", text(topic, draw), labels[topic]));
    }
    let questions: Vec<Question> = (0..page.turns)
        .map(|_| {
            let topic = draw.below(TOPICS.len());
            Question {
                text: format!("\n\nText: {}\nLabel:", text(topic, draw)),
                answer: labels[topic].to_owned(),
                references: vec![labels[topic].to_owned()],
                guess: LABELS[draw.below(LABELS.len())].to_owned(),
            }
        })
        .collect();
    let room = questions.first().map(|first| page.room(first)).transpose()?.unwrap_or(page.length);
    // Each topic's words all have to be seen, for the solver; forty shots see them but for bad luck.
    let least = 8 * TOPICS.len();
    let fitted = most_that_fit(room.saturating_sub(page.opening().len()), least, shots.len(), |count| {
        Ok((page.prompter.text(&format!("{INSTRUCTION}{}", shots[..count].concat()))?, ()))
    })?;
    let needed = 20 * least;
    let (body, ()) = fitted.ok_or_else(|| page.too_short(needed))?;
    let context = page.exact(room, &body).ok_or_else(|| page.too_short(needed))?;
    Ok(Shared { context, questions })
}

/// The label of the shots that share the most words with the text of `question`.
pub(super) fn classify(context: &str, question: &str) -> Option<String> {
    let asked: Vec<&str> = question.split_once("Text: ")?.1.lines().next()?.split(", ").collect();
    let mut votes = [0usize; LABELS.len()];
    for shot in context.split("Text: ").skip(1) {
        let mut lines = shot.lines();
        let words: Vec<&str> = lines.next()?.split(", ").collect();
        let label = lines.next()?.strip_prefix("Label: ")?;
        let shared = asked.iter().filter(|word| words.contains(word)).count();
        votes[LABELS.iter().position(|known| *known == label)?] += shared;
    }
    let best = votes.iter().enumerate().max_by_key(|(_, votes)| **votes)?.0;
    Some(LABELS[best].to_owned())
}
