//! Which tokens begin a text, end it, or end a turn.
//!
//! Files say some of it by key and leave the rest to be guessed by name: a chat model whose file names only
//! `<|endoftext|>` would talk on for ever behind `<|im_end|>`. The names, the keys and the exceptions are those of
//! llama.cpp, so that generation ends where it ends there.

use super::vocabulary::{TokenKind, Vocabulary};

/// The tokens with a role.
#[derive(Default)]
pub(super) struct SpecialRoles {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) padding: Option<u32>,
    /// Sorted.
    pub(super) end_of_generation: Vec<u32>,
}

/// A role that is given by key or else to the first token found of the usual names.
pub(super) struct NamedRole {
    /// The key in a GGUF file, behind `tokenizer.ggml.`.
    pub(super) key: &'static str,
    /// The usual names.
    names: &'static [&'static str],
    /// Whether generation ends with it.
    ends_generation: bool,
}

/// The roles of which llama.cpp knows names: the ends of a turn and of a message, and the marks of code infilling.
pub(super) const NAMED_ROLES: [NamedRole; 8] = [
    NamedRole {
        key: "eot_token_id",
        names: &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ],
        ends_generation: true,
    },
    NamedRole { key: "eom_token_id", names: &["<|eom_id|>"], ends_generation: true },
    NamedRole {
        key: "fim_pre_token_id",
        names: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        ends_generation: false,
    },
    NamedRole {
        key: "fim_suf_token_id",
        names: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        ends_generation: false,
    },
    NamedRole {
        key: "fim_mid_token_id",
        names: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        ends_generation: false,
    },
    NamedRole {
        key: "fim_pad_token_id",
        names: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends_generation: true,
    },
    NamedRole {
        key: "fim_rep_token_id",
        names: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        ends_generation: true,
    },
    NamedRole { key: "fim_sep_token_id", names: &["<|file_sep|>"], ends_generation: true },
];

/// Names of tokens with which generation always ends.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Marks of the harmony format: text for the reader, whatever the file says.
const HARMONY_MARKS: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

impl SpecialRoles {
    /// Completes the roles by name. `given` are the tokens that the file gives to [`NAMED_ROLES`]. A token that
    /// steers the model counts as a control token from here on, whatever its kind in the file.
    pub(super) fn complete(&mut self, vocabulary: &mut Vocabulary, given: [Option<u32>; NAMED_ROLES.len()]) {
        let mut ends = Vec::new();
        for (index, (role, given)) in NAMED_ROLES.iter().zip(given).enumerate() {
            let holder = given.or_else(|| {
                let id = role.names.iter().find_map(|name| vocabulary.id(name))?;
                vocabulary.set_kind(id, TokenKind::Control);
                Some(id)
            });
            if role.ends_generation {
                ends.extend(holder);
            }
            if index == 0 {
                self.eot = holder;
            }
        }
        for name in ENDS {
            if let Some(id) = vocabulary.id(name) {
                vocabulary.set_kind(id, TokenKind::Control);
                ends.push(id);
            }
        }
        for name in HARMONY_MARKS {
            if let Some(id) = vocabulary.id(name) {
                vocabulary.set_kind(id, TokenKind::UserDefined);
            }
        }
        ends.extend(self.eos);

        // In some vocabularies a usual name means something else.
        let has = |name: &str| vocabulary.id(name).is_some_and(|id| ends.contains(&id));
        let calls = has("<|call|>") || has("<|calls|>");
        let end_is_text = calls && (has("<|return|>") || has("<|flush|>"));
        let s_is_text = has("<|tool_response>") || has("<|plamo:eos|>");
        for (name, is_text, kind) in
            [("<|end|>", end_is_text, TokenKind::UserDefined), ("</s>", s_is_text, TokenKind::Normal)]
        {
            if let Some(id) = vocabulary.id(name).filter(|id| is_text && ends.contains(id)) {
                ends.retain(|&end| end != id);
                vocabulary.set_kind(id, kind);
            }
        }
        ends.sort_unstable();
        ends.dedup();
        self.end_of_generation = ends;
    }
}
