//! The alphabet of byte-level BPE: a printable character for every byte.
//!
//! GPT-2's vocabulary spells tokens in it so that its merges can be a text file. The printable bytes of Latin-1 stand
//! for themselves; the other 68, in order, are U+0100 and up: a space is `Ġ`, a newline `Ċ`.
//! (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".)

/// The character of each byte.
const ALPHABET: [char; 256] = {
    let mut alphabet = ['\0'; 256];
    let mut next = 0x100u32;
    let mut byte = 0;
    while byte < 256 {
        alphabet[byte] = match byte as u8 {
            printable @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) => printable as char,
            _ => {
                next += 1;
                match char::from_u32(next - 1) {
                    Some(c) => c,
                    None => unreachable!(),
                }
            }
        };
        byte += 1;
    }
    alphabet
};

/// Appends `bytes`, spelled in the alphabet, to `out`.
pub(super) fn spell(bytes: &[u8], out: &mut String) {
    out.extend(bytes.iter().map(|&byte| ALPHABET[byte as usize]));
}

/// The byte that `c` stands for, or `None` if it is not in the alphabet.
pub(super) fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        printable @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(printable as u8),
        first @ 0x100..=0x120 => Some((first - 0x100) as u8),
        second @ 0x121..=0x142 => Some((second - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Appends the bytes that a token of byte-level BPE stands for to `bytes`. A character outside the alphabet, which
/// only a token that was added by hand can contain, stands for itself.
pub(super) fn unspell(token: &str, bytes: &mut Vec<u8>) {
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        let mut spelled = String::new();
        spell(&all, &mut spelled);
        assert_eq!(spelled.chars().collect::<std::collections::BTreeSet<_>>().len(), 256);
        let mut unspelled = Vec::new();
        unspell(&spelled, &mut unspelled);
        assert_eq!(unspelled, all);
    }

    #[test]
    fn known_spellings() {
        // From GPT-2's published vocabulary: " the" is "Ġthe", a newline is "Ċ", the UTF-8 of "é" is "Ã©".
        for (text, spelling) in [(" the", "Ġthe"), ("\n", "Ċ"), ("é", "Ã©"), ("\t", "ĉ"), ("\u{AD}", "ÂŃ")]
        {
            let mut spelled = String::new();
            spell(text.as_bytes(), &mut spelled);
            assert_eq!(spelled, spelling);
        }
    }
}
