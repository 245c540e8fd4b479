//! Which prefixes lie in the folder, and which of them is a prompt's longest.

use std::collections::HashMap;

use super::address::{Address, Chain, LINK_TOKENS};

/// One file.
#[derive(Clone, Debug)]
struct Known {
    bytes: u64,
    /// In the index's own time.
    last_used: u64,
    chain: Chain,
}

/// All files.
#[derive(Default)]
pub(crate) struct Index {
    files: HashMap<Address, Known>,
    /// For each address of a chain, the files whose chains it is in.
    prefixes: HashMap<Address, Vec<Address>>,
    bytes: u64,
    now: u64,
}

/// A prefix of a prompt that lies in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OnDisk {
    /// The file, which may hold more tokens.
    pub(crate) file: Address,
    /// Tokens of the file.
    pub(crate) file_tokens: usize,
    /// Tokens that it has in common with the prompt.
    pub(crate) tokens: usize,
}

impl Index {
    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Files.
    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }

    /// True if this file is there.
    pub(crate) fn has(&self, file: Address) -> bool {
        self.files.contains_key(&file)
    }

    /// Counts a file in, as the one that was used last.
    pub(crate) fn insert(&mut self, chain: Chain, bytes: u64) {
        let Some(file) = chain.last() else { return };
        self.remove(file);
        for link in &chain.links {
            self.prefixes.entry(*link).or_default().push(file);
        }
        self.now += 1;
        self.bytes += bytes;
        self.files.insert(file, Known { bytes, last_used: self.now, chain });
    }

    /// Forgets a file.
    pub(crate) fn remove(&mut self, file: Address) {
        let Some(known) = self.files.remove(&file) else { return };
        self.bytes -= known.bytes;
        for link in &known.chain.links {
            if let Some(files) = self.prefixes.get_mut(link) {
                files.retain(|other| *other != file);
                if files.is_empty() {
                    self.prefixes.remove(link);
                }
            }
        }
    }

    /// The longest prefix of a chain that is there, in the smallest file that has it.
    pub(crate) fn longest(&self, chain: &Chain) -> Option<OnDisk> {
        let links = chain.links.iter().enumerate().rev();
        let (last, files) = links.filter_map(|(n, link)| Some((n, self.prefixes.get(link)?))).next()?;
        let length = |file: &Address| self.files[file].chain.links.len();
        let &file = files.iter().min_by_key(|file| (length(file), *file))?;
        Some(OnDisk { file, file_tokens: length(&file) * LINK_TOKENS, tokens: (last + 1) * LINK_TOKENS })
    }

    /// Says that a file was used.
    pub(crate) fn touch(&mut self, file: Address) {
        self.now += 1;
        if let Some(known) = self.files.get_mut(&file) {
            known.last_used = self.now;
        }
    }

    /// The file that was not used for the longest time.
    pub(crate) fn oldest(&self) -> Option<Address> {
        self.files.iter().min_by_key(|(_, known)| known.last_used).map(|(file, _)| *file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(tokens: &[u32]) -> Chain {
        Chain::new(Address([0; 32]), tokens)
    }

    #[test]
    fn the_longest_prefix_is_found_in_the_smallest_file() {
        let mut index = Index::default();
        let tokens: Vec<u32> = (0..640).collect();
        let mut other = tokens.clone();
        other[200] = 0;
        for (tokens, bytes) in [(&tokens[..256], 10), (&tokens[..640], 20), (&other[..320], 5)] {
            index.insert(chain(tokens), bytes);
        }
        assert_eq!((index.files(), index.bytes()), (3, 35));
        let found = |index: &Index, tokens: &[u32]| {
            index.longest(&chain(tokens)).map(|found| (found.tokens, found.file_tokens))
        };
        assert_eq!(found(&index, &tokens), Some((640, 640)));
        assert_eq!(found(&index, &tokens[..300]), Some((256, 256)));
        assert_eq!(found(&index, &tokens[..400]), Some((384, 640)));
        assert_eq!(found(&index, &other[..640]), Some((320, 320)));
        assert_eq!(found(&index, &tokens[1..]), None);
        assert_eq!(found(&index, &tokens[..60]), None);

        index.touch(chain(&tokens[..256]).last().unwrap());
        let oldest = index.oldest().unwrap();
        assert_eq!(Some(oldest), chain(&tokens).last());
        index.remove(oldest);
        assert_eq!(found(&index, &tokens), Some((256, 256)));
        index.insert(chain(&other[..320]), 7);
        assert_eq!((index.files(), index.bytes()), (2, 17), "the same file is counted once");
        while let Some(oldest) = index.oldest() {
            index.remove(oldest);
        }
        assert_eq!((index.files(), index.bytes(), index.prefixes.len()), (0, 0, 0));
    }
}
