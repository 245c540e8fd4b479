//! Tokenizers: text to tokens and back.
//!
//! A model reads and writes numbers; its file says which piece of text each number stands for and how a text is cut
//! into pieces. Files in GGUF carry a vocabulary and the name of an algorithm, byte-level BPE or SentencePiece, which
//! are implemented here to give what llama.cpp gives; Hugging Face models carry a `tokenizer.json`, which the
//! `tokenizers` library runs. Behind [`Tokenizer`] all of them look the same.
//!
//! A text goes through three steps: special tokens that are written out in it are cut out first
//! ([`special_tokens`]); what lies between them is cut into words ([`pre_tokenizer`]); each word's characters are
//! merged into tokens ([`pair_merger`], driven by [`bpe`] or [`sentence_piece`]).

mod bpe;
mod byte_level;
mod char_class;
mod gguf;
mod hugging_face;
mod pair_merger;
mod pre_tokenizer;
mod sentence_piece;
mod special_roles;
mod special_tokens;
mod stream_decoder;
mod string_table;
mod vocabulary;

use bpe::Bpe;
use hugging_face::HuggingFace;
use sentence_piece::SentencePiece;
use special_roles::SpecialRoles;
use special_tokens::{Fragment, SpecialTokens};
use vocabulary::Vocabulary;

pub use stream_decoder::StreamDecoder;
pub use vocabulary::TokenKind;

use crate::{checkpoint::Checkpoint, metadata::MetadataError};

/// Turns text into tokens and tokens into text, as a model's file says.
pub struct Tokenizer {
    algorithm: Algorithm,
    vocabulary: Vocabulary,
    spelling: Spelling,
    roles: SpecialRoles,
    adds_bos: bool,
    adds_eos: bool,
    /// Text is tokenised as if a space stood before it, which decoding takes away again.
    adds_space: bool,
}

/// How text between special tokens becomes tokens.
enum Algorithm {
    Bpe(Bpe, SpecialTokens),
    SentencePiece(SentencePiece, SpecialTokens),
    HuggingFace(Box<HuggingFace>),
}

/// How a vocabulary writes the bytes that its tokens stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// In the byte-level alphabet.
    ByteLevel,
    /// As text with `▁` for a space; bytes as `<0xE2>`.
    SentencePiece,
    /// As the text itself.
    Plain,
}

/// What [`Tokenizer::encode`] does besides cutting text into tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens around the text that the model's file asks for: usually BOS before it, or nothing.
    pub add_special: bool,
    /// Recognise control tokens that are written out in the text (`<|im_start|>`). For text from users this must be
    /// off, or they could speak with the system's voice; user-defined tokens are recognised either way.
    pub parse_special: bool,
}

