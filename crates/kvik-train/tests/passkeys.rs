//! What gates are trained on: every pass key is hidden once and asked for once, and nothing else counts.

use std::path::Path;

use kvik_model::{Checkpoint, Tokenizer};
use kvik_train::{
    TrainError,
    duo::{Settings, data::Passkeys},
};

const SETTINGS: Settings = Settings {
    steps: 10,
    min_tokens: 700,
    max_tokens: 900,
    keys: 3,
    words: 2,
    sink: 4,
    recent: 16,
    learning_rate: 0.02,
    penalty: 0.05,
    seed: 7,
};

/// A tokenizer with a token for each character.
fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama");
    Tokenizer::from_checkpoint(&Checkpoint::open(&path).unwrap()).unwrap()
}

fn novel() -> String {
    (0..400).map(|line| format!("Line {line} of a dull story.\n")).collect()
}

/// What stands behind `before` up to the next full stop.
fn behind<'a>(text: &'a str, before: &str) -> &'a str {
    let mut parts = text.split(before);
    let (_, after) = (parts.next(), parts.next().unwrap());
    assert!(parts.next().is_none(), "'{before}' stands once");
    after.split('.').next().unwrap()
}

#[test]
fn every_key_is_hidden_once_and_asked_for_at_the_end() {
    let (tokenizer, novel) = (tokenizer(), novel());
    let passkeys = Passkeys::new(&tokenizer, &novel, SETTINGS).unwrap();
    let mut lengths = Vec::new();
    for step in 0..20 {
        let sequence = passkeys.sequence(step).unwrap();
        assert_eq!(sequence.labels.end, sequence.tokens.len());
        let (hidden, asked) = sequence.tokens.split_at(sequence.labels.start);
        let (hidden, asked) = (tokenizer.decode(hidden, false), tokenizer.decode(asked, false));
        for ordinal in ["first", "second", "third"] {
            let key = behind(&hidden, &format!("Remember the {ordinal} pass key: "));
            assert_eq!(key.split(' ').count(), SETTINGS.words, "{key}");
            assert_eq!(behind(&asked, &format!("What was the {ordinal} pass key? It was: ")), key);
        }
        assert!(!asked.contains("dull story") && !hidden.contains("What was"));
        lengths.push(sequence.tokens.len());
    }
    assert!(lengths.iter().all(|length| (700..=900).contains(length)), "{lengths:?}");
    assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() > 100, "{lengths:?}");
}

#[test]
fn a_step_has_the_same_text_whenever_it_is_asked_for_and_another_than_other_steps_and_seeds() {
    let (tokenizer, novel) = (tokenizer(), novel());
    let make = |seed, step| {
        Passkeys::new(&tokenizer, &novel, Settings { seed, ..SETTINGS }).unwrap().sequence(step).unwrap()
    };
    assert_eq!(make(7, 3), make(7, 3));
    assert_ne!(make(7, 3), make(7, 4));
    assert_ne!(make(7, 3), make(8, 3));
}

#[test]
fn what_cannot_be_trained_on_is_refused() {
    let (tokenizer, novel) = (tokenizer(), novel());
    let short = Settings { min_tokens: 60, max_tokens: 60, ..SETTINGS };
    let refused = Passkeys::new(&tokenizer, &novel, short).unwrap().sequence(0).unwrap_err();
    assert!(matches!(refused, TrainError::TooShort { tokens: 60, needed } if needed > 60), "{refused}");
    assert!(Passkeys::new(&tokenizer, "A short story.", SETTINGS).is_err());

    assert!(SETTINGS.check().is_ok());
    let wrong = [
        Settings { steps: 0, ..SETTINGS },
        Settings { keys: 11, ..SETTINGS },
        Settings { min_tokens: 901, ..SETTINGS },
        Settings { recent: 700, ..SETTINGS },
        Settings { learning_rate: f64::NAN, ..SETTINGS },
    ];
    assert!(wrong.iter().all(|settings| matches!(settings.check(), Err(TrainError::Setting(_)))));
}
