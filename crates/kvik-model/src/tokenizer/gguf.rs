//! Tokenizers from the metadata of a GGUF file.
//!
//! Keys and defaults are those of the GGUF convention as llama.cpp reads it; what a file does not say follows from
//! the kind of its tokenizer.

use super::{
    Algorithm, Spelling, Tokenizer, TokenizerError,
    bpe::Bpe,
    pre_tokenizer::PreTokenizer,
    sentence_piece::SentencePiece,
    special_roles::{NAMED_ROLES, SpecialRoles},
    special_tokens::{SpecialToken, SpecialTokens},
    vocabulary::{TokenKind, Vocabulary},
};
use crate::metadata::{Metadata, MetadataError};

impl Tokenizer {
    /// The tokenizer that a GGUF file's metadata describes.
    ///
    /// # Errors
    /// A key is missing or of the wrong type, lists differ in length, or the file names an algorithm or a
    /// pre-tokenizer that is not implemented.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let keys = Keys(metadata);
        let model: &str = metadata.require("tokenizer.ggml.model")?;
        let tokens: Vec<&str> = metadata.require("tokenizer.ggml.tokens")?;
        let bad_size = |size: usize| move || TokenizerError::BadSize(size);
        if tokens.is_empty() {
            return Err(TokenizerError::BadSize(0));
        }
        let kinds = keys.per_token("token_type", "token types", tokens.len())?;
        let kinds = kinds.unwrap_or_else(|| vec![TokenKind::Normal as i32; tokens.len()]);
        let kinds = kinds.into_iter().map(TokenKind::from_gguf).collect();
        let mut vocabulary = Vocabulary::new(&tokens, kinds).ok_or_else(bad_size(tokens.len()))?;

        match model {
            "gpt2" => {
                let pre_tokenizer = keys.pre_tokenizer()?;
                let merges: Vec<&str> = metadata.require("tokenizer.ggml.merges")?;
                let roles = keys.roles(&mut vocabulary, [Some(11), Some(11), None])?;
                Ok(Self {
                    adds_bos: keys.find("add_bos_token")?.unwrap_or(pre_tokenizer.adds_bos),
                    adds_eos: keys.find("add_eos_token")?.unwrap_or(false),
                    adds_space: false,
                    algorithm: Algorithm::Bpe(
                        Bpe::new(pre_tokenizer, &merges).ok_or_else(bad_size(merges.len()))?,
                        keys.special_tokens(&vocabulary)?,
                    ),
                    spelling: Spelling::ByteLevel,
                    vocabulary,
                    roles,
                })
            }
            "llama" => {
                let scores = keys.per_token("scores", "scores", tokens.len())?;
                let scores = scores.unwrap_or_else(|| vec![0.0; tokens.len()]);
                let roles = keys.roles(&mut vocabulary, [Some(1), Some(2), Some(0)])?;
                Ok(Self {
                    adds_bos: keys.find("add_bos_token")?.unwrap_or(true),
                    adds_eos: keys.find("add_eos_token")?.unwrap_or(false),
                    adds_space: keys.find("add_space_prefix")?.unwrap_or(true),
                    algorithm: Algorithm::SentencePiece(
                        SentencePiece::new(&vocabulary, scores),
                        keys.special_tokens(&vocabulary)?,
                    ),
                    spelling: Spelling::SentencePiece,
                    vocabulary,
                    roles,
                })
            }
            unknown => Err(TokenizerError::UnknownModel(unknown.to_owned())),
        }
    }
}

/// The keys under `tokenizer.ggml.`.
struct Keys<'m>(&'m Metadata);

impl<'m> Keys<'m> {
    fn find<T: crate::metadata::FromValue<'m>>(&self, key: &str) -> Result<Option<T>, MetadataError> {
        self.0.find(&format!("tokenizer.ggml.{key}"))
    }

    /// A list with an element for each token; longer lists are cut, as vocabularies are padded now and then.
    fn per_token<T>(
        &self,
        key: &str,
        what: &'static str,
        tokens: usize,
    ) -> Result<Option<Vec<T>>, TokenizerError>
    where
        Vec<T>: crate::metadata::FromValue<'m>,
    {
        let Some(mut list) = self.find::<Vec<T>>(key)? else { return Ok(None) };
        if list.len() < tokens {
            return Err(TokenizerError::WrongLength { what, found: list.len(), tokens });
        }
        list.truncate(tokens);
        Ok(Some(list))
    }

    /// The pre-tokenizer that the file names; files from before there were names have the one called "default".
    fn pre_tokenizer(&self) -> Result<PreTokenizer, TokenizerError> {
        let name = self.find::<&str>("pre")?.unwrap_or("default");
        PreTokenizer::named(name).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
            name: name.to_owned(),
            known: PreTokenizer::names().collect::<Vec<_>>().join(", "),
        })
    }

    /// A token by key; a number that is no token counts as not given.
    fn token(&self, key: &str, vocabulary: &Vocabulary) -> Result<Option<u32>, MetadataError> {
        Ok(self.find(key)?.filter(|&id: &u32| (id as usize) < vocabulary.len()))
    }

    /// The tokens with a role. `defaults` are BOS, EOS and unknown where the file does not say.
    fn roles(
        &self,
        vocabulary: &mut Vocabulary,
        defaults: [Option<u32>; 3],
    ) -> Result<SpecialRoles, TokenizerError> {
        let [bos, eos, unknown] = defaults.map(|id| id.filter(|&id| (id as usize) < vocabulary.len()));
        let mut roles = SpecialRoles {
            bos: self.token("bos_token_id", vocabulary)?.or(bos),
            eos: self.token("eos_token_id", vocabulary)?.or(eos),
            unknown: self.token("unknown_token_id", vocabulary)?.or(unknown),
            padding: self.token("padding_token_id", vocabulary)?,
            ..SpecialRoles::default()
        };
        let mut given = [None; NAMED_ROLES.len()];
        for (given, role) in given.iter_mut().zip(&NAMED_ROLES) {
            *given = self.token(role.key, vocabulary)?;
        }
        roles.complete(vocabulary, given);
        Ok(roles)
    }

    /// The tokens that are recognised in text. In Phi-3, almost all swallow the white space behind them; its files do
    /// not say so, and llama.cpp goes by the model's name as well.
    fn special_tokens(&self, vocabulary: &Vocabulary) -> Result<SpecialTokens, TokenizerError> {
        let name = self.0.find::<&str>("general.name")?.unwrap_or_default().to_ascii_lowercase();
        let is_phi3 = name.contains("phi-3") || name.contains("phi3");
        let recognised = &[TokenKind::Unknown, TokenKind::Control, TokenKind::UserDefined];
        let tokens = vocabulary.of_kinds(recognised).filter(|(_, _, text)| !text.is_empty());
        let tokens = tokens.map(|(id, kind, text)| SpecialToken {
            id,
            text: text.into(),
            control: kind.is_special(),
            strips_right: is_phi3 && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>"),
        });
        Ok(SpecialTokens::new(tokens.collect()))
    }
}