/// Why there is no tokenizer, or no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file lacks a key, or one has a value of the wrong type.
    #[error("the model's tokenizer cannot be read: {0}")]
    Metadata(#[from] MetadataError),
    /// `tokenizer.ggml.model` names an algorithm that is not implemented.
    #[error(
        "the model's tokenizer is of the kind {0:?}, which Kvik does not know; it knows \"gpt2\" (byte-level BPE) and \
         \"llama\" (SentencePiece)"
    )]
    UnknownModel(String),
    /// `tokenizer.ggml.pre` names a way to cut words that is not implemented.
    #[error("the model's pre-tokenizer is {name:?}, which Kvik does not know; it knows {known}")]
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
        /// All names that are known.
        known: String,
    },
    /// A list that describes tokens has another length than the list of tokens.
    #[error("the model's tokenizer lists {found} {what} for {tokens} tokens; the file is damaged")]
    WrongLength {
        /// What the list holds.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// More tokens or merges than 32-bit numbers can count, or no token at all.
    #[error("the model's tokenizer has {0} tokens or merges; there must be between 1 and 2^32-2 of them")]
    BadSize(usize),
    /// A file of a Hugging Face model is missing or cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: std::path::PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file of a Hugging Face model is not what it should be.
    #[error("{file} is not valid: {reason}")]
    Invalid {
        /// The name of the file.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer of a `tokenizer.json` refused a text.
    #[error("the model's tokenizer.json cannot tokenise this text: {0}")]
    Encode(String),
}

impl Tokenizer {
    /// The tokenizer of an opened model: from a GGUF file's metadata, or from the files in a Hugging Face model's
    /// folder.
    ///
    /// # Errors
    /// Says which key or file is missing, damaged or of a kind that is not implemented.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, TokenizerError> {
        match checkpoint.folder() {
            Some(folder) => Self::from_hugging_face(folder),
            None => Self::from_gguf(checkpoint.metadata()),
        }
    }

    /// The tokens of `text`.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] from a `tokenizer.json` that cannot express the text; never from a GGUF file.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let special = match &self.algorithm {
            Algorithm::Bpe(_, special) | Algorithm::SentencePiece(_, special) => special,
            Algorithm::HuggingFace(tokenizer) => return tokenizer.encode(text, options),
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special && self.adds_bos {
            ids.extend(self.roles.bos);
        }
        let mut wants_space = self.adds_space;
        for fragment in special.partition(text, options.parse_special) {
            match (fragment, &self.algorithm) {
                (Fragment::Token(id), _) => {
                    ids.push(id);
                    wants_space = self.adds_space;
                    continue;
                }
                (Fragment::Text(text), Algorithm::Bpe(bpe, _)) => {
                    bpe.encode(&self.vocabulary, text, &mut ids)
                }
                (Fragment::Text(text), Algorithm::SentencePiece(model, _)) => {
                    let unknown = self.roles.unknown;
                    model.encode(&self.vocabulary, text, wants_space, unknown, &mut ids);
                }
                (Fragment::Text(_), Algorithm::HuggingFace(_)) => {}
            }
            wants_space = false;
        }
        if options.add_special && self.adds_eos {
            ids.extend(self.roles.eos);
        }
        Ok(ids)
    }

    /// The text of `ids`, with U+FFFD for bytes that are not UTF-8. Control tokens are written out if `keep_special`.
    /// If text is tokenised as if a space stood before it, that space is left out.
    pub fn decode(&self, ids: &[u32], keep_special: bool) -> String {
        let mut bytes = Vec::with_capacity(4 * ids.len());
        let mut at_start = self.adds_space;
        for &id in ids {
            let special = self.kind(id).is_special();
            if special && !keep_special {
                continue;
            }
            let start = bytes.len();
            self.append_token_bytes(id, &mut bytes);
            if at_start && bytes.get(start) == Some(&b' ') {
                bytes.remove(start);
            }
            at_start &= special;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that a token stands for, which need not be UTF-8 by themselves. A control token stands for its name;
    /// a number that is no token stands for nothing.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append_token_bytes(id, &mut bytes);
        bytes
    }

    /// Appends the bytes that a token stands for to `bytes`, and allocates only to make room there.
    pub fn append_token_bytes(&self, id: u32, bytes: &mut Vec<u8>) {
        let text = self.vocabulary.text(id);
        match (self.kind(id), self.spelling) {
            (TokenKind::Undefined | TokenKind::Unused, _) => {}
            (TokenKind::Normal | TokenKind::Byte, Spelling::ByteLevel) => byte_level::unspell(text, bytes),
            (TokenKind::Normal, Spelling::SentencePiece) => {
                for (index, word) in text.split(sentence_piece::SPACE).enumerate() {
                    bytes.extend((index > 0).then_some(b' '));
                    bytes.extend_from_slice(word.as_bytes());
                }
            }
            (TokenKind::Byte, Spelling::SentencePiece) => match sentence_piece::byte_of(text) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(text.as_bytes()),
            },
            (TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined, _) | (_, Spelling::Plain) => {
                bytes.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// What a token stands for, to be shown: [`token_bytes`](Self::token_bytes) with U+FFFD for what is not UTF-8.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// The token whose text, as the file spells it, is `text`: for control tokens, by name.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocabulary.id(text)
    }

    /// What a token is for.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.vocabulary.kind(id)
    }

    /// Number of tokens. A model's logits may be more: some are padded.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The token that ends a turn of a chat, where it is another than [`eos`](Self::eos).
    pub fn eot(&self) -> Option<u32> {
        self.roles.eot
    }

    /// The token for text that cannot be expressed.
    pub fn unknown(&self) -> Option<u32> {
        self.roles.unknown
    }

    /// The token that fills unused places of a batch.
    pub fn padding(&self) -> Option<u32> {
        self.roles.padding
    }

    /// Whether the file asks for BOS before a text.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether the file asks for EOS behind a text.
    pub fn adds_eos(&self) -> bool {
        self.adds_eos
    }

    /// Whether generation ends when the model says this token: EOS, the end of a turn, and what else of that kind the
    /// vocabulary has.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.roles.end_of_generation.binary_search(&id).is_ok()
    }

    /// All tokens that end generation, in order.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.roles.end_of_generation
    }
}
